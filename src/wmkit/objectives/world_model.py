"""World-model learning: reconstruction, heads and KL over a window, and the long branch.

DreamerV3 of 2023 (arXiv:2301.04104v1, eq. 4-5) for the short branch; LS-Imagine
(arXiv:2410.03618, eq. 4-5) for the long one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.dynamics import Latent, WorldModel
from wmkit.dynamics.latent import Observed
from wmkit.functional import categorical_kl, unimix_probs
from wmkit.objectives.long_branch import LongBranch
from wmkit.objectives.terms import Term, check_weights, reduce_terms


class WorldModelOutput(NamedTuple):
    """What one world-model loss yields.

    Attributes:
        loss: scalar to minimise.
        metrics: detached scalars by name.
        observed: posterior over the window.
        starts: states to imagine from, leaves ``[S, ...]``, detached.
        start_mask: ``[S, 1]`` bool, which of them are real.
        start_continuation: ``[S, 1]`` float, one where the episode goes on after the start.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    observed: Observed
    starts: Latent
    start_mask: Tensor
    start_continuation: Tensor


class KLBalance(nn.Module):
    """The two KL terms of DreamerV3, each with free nats on the sum over categoricals.

    Args:
        free_nats: below this a term has no gradient.
        unimix: share of the uniform in both distributions.

    >>> p, q = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)
    >>> KLBalance()(p, q)["kl_dynamics"].value
    tensor([1.])
    """

    terms = ("kl_dynamics", "kl_representation")

    def __init__(self, free_nats: float = 1.0, unimix: float = 0.01) -> None:
        super().__init__()
        check_range("kl.unimix", unimix, 0, 1, open_end=True)
        self.free_nats, self.unimix = free_nats, unimix

    def forward(self, posterior_logits: Tensor, prior_logits: Tensor) -> dict[str, Term]:
        """``kl_dynamics`` trains the prior, ``kl_representation`` the posterior; ``[*B]`` each."""
        posterior = unimix_probs(posterior_logits, self.unimix)
        prior = unimix_probs(prior_logits, self.unimix)
        dynamics = categorical_kl(posterior.detach(), prior)
        representation = categorical_kl(posterior, prior.detach())
        return {
            "kl_dynamics": Term(dynamics.clamp(min=self.free_nats)),
            "kl_representation": Term(representation.clamp(min=self.free_nats)),
        }


class WorldModelLoss(nn.Module):
    """Loss of a world model on a batch of sequences.

    Args:
        weights: one per term: the decoder's keys, the heads' names, the two KLs, and the
            long branch's terms if there is one.
        kl: the KL terms: :class:`KLBalance`, or another's with the same call.
        long_branch: the jumpy branch of LS-Imagine; none for ordinary systems.
        last_start: imagine from the last step of a window as well (not in DreamerV1 with a discount head).
    """

    def __init__(
        self,
        *,
        weights: Mapping[str, float],
        kl: Any,
        long_branch: LongBranch | None = None,
        last_start: bool = True,
    ) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.kl = kl
        self.long_branch = long_branch
        self.last_start = last_start

    def terms(self, world_model: WorldModel) -> tuple[str, ...] | None:
        """Names of the terms of a world model; None where the KL does not say its own."""
        if (kls := getattr(self.kl, "terms", None)) is None:
            return None
        heads: Any = dict(world_model.heads)
        short = (
            *world_model.decoder.targets,
            *(n for n, head in heads.items() if head.reads == "feature"),
            *kls,
        )
        if self.long_branch is None:
            return short
        pairs = (name for name, head in heads.items() if head.reads == "pair")
        return *short, *(f"zoomed_{name}" for name in short), *pairs

    def forward(
        self, world_model: WorldModel, batch: Mapping[str, Tensor], latent: Latent | None = None
    ) -> WorldModelOutput:
        """Score ``batch`` (the sequence layout, ``[B, T, ...]``) starting from ``latent``."""
        observed = world_model.observe(batch, latent)
        terms = head_terms(world_model, observed.latent.feature, batch)
        terms |= self.kl(observed.posterior_logits, observed.prior_logits)
        positions = observed.posterior_logits.shape[0] * observed.posterior_logits.shape[1]
        count: Tensor | float = float(positions)

        starts = observed.latent.map(lambda x: x.flatten(0, 1))
        mask = torch.ones(
            *observed.posterior_logits.shape[:2], 1, dtype=torch.bool, device=starts.state.device
        )
        if not self.last_start:
            mask[:, -1] = False
        mask = mask.flatten(0, 1)
        continuation = 1 - batch["terminated"].float().flatten(0, 1)
        extra: dict[str, Tensor] = {}
        if self.long_branch is not None:
            long = self.long_branch(world_model, starts, batch, self.kl)
            terms |= long.terms
            count = count + long.mask.sum()
            starts = Latent.cat([starts, long.latent])
            mask = torch.cat([mask, long.mask.unsqueeze(-1)])
            continuation = torch.cat([continuation, long.continuation])
            extra = {"zoomed_fraction": long.mask.sum() / positions, "zoomed_dropped": long.dropped}
        check_weights(terms, self.weights)
        loss = reduce_terms(terms, self.weights, count)
        metrics = {f"loss_{name}": term.mean.detach() for name, term in terms.items()}
        metrics |= {"loss_world_model": loss.detach(), **extra}
        return WorldModelOutput(loss, metrics, observed, starts.detach(), mask, continuation)


def head_terms(world_model: WorldModel, features: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Term]:
    """One term ``[*B]`` for every prediction made from ``features`` ``[*B, F]``."""
    labels = world_model.labels(batch)
    return {name: Term(p.loss(labels[name])) for name, p in world_model.predict(features).items()}
