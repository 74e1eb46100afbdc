"""Jump labels: when a region of the map stands out, zoom into it and see whether it pays.

LS-Imagine, arXiv:2410.03618, section 3.3, and its released code. Per record:

1. P_jump from the map; go on only if it exceeds the stream's running mean + std.
2. Crop the best window, upsample it to the full frame: the zoomed view o'.
3. Map and score of o'. ``is_zoomed`` (a long-branch pair exists) if the score rose by at least two
   running standard deviations; ``jump`` if a blob of the map was central as well.

The second pass of the model runs only on records that passed step 1. Maps are float ``[H, W]`` in
[0, 1]; windows and images are in pixels of the simulator's frame (160 x 256).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmkit.affordance.labels.map_scores import affordance_score, jump_probability
from wmkit.affordance.labels.running_statistics import RunningStatistics
from wmkit.affordance.labels.zoom_windows import ZoomWindow, zoom_window
from wmkit.errors import ConfigError

Predict = Callable[[Tensor], Tensor]


class Zooms(NamedTuple):
    """Labels of N records and the views of those that zoomed.

    ``is_zoomed``, ``jump``, ``score``, ``value`` are ``[N]``; ``score`` is s'_aff and ``value`` the mean of
    the map in the window (0 where not zoomed). ``rows`` int64 ``[M]`` tells which records zoomed;
    ``pixels`` uint8 ``[M, 3, H, W]`` and ``affordance`` ``[M, H, W]`` are their views, both None if M = 0.
    """

    is_zoomed: Tensor
    jump: Tensor
    score: Tensor
    value: Tensor
    rows: Tensor
    pixels: Tensor | None
    affordance: Tensor | None


def zoom_view(frame: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Crop a window and upsample it to the whole frame: bilinear, no aligned corners, truncated.

    Args:
        frame: uint8 ``[C, H, W]`` (bool is upsampled to bool: any coverage of one half or more).
        top: first row of the window.
        left: first column.
        height: rows.
        width: columns.

    Returns:
        Same shape and dtype as ``frame``.

    >>> frame = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    >>> zoom_view(frame, 0, 0, 2, 2)[0, 0].tolist()
    [0, 0, 0, 1]
    """
    crop = frame[None, :, top : top + height, left : left + width].float()
    view = F.interpolate(crop, frame.shape[-2:], mode="bilinear", align_corners=False)[0]
    if frame.dtype == torch.bool:
        return view >= 0.5
    return (view + 1e-4).to(frame.dtype)  # the guard keeps 99.99999 from becoming 99


