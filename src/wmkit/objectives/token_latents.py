"""How prior and posterior of a token world model are pulled together, and how the posterior is kept open.

Two ways, one call: ``latents(posterior_logits, prior_logits, spans)`` gives the terms that train the
representation and those that train the dynamics.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.errors import ConfigError
from wmkit.functional import categorical_kl, unimix_probs, widened
from wmkit.objectives.terms import Term

Terms = dict[str, Term]
TEACHERS = ("prior", "posterior")


class Spans(NamedTuple):
    """Which records of a window ``[B, T]`` count for what.

    Attributes:
        seen: records that are encoded and decoded.
        arrived: records that a scored transition arrives at.
        within: ``[B, T]`` bool, the record continues an episode: something led to it.
        goes_on: ``[B, T]`` bool, likewise, and its episode goes on after it.
    """

    seen: slice
    arrived: slice
    within: Tensor
    goes_on: Tensor


def normalised_entropy(log_probs: Tensor) -> Tensor:
    """Mean entropy of categoricals ``[*B, G, C]`` as a share of ``ln C``; ``[*B]``.

    >>> normalised_entropy(torch.zeros(1, 2, 4).log_softmax(-1))
    tensor([1.])
    """
    return -(log_probs.exp() * log_probs).sum(-1).mean(-1) / math.log(log_probs.shape[-1])


def entropy_hinge(entropy: Tensor, threshold: float) -> Tensor:
    """How far a mean entropy, as a share of the largest one, lies below a threshold; no gradient above it.

    >>> entropy_hinge(torch.tensor([0.05, 0.2]), 0.1)
    tensor([0.0500, 0.0000])
    """
    return torch.relu(threshold - entropy)


class CrossEntropyLatents(nn.Module):
    """TWM's three terms (arXiv:2303.07109, eq. 3-5, as its code has them).

    * ``state``: the prior learns the whole posterior of the next observation, ``-sg(q) log p``, where its
      episode goes on;
    * ``consistency``: the posterior is drawn to what was expected, ``-sg(p) log q``: the prior is the
      teacher, unlike in the paper's text, whose order is ``-q log sg(p)``;
    * ``entropy``: a hinge on the batch's mean normalised entropy.

    Args:
        threshold: Γ of the hinge, a share of the largest entropy.
        mask_resets: leave out of ``consistency`` what the model expected before an episode began. The
            released code does not: false there.
        teacher: of ``consistency``, whose probabilities weigh the other's logarithms: ``prior``, or
            ``posterior`` for the paper's order. Either way the posterior alone has the gradient.

    Raises:
        ConfigError: another teacher.

    >>> logits, flag = torch.zeros(1, 3, 2, 4), torch.ones(1, 3, dtype=torch.bool)
    >>> spans = Spans(slice(1, 2), slice(2, 3), flag, flag)
    >>> representation, dynamics = CrossEntropyLatents()(logits, logits, spans)
    >>> round(dynamics["state"].mean.item() / math.log(4), 6)
    2.0
    """

    terms = ("entropy", "consistency", "state")

    def __init__(self, threshold: float = 0.1, mask_resets: bool = True, teacher: str = "prior") -> None:
        super().__init__()
        if teacher not in TEACHERS:
            raise ConfigError(
                f"teacher {teacher!r} is unknown: wanted one of {', '.join(TEACHERS)}; correct the option"
            )
        self.threshold, self.mask_resets, self.teacher = threshold, mask_resets, teacher

    def forward(self, posterior_logits: Tensor, prior_logits: Tensor, spans: Spans) -> tuple[Terms, Terms]:
        """Logits ``[B, T, G, C]`` to terms of the representation and of the dynamics."""
        posterior = widened(posterior_logits).log_softmax(-1)
        prior = widened(prior_logits).log_softmax(-1)
        seen, arrived = spans.seen, spans.arrived
        state = _cross_entropy(posterior[:, arrived].detach(), prior[:, arrived])
        pair = prior[:, seen].detach(), posterior[:, seen]
        consistency = _cross_entropy(*(pair if self.teacher == "prior" else pair[::-1]))
        entropy = normalised_entropy(posterior[:, seen]).mean()
        representation = {
            "entropy": Term(entropy_hinge(entropy, self.threshold)),
            "consistency": Term(consistency, spans.within[:, seen] if self.mask_resets else None),
        }
        return representation, {"state": Term(state, spans.goes_on[:, arrived])}


class MeanFreeBits(nn.Module):
    """STORM's two KL terms (arXiv:2310.09615, eq. 5): free nats on the mean over the batch.

    Once the mean is below them no position has a gradient, unlike DreamerV3's, which are free one by one.

    Args:
        free_nats: below this mean a term has no gradient.
        unimix: share of the uniform in both distributions.

    >>> logits, flag = torch.zeros(1, 3, 2, 4), torch.ones(1, 3, dtype=torch.bool)
    >>> _, dynamics = MeanFreeBits()(logits, logits, Spans(slice(0, 2), slice(1, 3), flag, flag))
    >>> dynamics["kl_dynamics"].value
    tensor(1.)
    """

    terms = ("kl_representation", "kl_dynamics")

    def __init__(self, free_nats: float = 1.0, unimix: float = 0.01) -> None:
        super().__init__()
        check_range("kl.unimix", unimix, 0, 1, open_end=True)
        self.free_nats, self.unimix = free_nats, unimix

    def forward(self, posterior_logits: Tensor, prior_logits: Tensor, spans: Spans) -> tuple[Terms, Terms]:
        """Logits ``[B, T, G, C]`` to terms of the representation and of the dynamics."""
        posterior = unimix_probs(posterior_logits[:, spans.arrived], self.unimix)
        prior = unimix_probs(prior_logits[:, spans.arrived], self.unimix)
        dynamics = categorical_kl(posterior.detach(), prior).mean().clamp(min=self.free_nats)
        representation = categorical_kl(posterior, prior.detach()).mean().clamp(min=self.free_nats)
        return {"kl_representation": Term(representation)}, {"kl_dynamics": Term(dynamics)}


def _cross_entropy(teacher: Tensor, student: Tensor) -> Tensor:
    """``-teacher log student`` of log-probabilities ``[*B, G, C]``, summed over groups; ``[*B]``."""
    return -(teacher.exp() * student).sum((-2, -1))
