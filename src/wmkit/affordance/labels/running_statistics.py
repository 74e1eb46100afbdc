"""Mean and deviation over the lifetime of several streams."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wmkit.errors import ConfigError


class RunningStatistics(nn.Module):
    """Mean and population standard deviation of everything seen so far, per stream (Welford).

    Kept in a float64 buffer, so a checkpoint keeps the thresholds. Loading or resizing to another
    number of streams merges the streams and gives each the result (4 training environments to 1 for
    evaluation, say).

    Args:
        width: quantities per stream.
        decay: weight of the past at each new value; 1 counts the whole lifetime (the released rule),
            0.999 forgets over about a thousand steps.

    >>> statistics = RunningStatistics()
    >>> for x in (1.0, 2.0, 6.0):
    ...     mean, std = statistics.update(torch.tensor([[x]]))
    >>> mean.item(), round(std.item() ** 2, 6)
    (3.0, 4.666667)
    """

    moments: Tensor  # [3, E, width]: count, mean, sum of squared deviations

    def __init__(self, width: int = 1, *, decay: float = 1.0) -> None:
        super().__init__()
        if not 0.0 < decay <= 1.0:
            raise ConfigError(
                f"decay={decay} of the running statistics is out of range: wanted 0 < decay <= 1; "
                "use 1 for lifetime"
            )
        self.decay = decay
        self.register_buffer("moments", torch.zeros(3, 0, width, dtype=torch.float64))

    @property
    def streams(self) -> int:
        """Number of streams; 0 before the first value."""
        return self.moments.shape[1]

    @property
    def count(self) -> Tensor:
        """Values seen per stream, ``[E]``; with ``decay`` their total weight."""
        return self.moments[0, :, 0]

    def resize(self, streams: int) -> None:
        """Make room for ``streams`` streams; a change of number merges what was seen."""
        if streams != self.streams:
            self.moments = self.pooled()[:, None].repeat(1, streams, 1)

    def pooled(self) -> Tensor:
        """The moments ``[3, width]`` of all streams together (Chan et al. 1979)."""
        count, mean, m2 = self.moments  # [E, width]
        total = count.sum(0)
        middle = (count * mean).sum(0) / total.clamp_min(1e-12)
        return torch.stack((total, middle, m2.sum(0) + (count * (mean - middle) ** 2).sum(0)))

    def read(self) -> tuple[Tensor, Tensor]:
        """Mean and std over all streams together, ``[width]`` float64; zeros before the first value."""
        count, mean, m2 = self.pooled()
        return mean, (m2 / count.clamp_min(1e-12)).sqrt()

    def update(self, value: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take in one value per stream and quantity.

        Args:
            value: ``[n, width]``.
            rows: int64 ``[n]``, the streams the values belong to; None for all.

        Returns:
            Mean and std ``[n, width]`` float64 of those streams, the new value included.
        """
        if rows is None:
            self.resize(value.shape[0])
        moments = self.moments if rows is None else self.moments[:, rows]
        count, mean, m2 = moments.unbind(0)  # written in place
        if self.decay < 1:
            count.mul_(self.decay)
            m2.mul_(self.decay)
        count.add_(1)
        value = value.detach().to(moments)
        shift = value - mean
        mean.addcdiv_(shift, count)
        m2.addcmul_(shift, value - mean)
        if rows is not None:
            self.moments.index_copy_(1, rows, moments)
        return mean.clone(), (m2 / count).sqrt_()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "moments")
        if saved is not None and saved.ndim == 3:
            self.moments = self.moments.new_zeros(3, saved.shape[1], self.moments.shape[2])
        super()._load_from_state_dict(state_dict, prefix, *args)
