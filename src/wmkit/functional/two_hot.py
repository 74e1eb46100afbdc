"""Symlog squashing, and two-hot coding of scalars over fixed bins (Hafner et al. 2023, arXiv:2301.04104).

A scalar between two bins becomes a distribution with mass on those two only, linear in
the distance (section 3; symlog is eq. 9). Losses are taken against the code without ever building it: the two
neighbouring logits are gathered.

Bins come in symlog units (:func:`symmetric_bins`, the code of 2023) or in the quantity's own
(:func:`symexp_bins`, since 2024); they stand at the same places, but what lies between two of
them, and so what a spread-out distribution means, differs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wmkit import fast
from wmkit.errors import SpecError
from wmkit.functional.precision import widened
from wmkit.functional.shapes import check_shape


def symlog(x: Tensor) -> Tensor:
    """Compress magnitudes symmetrically: ``sign(x) * log(1 + |x|)``.

    Linear near zero and logarithmic far away, so that one network predicts rewards of
    0.1 and of 10,000. Inverse of :func:`symexp`.

    Args:
        x: any shape, in the quantity's own units.

    Returns:
        Same shape, in symlog units.

    >>> symlog(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.6931,  0.0000,  0.6931])
    """
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """Undo :func:`symlog`: ``sign(x) * (exp(|x|) - 1)``.

    Args:
        x: any shape, in symlog units.

    Returns:
        Same shape, in the quantity's own units.

    >>> symexp(symlog(torch.tensor([-3.0, 0.5])))
    tensor([-3.0000,  0.5000])
    """
    return torch.sign(x) * torch.expm1(torch.abs(x))


def symmetric_bins(limit: float, count: int) -> Tensor:
    """Equidistant bins from ``-limit`` to ``limit``, mirrored so that the centre is exactly zero.

    Args:
        limit: outermost bin.
        count: how many bins, odd.

    Returns:
        ``[count]`` float32.

    Raises:
        SpecError: an even number of bins, or a limit that is not positive.

    >>> symmetric_bins(20.0, 5)
    tensor([-20., -10.,   0.,  10.,  20.])
    """
    if count < 3 or count % 2 == 0 or not limit > 0:
        raise SpecError(
            f"bins are {count} up to {limit}: wanted an odd number from 3, and a limit above 0; change them"
        )
    below = torch.linspace(-limit, 0.0, count // 2 + 1)
    return torch.cat([below, -below[:-1].flip(0)])


def symexp_bins(limit: float, count: int) -> Tensor:
    """:func:`symexp <wmkit.functional.symexp>` of equidistant bins, made of one half and its mirror image.

    DreamerV3, danijar/dreamerv3 e3f0224: 255 bins of limit 20 reach to 4.85e8.

    Args:
        limit: outermost bin, symlog units.
        count: how many bins, odd.

    Returns:
        ``[count]`` float32, in the quantity's own units.

    >>> symexp_bins(2.0, 5)
    tensor([-6.3891, -1.7183,  0.0000,  1.7183,  6.3891])
    """
    return symexp(symmetric_bins(limit, count))


def two_hot(target: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """The two bins around each target, and how much mass each gets.

    Args:
        target: ``[*B]`` float, in the units of ``bins``; values outside are clipped to the ends.
        bins: ``[K]`` float, increasing.

    Returns:
        Bins ``[*B, 2]`` int64 and their mass ``[*B, 2]``, which adds up to one.

    >>> two_hot(torch.tensor(0.25), torch.linspace(-1.0, 1.0, 3))
    (tensor([1, 2]), tensor([0.7500, 0.2500]))
    """
    target = target.clamp(bins[0], bins[-1])
    above = torch.searchsorted(bins, target.contiguous(), right=True).clamp(1, bins.numel() - 1)  # [*B]
    below = above - 1
    mass = (target - bins[below]) / (bins[above] - bins[below])  # [*B] on `above`
    return torch.stack([below, above], -1), torch.stack([1 - mass, mass], -1)


def two_hot_cross_entropy(
    logits: Tensor, target: Tensor, bins: Tensor, probs: Tensor | None = None
) -> Tensor:
    """Cross-entropy between the two-hot code of ``target`` and a categorical over ``bins``.

    Args:
        logits: ``[*B, K]`` float.
        target: ``[*B]`` float, in the units of ``bins``; values outside are clipped to the ends. Or
            ``[*B, N]``: N targets, whose cross-entropies are added up.
        bins: ``[K]`` float, increasing.
        probs: softmax of ``logits``, if it is there already.

    Returns:
        ``[*B]`` float, nats, one loss per sample.

    >>> bins = torch.linspace(-1.0, 1.0, 3)
    >>> two_hot_cross_entropy(torch.zeros(2, 3), torch.tensor([0.25, 9.0]), bins)
    tensor([1.0986, 1.0986])
    """
    lead, where = logits.shape[:-1], "two_hot_cross_entropy"
    several = target.ndim == logits.ndim
    check_shape(where, "target", target[..., 0] if several else target, lead, "[*B], or [*B, N] of N targets")
    check_shape(where, "bins", bins, logits.shape[-1:], "[K]")
    index, mass = two_hot(target, bins)
    if several:
        index, mass = index.flatten(-2), mass.flatten(-2)  # [*B, 2N]
    return fast.coded_cross_entropy(logits, index, mass, probs)


def two_hot_mean(probs: Tensor, bins: Tensor) -> Tensor:
    """Expected bin, from the differences of symmetric pairs.

    Uniform probabilities give exactly zero, whatever the magnitude of the outer bins. Multiplied and summed
    in float32 or wider: TF32 or autocast would round the outer bins of :func:`symexp_bins`, 4.85e8 apart
    from zero, by more than everything the inner ones say.

    Args:
        probs: ``[*B, K]`` float, normalised; ``K`` odd.
        bins: ``[K]`` float, mirrored around a centre of zero.

    Returns:
        ``[*B]`` float, in the units of ``bins``.

    >>> two_hot_mean(torch.full((1, 255), 1 / 255), symexp_bins(20.0, 255))
    tensor([0.])
    """
    check_shape("two_hot_mean", "bins", bins, probs.shape[-1:], "[K]")
    half, probs = bins.numel() // 2, widened(probs)
    difference = probs[..., half + 1 :] - probs[..., :half].flip(-1)
    return fast.weighted_sum(difference, bins[half + 1 :])
