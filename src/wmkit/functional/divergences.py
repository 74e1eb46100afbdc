"""KL divergences between latents, in nats."""

from __future__ import annotations

import torch
from torch import Tensor

from wmkit.functional.precision import widened


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
    (p_mean, p_std), (q_mean, q_std) = p.unbind(-2), q.unbind(-2)
    ratio, distance = p_std / q_std, (p_mean - q_mean) / q_std
    return (0.5 * (ratio.square() + distance.square() - 1) - torch.log(ratio)).sum(-1)
