"""A scorer that reads the simulator's object mask: the truth that the other scorers estimate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from wmkit.affordance.labels.score_fusion import LOGIT_MIDPOINT, LOGIT_SLOPE
from wmkit.affordance.scorers.scorer import TEXT_DIM, hashed_text_features
from wmkit.errors import SpecError


class LabelScorer:
    """Scores a zoom by how far the goal's mask fills the view that it did not fill before.

    With ``f_i`` the share of frame ``i`` that the mask covers,

    ``growth = max(f_15 - f_0 + e, 0) / (1 - f_0 + e)``, ``e = 0.001``, and
    ``score = 21.8 + (gain / 1.2) (growth - half) / (growth + half)``.

    So a zoom that ends in a view without the goal scores ``21.8 - gain / 1.2`` (affordance 0.02), one that
    fills ``half`` of what was free scores 21.8 (affordance 0.5), and the score grows with every pixel
    between. A view that the goal fills from the start scores high: whatever the zoom adds, it adds all there
    was to add. The prompt plays no part: the mask already belongs to the task.

    Args:
        half: growth at which the affordance is one half.
        gain: logistic units between no goal and the midpoint.

    Shapes: frames ``[N, 16, 1, H, W]`` bool or 0..1.

    >>> import torch
    >>> zoom = torch.zeros(1, 16, 1, 4, 4)
    >>> zoom[:, -1] = 1.0
    >>> scorer = LabelScorer()
    >>> [round(float(scorer(frames, ["Cut a tree"])), 2) for frames in (zoom, zoom * 0)]
    [24.53, 18.53]
    """

    reads: Literal["frame", "goal_mask"] = "goal_mask"
    text_dim = TEXT_DIM

    def __init__(self, *, half: float = 0.1, gain: float = 4.0) -> None:
        self.half, self.gain = half, gain

    def __call__(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """``[N, 16, 1, H, W]`` masks to ``[N, P]`` logits."""
        if frames.ndim != 5 or frames.shape[2] != 1:
            raise SpecError(
                f"label scorer: found frames of shape {list(frames.shape)}, wanted masks [N, 16, 1, H, W]; "
                "pass goal_mask, not frame"
            )
        return self.pool(self.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]), prompts)

    def encode(self, frames: Tensor) -> Tensor:
        """Covered share of each mask: ``[M, 1, H, W] -> [M, 1]``."""
        return frames.float().mean((-2, -1))

    def encode_boxes(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Covered share of each box, exactly, by integral image: ``[B, 1, H, W], [N, 4] -> [B, N, 1]``."""
        top, left, bottom, right = boxes.unbind(-1)
        share = box_sums(integral_image(images[:, 0]), boxes) / ((bottom - top) * (right - left))
        return share.float().unsqueeze(-1)

    def pool(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """``[N, 16, 1] -> [N, P]``, the same for every prompt."""
        first, last = features[:, 0, 0], features[:, -1, 0]
        growth = (last - first + 1e-3).clamp_min(0) / (1 - first + 1e-3)
        logit = self.gain * (growth - self.half) / (growth + self.half)
        return (LOGIT_MIDPOINT + logit / LOGIT_SLOPE)[:, None].expand(-1, len(prompts))

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """``[P, 512]``: fixed random vectors of the words."""
        return hashed_text_features(prompts, self.text_dim)


def integral_image(values: Tensor) -> Tensor:
    """Sums over every rectangle that starts at the top left corner.

    Args:
        values: ``[*B, H, W]``, any dtype.

    Returns:
        ``[*B, H + 1, W + 1]`` float64; entry ``(y, x)`` is the sum of ``values[:y, :x]``.

    >>> integral_image(torch.ones(2, 3))[-1, -1]
    tensor(6., dtype=torch.float64)
    """
    sums = values.new_zeros(
        *values.shape[:-2], values.shape[-2] + 1, values.shape[-1] + 1, dtype=torch.float64
    )
    sums[..., 1:, 1:] = values.double().cumsum(-1).cumsum(-2)
    return sums


def box_sums(integral: Tensor, boxes: Tensor) -> Tensor:
    """Sums inside boxes, four look-ups each.

    Args:
        integral: ``[*B, H + 1, W + 1]`` of :func:`integral_image`.
        boxes: ``[..., 4]`` int64 ``(top, left, bottom, right)``, ends excluded.

    Returns:
        ``[*B, ...]`` in the dtype of ``integral``.

    >>> box_sums(integral_image(torch.ones(4, 4)), torch.tensor([[1, 1, 3, 4]]))
    tensor([6.], dtype=torch.float64)
    """
    top, left, bottom, right = boxes.unbind(-1)
    corner = integral[..., bottom, right] - integral[..., top, right]
    return corner - integral[..., bottom, left] + integral[..., top, left]
