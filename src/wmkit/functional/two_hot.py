"""Two-hot coding of scalars over fixed bins (Hafner et al. 2023, arXiv:2301.04104, section 3).

A scalar between two bins becomes a distribution with mass on those two only, linear in
the distance. Losses are taken against the code without ever building it: the two
neighbouring log-probabilities are gathered.
"""

from __future__ import annotations

import torch
from torch import Tensor


def symmetric_bins(limit: float, count: int) -> Tensor:
    """Equidistant bins from ``-limit`` to ``limit``, mirrored so that the centre is exactly zero.

    Args:
        limit: outermost bin.
        count: how many bins, odd.

    Returns:
        ``[count]`` float32.

    >>> symmetric_bins(20.0, 5)
    tensor([-20., -10.,   0.,  10.,  20.])
    """
    below = torch.linspace(-limit, 0.0, count // 2 + 1)
    return torch.cat([below, -below[:-1].flip(0)])


def two_hot_cross_entropy(logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """Cross-entropy between the two-hot code of ``target`` and a categorical over ``bins``.

    Args:
        logits: ``[*B, K]`` float, unnormalised.
        target: ``[*B]`` float, in the units of ``bins``; values outside are clipped to the ends.
        bins: ``[K]`` float, increasing.

    Returns:
        ``[*B]`` float, nats, one loss per sample.

    >>> bins = torch.linspace(-1.0, 1.0, 3)
    >>> two_hot_cross_entropy(torch.zeros(2, 3), torch.tensor([0.25, 9.0]), bins)
    tensor([1.0986, 1.0986])
    """
    target = target.clamp(bins[0], bins[-1])
    above = torch.searchsorted(bins, target.contiguous(), right=True).clamp(1, bins.numel() - 1)  # [*B]
    below = above - 1
    weight = (target - bins[below]) / (bins[above] - bins[below])  # [*B] mass on `above`
    log_p = torch.log_softmax(logits, -1)
    pair = log_p.gather(-1, torch.stack([below, above], -1))  # [*B, 2]
    return -torch.lerp(pair[..., 0], pair[..., 1], weight)


def two_hot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """Expected bin, summed from both ends towards the centre.

    Summing symmetric pairs first makes uniform probabilities over symmetric bins give
    exactly zero, whatever the magnitude of the outer bins.

    Args:
        logits: ``[*B, K]`` float, unnormalised; ``K`` odd.
        bins: ``[K]`` float, symmetric around its centre.

    Returns:
        ``[*B]`` float, in the units of ``bins``.

    >>> two_hot_mean(torch.zeros(1, 255), symmetric_bins(20.0, 255))
    tensor([0.])
    """
    weighted = torch.softmax(logits, -1) * bins
    half = bins.numel() // 2
    pairs = weighted[..., :half].flip(-1) + weighted[..., half + 1 :]
    return weighted[..., half] + pairs.sum(-1)
