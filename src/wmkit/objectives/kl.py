"""The KL terms of the first two Dreamers, with free nats on the mean over the batch.

DreamerV3's, with free nats at each position, is :class:`~wmkit.objectives.KLBalance`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wmkit.functional import categorical_kl_logits, gaussian_kl
from wmkit.objectives.terms import Term

Divergence = Callable[[Tensor, Tensor], Tensor]


class MeanKL(nn.Module):
    """One term that pulls posterior and prior towards each other (DreamerV1, arXiv:1912.01603).

    Args:
        free_nats: while the mean over the batch is below this, the term has no gradient.
        divergence: statistics of posterior and prior to their KL ``[*B]``.

    >>> p = torch.tensor([[[0.0], [1.0]], [[4.0], [1.0]]])  # means 0 and 4, the second 8 nats away
    >>> q = torch.tensor([[[0.0], [1.0]], [[0.0], [1.0]]])
    >>> MeanKL(free_nats=3.0)(p, q)["kl"].value
    tensor([4., 4.])
    """

    terms = ("kl",)

    def __init__(self, free_nats: float = 3.0, divergence: Divergence = gaussian_kl) -> None:
        super().__init__()
        self.free_nats, self.divergence = free_nats, divergence

    def forward(self, posterior: Tensor, prior: Tensor) -> dict[str, Term]:
        """``kl``, the batch's mean at every position: ``[*B]``."""
        return {"kl": _free_mean(self.divergence(posterior, prior), self.free_nats)}


class MeanKLBalance(nn.Module):
    """One term for the prior, one for the posterior (DreamerV2, arXiv:2010.02193, section 2.2).

    How strongly each counts, 0.8 and 0.2 of the KL's scale, is the loss weights' affair.

    Args:
        free_nats: while the mean over the batch is below this, a term has no gradient.
        divergence: statistics of posterior and prior to their KL ``[*B]``.

    >>> p, q = torch.tensor([[[50.0, 0.0]]]), torch.zeros(1, 1, 2)
    >>> MeanKLBalance(free_nats=0.0)(p, q)["kl_dynamics"].value
    tensor([0.6931])
    """

    terms = ("kl_dynamics", "kl_representation")

    def __init__(self, free_nats: float = 0.0, divergence: Divergence = categorical_kl_logits) -> None:
        super().__init__()
        self.free_nats, self.divergence = free_nats, divergence

    def forward(self, posterior: Tensor, prior: Tensor) -> dict[str, Term]:
        """``kl_dynamics`` trains the prior, ``kl_representation`` the posterior; ``[*B]`` each."""
        dynamics = self.divergence(posterior.detach(), prior)
        representation = self.divergence(posterior, prior.detach())
        return {
            "kl_dynamics": _free_mean(dynamics, self.free_nats),
            "kl_representation": _free_mean(representation, self.free_nats),
        }


def _free_mean(value: Tensor, free_nats: float) -> Term:
    return Term(torch.clamp(value.mean(), min=free_nats).expand_as(value))
