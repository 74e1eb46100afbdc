"""What everything that learns from a batch looks at: the window, and what the world model makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wmkit.dynamics import Latent, Observed, WorldModel


class Start(NamedTuple):
    """States that imagination may start from.

    Attributes:
        latent: leaves ``[N, ...]``, without gradient.
        mask: ``[N, 1]`` bool, which of them are real.
        continuation: ``[N, 1]`` float, one where the episode goes on after the start.
        restarts: leaves ``[M, ...]``, real states for roll-outs that begin anew; the starts if None.
    """

    latent: Latent
    mask: Tensor
    continuation: Tensor
    restarts: Latent | None = None


class Scene:
    """A window ``[B, T]`` seen by a world model; each thing is computed when it is first asked for.

    Args:
        world_model: with gradients.
        batch: the sequence layout, images as floats in [0, 1].
        latent: state before the window; the initial state if not given.
        observed: what was observed already.
        beside: further windows that an update was given, of the same layout (dreams' own).

    Attributes:
        starts: states besides the window's that imagination may start from, left by objectives.
        metrics: detached scalars that objectives add to the log.
    """

    def __init__(
        self,
        world_model: WorldModel,
        batch: Mapping[str, Any],
        latent: Latent | None = None,
        *,
        observed: Observed | None = None,
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        self.world_model, self.batch, self.latent, self.beside = world_model, batch, latent, beside
        self.starts: list[Start] = []
        self.metrics: dict[str, Tensor] = {}
        self._embed: Tensor | None = None
        self._represented: Any = None
        self._observed = observed

    @property
    def represented(self) -> Any:
        """Posterior of each observation alone; only of a model whose posterior is myopic."""
        if self._represented is None:
            self._represented = self.world_model.dynamics.represent(self._encoded())
        return self._represented

    @property
    def observed(self) -> Observed:
        """Posterior over the window."""
        if self._observed is None:
            model, beside = self.world_model, {}
            if model.dynamics.myopic:
                beside["represented"] = self.represented
            self._observed = model.dynamics.observe(
                self._encoded(), model.record(self.batch), self.latent, **beside
            )
        return self._observed

    @property
    def posterior_logits(self) -> Tensor:
        """``[B, T, G, C]``; does not run the sequence model of a myopic posterior."""
        if self._observed is None and self.world_model.dynamics.myopic:
            return self.represented.logits
        return self.observed.posterior_logits

    def latent_for(self, part: Any) -> Latent:
        """What a part reads ``[B, T, ...]``; one that reads states alone needs no sequence model."""
        model = self.world_model
        if self._observed is None and model.dynamics.myopic:
            fields = {model.dynamics.fields.get(key) for key in part.in_keys}
            if fields == {"state"}:
                seen = self.represented
                return Latent(seen.state, seen.state[..., :0], None, seen.classes)
        return self.observed.latent

    def _encoded(self) -> Tensor:
        if self._embed is None:
            self._embed = self.world_model.encoder.encode(self.batch)
        return self._embed


def episode_ends(batch: Mapping[str, Tensor]) -> Tensor:
    """Which records ``[B, T, 1]`` of a window are the last of their episode, abandoned ones included.

    >>> no, first = torch.zeros(1, 3, 1, dtype=torch.bool), torch.tensor([[[0], [1], [0]]]).bool()
    >>> episode_ends({"is_init": first, "terminated": no}).flatten().tolist()
    [True, False, False]
    """
    terminated, is_init = batch["terminated"].bool(), batch["is_init"].bool()
    before_first = torch.cat([is_init[:, 1:], torch.zeros_like(is_init[:, :1])], 1)
    last = terminated | before_first
    return last | batch["done"].bool() if "done" in batch else last