class JumpLabeller(nn.Module):
    """Thresholds, zooms and labels; holds the running statistics of P_jump and of the score.

    Args:
        kurtosis: ``"excess"`` (released code) or ``"raw"`` (paper) in P_jump.
        sigma: of the score's Gaussian, as fractions of width and height.
        normalise: divide the score by the Gaussian's mean (released code).
        decay: of both running statistics; 1 is lifetime.
        margin: standard deviations above the mean that P_jump must exceed; P_jump of a confident map lies
            just below 1, so where the target is in view more than half the time ``mean + std`` passes 1
            and nothing jumps any more: a smaller margin (or a ``decay``) keeps jumps alive.
        rise: standard deviations by which the zoomed score must exceed the current one.
        weight: of the affordance score in rewards and scores.
        alpha: further factor of the affordance score in the rewards.
        adapt: let live records update the statistics; switch it off for evaluation.

    Raises:
        ConfigError: another kurtosis, or a decay out of range.
    """

    def __init__(
        self,
        *,
        kurtosis: Literal["excess", "raw"] = "excess",
        sigma: tuple[float, float] = (0.5, 0.5),
        normalise: bool = True,
        decay: float = 1.0,
        margin: float = 1.0,
        rise: float = 2.0,
        weight: float = 0.01,
        alpha: float = 1.0,
        adapt: bool = True,
    ) -> None:
        super().__init__()
        if kurtosis not in ("excess", "raw"):
            raise ConfigError(
                f"kurtosis={kurtosis!r} of the jump labeller is unknown: wanted excess (released code) or "
                "raw (paper); pick one of them"
            )
        self.kurtosis, self.sigma, self.normalise = kurtosis, sigma, normalise
        self.margin, self.rise = margin, rise
        self.weight, self.alpha, self.adapt = weight, alpha, adapt
        self.statistics = RunningStatistics(2, decay=decay)  # of P_jump and of the score

    @property
    def seen(self) -> bool:
        """Whether the statistics hold anything."""
        return bool((self.statistics.count > 0).any())

    def fresh(self) -> JumpLabeller:
        """A labeller with the same rules that has seen nothing."""
        return JumpLabeller(
            kurtosis=self.kurtosis,
            sigma=self.sigma,
            normalise=self.normalise,
            decay=self.statistics.decay,
            margin=self.margin,
            rise=self.rise,
            weight=self.weight,
            alpha=self.alpha,
            adapt=self.adapt,
        )

    def score(self, maps: Tensor) -> Tensor:
        """s_aff of maps ``[N, H, W]``: ``[N]``."""
        return affordance_score(maps, sigma=self.sigma, normalise=self.normalise)

    def probability(self, maps: Tensor) -> Tensor:
        """P_jump of maps ``[N, H, W]``: ``[N]``."""
        return jump_probability(maps, kurtosis=self.kurtosis)

    def thresholds(
        self, probability: Tensor, score: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take in T consecutive records of n streams.

        Args:
            probability: P_jump ``[n, T]``.
            score: s_aff ``[n, T]``.
            rows: the streams, int64 ``[n]``; None for all.

        Returns:
            ``passed`` bool ``[n, T]`` (P_jump strictly above its mean + margin * std, the current value
            included)
            and the ``bar`` ``[n, T]`` float64 that a zoomed score must reach.
        """
        passed, bar = [], []
        for value in torch.stack((probability, score), -1).unbind(1):  # [n, 2]
            mean, std = self.statistics.update(value, rows)
            passed.append(value[:, 0] > mean[:, 0] + self.margin * std[:, 0])
            bar.append(value[:, 1] + self.rise * std[:, 1])
        return torch.stack(passed, 1), torch.stack(bar, 1)

    def frozen_thresholds(self, probability: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`thresholds`, from the statistics of all streams as they stand, learning nothing."""
        mean, std = self.statistics.read()
        return probability > mean[0] + self.margin * std[0], score + self.rise * std[1]

    def zoom(
        self,
        frames: Tensor,
        sources: Tensor,
        maps: Tensor,
        passed: Tensor,
        bar: Tensor,
        predict: Predict,
    ) -> Zooms:
        """Label N records, looking closer at those that passed.

        Args:
            frames: uint8 ``[N, 3, H, W]``, what the agent would see.
            sources: what the model reads: ``frames`` again, or masks ``[N, 1, H, W]``.
            maps: ``[N, H, W]``.
            passed: bool ``[N]``.
            bar: ``[N]``, the score a zoomed view must reach.
            predict: sources ``[M, ...]`` to maps ``[M, H, W]``.
        """
        zero, no = maps.new_zeros(len(maps)), torch.zeros_like(passed)
        rows = passed.nonzero()[:, 0]
        if len(rows):
            windows = zoom_window(maps[rows])
            found = windows.found
            windows, rows = ZoomWindow(*(x[found] for x in windows)), rows[found]
        if not len(rows):
            return Zooms(no, no, zero, zero, rows, None, None)
        boxes = torch.stack(windows[:4], 1).tolist()
        picks = zip(rows.tolist(), boxes, strict=True)
        views = torch.stack([zoom_view(sources[row], *box) for row, box in picks])
        zoomed_maps = predict(views)  # [M, H, W]
        score = self.score(zoomed_maps)  # [M]
        good = score >= bar[rows]
        if not bool(good.any()):
            return Zooms(no, no, zero, zero, rows[good], None, None)
        kept = good.nonzero()[:, 0].tolist()
        if frames is sources:
            pixels = views[good]
        else:
            pixels = torch.stack([zoom_view(frames[rows[i]], *boxes[i]) for i in kept])
        score, value = score * good, windows.value * good
        return Zooms(
            no.index_copy(0, rows, good),
            no.index_copy(0, rows, good & windows.central),
            zero.index_copy(0, rows, score.to(zero)),
            zero.index_copy(0, rows, value.to(zero)),
            rows[good],
            pixels,
            zoomed_maps[good],
        )
