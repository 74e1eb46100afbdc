"""Latents: drawing their classes, and KL divergences between them, in nats.

A latent is ``G`` independent categoricals of ``C`` classes (Hafner et al. 2021, arXiv:2010.02193,
section 2.1), or independent normals. Classes are drawn with a share of uniform (unimix), by inverse
transform, with straight-through gradients. Samples come from uniforms that the caller draws before its
time loop, so that a scan is a pure function of its inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit import fast
from wmkit.functional.precision import widened
from wmkit.functional.shapes import check_equal, check_factor, check_samples, check_shape


def unimix_probs(logits: Tensor, mix: float) -> Tensor:
    """Softmax mixed with a uniform: ``(1 - mix) * softmax(logits) + mix / C``.

    Args:
        logits: ``[*B, C]`` float; below float32 they are computed with in float32.
        mix: share of the uniform, 0.01 in DreamerV3.

    Returns:
        ``[*B, C]`` probabilities, none below ``mix / C``, float32 or wider.

    >>> unimix_probs(torch.tensor([100.0, 0.0, 0.0, 0.0]), 0.01)
    tensor([0.9925, 0.0025, 0.0025, 0.0025])
    """
    check_factor("unimix_probs", "mix", mix, ())
    probs = fast.softmax(widened(logits))
    return probs * (1.0 - mix) + mix / logits.shape[-1] if mix else probs


def sample_index(probs: Tensor, uniform: Tensor) -> Tensor:
    """Draw classes by inverting the cumulative distribution.

    Args:
        probs: ``[*B, C]`` probabilities.
        uniform: ``[*B, 1]`` in [0, 1), one number per categorical; for several samples ``[*N, *B, 1]``.

    Returns:
        ``[*B]`` int64, or ``[*N, *B]``.

    Raises:
        SpecError: another shape.

    >>> sample_index(torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.6]))
    tensor(1)
    """
    check_samples("sample_index", "uniform", uniform, (*probs.shape[:-1], 1), "[*B, 1]")
    # The last cumulative sum may fall short of one by rounding: it is left out.
    return fast.sample_index(probs, uniform)


def one_hot(index: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """``[*B] -> [*B, classes]``, rows of an identity: on a CPU five times as fast as setting the ones.

    >>> one_hot(torch.tensor([2, 0]), 3)
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """
    return F.embedding(index, torch.eye(classes, dtype=dtype, device=index.device))


def sample_one_hot(probs: Tensor, uniform: Tensor) -> Tensor:
    """Draw one-hot samples by inverting the cumulative distribution.

    Args:
        probs: ``[*B, C]`` probabilities.
        uniform: ``[*B, 1]`` in [0, 1), one number per categorical.

    Returns:
        ``[*B, C]`` one-hot, dtype of ``probs``, no gradient.

    >>> sample_one_hot(torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.6]))
    tensor([0., 1., 0.])
    """
    with torch.no_grad():
        return one_hot(sample_index(probs, uniform), probs.shape[-1], probs.dtype)


def straight_through(sample: Tensor, probs: Tensor) -> Tensor:
    """Value of ``sample``, gradient of ``probs`` (Bengio et al. 2013, arXiv:1308.3432).

    >>> p = torch.tensor([0.3, 0.7], requires_grad=True)
    >>> straight_through(torch.tensor([0.0, 1.0]), p).detach()
    tensor([0., 1.])
    """
    check_samples("straight_through", "sample", sample, probs.shape, "[*B, C]")
    return sample + (probs - probs.detach())


def categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    """``KL(p || q)`` summed over the categoricals of a latent.

    Args:
        p: ``[*B, G, C]`` probabilities, none of them zero (see :func:`unimix_probs`).
        q: the same of the other.

    Returns:
        ``[*B]`` float, nats.

    >>> categorical_kl(torch.full((1, 2, 4), 0.25), torch.full((1, 2, 4), 0.25))
    tensor([0.])
    """
    check_equal("categorical_kl", "[*B, G, C]", p=p, q=q)
    return (p * (torch.log(p) - torch.log(q))).sum((-2, -1))


def categorical_kl_logits(p: Tensor, q: Tensor) -> Tensor:
    """``KL(p || q)`` summed over the categoricals of a latent, where classes may be as good as impossible.

    Args:
        p: ``[*B, G, C]`` logits; below float32 they are computed with in float32.
        q: the same of the other.

    Returns:
        ``[*B]`` float, nats.

    >>> categorical_kl_logits(torch.tensor([[[500.0, 0.0]]]), torch.zeros(1, 1, 2))
    tensor([0.6931])
    """
    check_equal("categorical_kl_logits", "[*B, G, C]", p=p, q=q)
    p, q = torch.log_softmax(widened(p), -1), torch.log_softmax(widened(q), -1)
    return (p.exp() * (p - q)).sum((-2, -1))


def gaussian_kl(p: Tensor, q: Tensor) -> Tensor:
    """``KL(p || q)`` of independent normals, summed over them.

    Args:
        p: ``[*B, 2, D]`` means and standard deviations.
        q: the same of the other.

    Returns:
        ``[*B]`` float, nats.

    >>> gaussian_kl(torch.tensor([[[1.0], [1.0]]]), torch.tensor([[[0.0], [1.0]]]))
    tensor([0.5000])
    """
    check_equal("gaussian_kl", "[*B, 2, D]", p=p, q=q)
    check_shape("gaussian_kl", "p", p, (*p.shape[:-2], 2, p.shape[-1]), "[*B, 2, D]")
    (p_mean, p_std), (q_mean, q_std) = p.unbind(-2), q.unbind(-2)
    ratio, distance = p_std / q_std, (p_mean - q_mean) / q_std
    return (0.5 * (ratio.square() + distance.square() - 1) - torch.log(ratio)).sum(-1)
