"""The contract of scorers, and the scale that all of them share.

A scorer says how well a 16-frame zoom shows what a prompt asks for. Scores are logits on the scale of
MineCLIP as LS-Imagine reads it: ``sigmoid(1.2 (score - 21.8))`` is the affordance
(arXiv:2410.03618 and released code). Scorers of another scale put themselves on this one with
:func:`fit_affine`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from wmkit.affordance.labels.score_fusion import LOGIT_MIDPOINT, LOGIT_SLOPE

TEXT_DIM = 512  # width of the text vector that the U-Nets read


@runtime_checkable
class Scorer(Protocol):
    """Scores clips against prompts.

    Optional, and used by :class:`~wmkit.affordance.VirtualExploration` when present:

    - ``resolution: (h, w)``: the size of frames it wants; else frames come at the explored size;
    - ``encode(frames[M, C, h, w]) -> features[M, D]`` with ``pool(features[N, 16, D], prompts) -> scores[N,
      P]``: distinct frames are encoded once, 1216 in place of 1296 per map;
    - ``encode_boxes(images[B, C, H, W], boxes[N, 4]) -> features[B, N, D]``: features straight from the
      crop rectangles, without rendering them.
    """

    reads: Literal["frame", "goal_mask"]
    text_dim: int

    def __call__(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """``[N, 16, C, H, W]`` (uint8 or float in 0..255; masks bool or 0..1) to ``[N, P]`` logits."""
        ...

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """``[P, text_dim]`` vectors of the prompts, cached."""
        ...


def device_of(scorer: Any, otherwise: torch.device) -> torch.device:
    """Where a scorer with weights computes; ``otherwise`` for one without."""
    weight = next(scorer.parameters(), None) if isinstance(scorer, nn.Module) else None
    return otherwise if weight is None else weight.device


def words(text: str) -> list[str]:
    """Lower-case words of a prompt.

    >>> words("Cut a tree!")
    ['cut', 'a', 'tree']
    """
    return re.findall(r"[a-z0-9]+", text.lower())


def hashed_text_features(prompts: Sequence[str], dim: int = TEXT_DIM) -> Tensor:
    """Text vectors for scorers without a text tower: each word a fixed random vector, averaged.

    The vectors depend on the words alone, so they are the same on every machine and in every run.

    Returns:
        ``[P, dim]`` float32 of unit length.

    >>> a, b = hashed_text_features(["Cut a tree", "cut a tree"])
    >>> bool((a == b).all()), a.shape
    (True, torch.Size([512]))
    """
    vectors = []
    for prompt in prompts:
        total = torch.zeros(dim)
        for word in words(prompt) or [""]:
            total += torch.randn(dim, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))
        vectors.append(total / total.norm())
    return torch.stack(vectors)


def fit_affine(positive: Tensor, negative: Tensor, *, steps: int = 50) -> tuple[float, float]:
    """Put raw scores on the common scale by logistic regression (Platt scaling, both classes weighted alike).

    Finds ``a, b`` such that ``sigmoid(1.2 (a x + b - 21.8))`` is the probability that a clip with raw score
    ``x`` shows what its prompt asks for. Targets are Platt's, ``(n + 1) / (n + 2)`` and ``1 / (n + 2)``,
    which keeps the slope finite when the classes do not overlap.

    Args:
        positive: ``[n]`` raw scores of clips that match.
        negative: ``[m]`` raw scores of clips that do not.
        steps: Newton steps.

    Returns:
        ``(a, b)``; ``a`` is not negative.

    >>> a, b = fit_affine(torch.tensor([2.0, 3.0, 2.5]), torch.tensor([-1.0, 0.0, -0.5]))
    >>> bool(a > 0), round(a * 1.0 + b, 1)  # half way between the classes
    (True, 21.8)
    """
    x = torch.cat((positive, negative)).double().flatten()
    n, m = positive.numel(), negative.numel()
    centre, spread = x.mean(), x.std().clamp_min(1e-6)
    target = torch.cat((torch.full((n,), (n + 1) / (n + 2)), torch.full((m,), 1 / (m + 2)))).double()
    weight = torch.cat((torch.full((n,), 0.5 / n), torch.full((m,), 0.5 / m))).double()
    design = torch.stack(((x - centre) / spread, torch.ones_like(x)), -1)  # [n + m, 2]
    theta = torch.zeros(2, dtype=torch.float64)
    for _ in range(steps):
        probability = torch.sigmoid(design @ theta)
        gradient = design.T @ (weight * (probability - target)) + 1e-6 * theta
        curvature = design.T @ ((weight * probability * (1 - probability))[:, None] * design)
        step = torch.linalg.solve(curvature + 1e-6 * torch.eye(2, dtype=torch.float64), gradient)
        theta = theta - step.clamp(-2, 2)
    slope = float((theta[0] / spread).clamp_min(0))
    offset = float(theta[1]) - slope * float(centre)
    return slope / LOGIT_SLOPE, LOGIT_MIDPOINT + offset / LOGIT_SLOPE
