"""World-model learning over token dynamics: an autoencoder and a sequence model, each with its own loss.

TWM (arXiv:2303.07109, section 2) and STORM (arXiv:2310.09615, section 3.2). What a window's records
count for, for TWM's one record of context and one ahead::

    record     0         1 ... T-2         T-1
    encoded    context   seen              target only
    belief     -         expected seen     expected last
    arrived              (from 2 on: transitions whose belief has seen two records or more)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmkit.dynamics.latent import Observed
from wmkit.dynamics.token_world_model import TokenWorldModel
from wmkit.errors import SpecError
from wmkit.objectives.replay_critic import ends
from wmkit.objectives.terms import Term, check_weights
from wmkit.objectives.token_latents import Spans, Terms


class Records(NamedTuple):
    """Encoded records of a window that behaviour learns from, without gradients.

    Attributes:
        classes: ``[B, T', G]`` int64, classes of the states.
        states: ``[B, T', G*C]``.
        beliefs: ``[B, T', U]`` on arriving at each.
        previous_action: ``[B, T', A]``.
        reward: ``[B, T', 1]`` on arriving, in the reward head's units.
        is_init: ``[B, T']`` bool, starts an episode.
        ended: ``[B, T']`` bool, the last of its episode.
    """

    classes: Tensor
    states: Tensor
    beliefs: Tensor
    previous_action: Tensor
    reward: Tensor
    is_init: Tensor
    ended: Tensor


class TokenWorldModelOutput(NamedTuple):
    """What one token world-model loss yields.

    Attributes:
        representation: scalar; reaches encoder, posterior and decoder.
        dynamics: scalar; reaches sequence model and heads and, where the states let it, what made them.
        metrics: detached scalars by name.
        observed: posterior over the window.
        records: what behaviour learns from.
    """

    representation: Tensor
    dynamics: Tensor
    metrics: dict[str, Tensor]
    observed: Observed
    records: Records


class TokenWorldModelLoss(nn.Module):
    """Loss of a token world model on a batch of sequences; every term is a mean of its own.

    Args:
        weights: one per term: the decoder's keys, the heads' names, and those of ``latents``.
        latents: see :mod:`wmkit.objectives.token_latents`.
        context: leading records that are neither decoded nor arrived at with a loss.
        ahead: last records that are only arrived at.

    >>> loss = TokenWorldModelLoss(weights={}, latents=nn.Identity())
    >>> loss.context, loss.ahead
    (1, 1)
    """

    def __init__(
        self, *, weights: Mapping[str, float], latents: nn.Module, context: int = 1, ahead: int = 1
    ) -> None:
        super().__init__()
        self.weights, self.latents = dict(weights), latents
        self.context, self.ahead = context, ahead

    @property
    def shortest(self) -> int:
        """Records that a window must have: context, one, and those ahead."""
        return self.context + self.ahead + 1

    def terms(self, world_model: TokenWorldModel) -> tuple[str, ...] | None:
        """Names of the terms of a world model; None where the latents do not say their own."""
        latents = getattr(self.latents, "terms", None)
        return None if latents is None else (*world_model.decoder.targets, *latents, *world_model.heads)

    def forward(self, world_model: TokenWorldModel, batch: Mapping[str, Tensor]) -> TokenWorldModelOutput:
        """Score ``batch``, the sequence layout ``[B, T, ...]`` with frames stacked.

        Raises:
            SpecError: the window is shorter than context, one record and those ahead.
        """
        length = batch["is_init"].shape[1]
        if length < self.shortest:
            raise SpecError(
                f"a window has {length} records: wanted {self.shortest} or more; raise batch.length"
            )
        observed = world_model.observe(batch)
        spans = self.spans(batch)
        latents = observed.posterior_logits, observed.prior_logits
        representation, dynamics = self.latents(*latents, spans)
        representation = self.decoded(world_model, observed, batch, spans) | representation
        arrived = {key: value[:, spans.arrived] for key, value in batch.items()}
        belief = observed.latent.belief[:, spans.arrived]
        head: Any
        for name, head in world_model.heads.items():
            loss = head(belief).loss(head.label(arrived))
            dynamics[name] = Term(loss, spans.within[:, spans.arrived])
        terms = representation | dynamics
        check_weights(terms, self.weights)
        metrics = {f"loss_{name}": term.mean.detach() for name, term in terms.items()}
        total = [
            sum(self.weights[k] * v.mean for k, v in part.items()) for part in (representation, dynamics)
        ]
        representation_loss, dynamics_loss = (torch.as_tensor(x) for x in total)
        metrics["loss_representation"] = representation_loss.detach()
        metrics["loss_dynamics"] = dynamics_loss.detach()
        metrics["loss_world_model"] = metrics["loss_representation"] + metrics["loss_dynamics"]
        records = self.records(world_model, observed, batch)
        return TokenWorldModelOutput(representation_loss, dynamics_loss, metrics, observed, records)

    def autoencoder(self, world_model: TokenWorldModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, Terms]:
        """The representation's loss without the sequence model: decoding, and entropy if it has a term.

        For training the autoencoder alone, before there is anything to be consistent with.
        """
        dynamics, spans = world_model.dynamics, self.spans(batch)
        seen = {key: value[:, spans.seen] for key, value in batch.items()}
        logits = dynamics.posterior_logits(world_model.encoder(seen))  # [B, T', G, C]
        state, _ = dynamics.sample(logits)
        predictions = world_model.decoder(state)
        terms = {key: Term(predictions[key].loss(seen[key])) for key in world_model.decoder.targets}
        if "entropy" in self.weights:
            whole = Spans(slice(None), slice(0), spans.within[:, spans.seen], spans.goes_on[:, spans.seen])
            terms["entropy"] = self.latents(logits, logits.detach(), whole)[0]["entropy"]
        loss = sum(self.weights[name] * term.mean for name, term in terms.items())
        return torch.as_tensor(loss), terms

    def spans(self, batch: Mapping[str, Tensor]) -> Spans:
        """Which records count for what."""
        length = batch["is_init"].shape[1]
        within = ~batch["is_init"].squeeze(-1)
        return Spans(
            slice(self.context, length - self.ahead),
            slice(self.context + 1, length),
            within,
            within & ~ends(batch).squeeze(-1),
        )

    def decoded(
        self, world_model: TokenWorldModel, observed: Observed, batch: Mapping[str, Tensor], spans: Spans
    ) -> Terms:
        """A term for every key that the decoder predicts."""
        predictions = world_model.decoder(observed.latent.state[:, spans.seen])
        return {
            key: Term(predictions[key].loss(batch[key][:, spans.seen])) for key in world_model.decoder.targets
        }

    @torch.no_grad()
    def encoded(
        self, world_model: TokenWorldModel, batch: Mapping[str, Tensor], *, blank: int = 0
    ) -> Records:
        """Records ``[B, T]`` of windows that the model learns nothing from: without dropout or beliefs.

        The last ``blank`` records are not looked at: zeros for states, class 0 throughout.
        """
        dynamics = world_model.dynamics
        length = batch["is_init"].shape[1]
        seen = {key: value[:, : length - blank] for key, value in batch.items()}
        with world_model.evaluating():
            parts = dynamics.sample(dynamics.posterior_logits(world_model.encoder(seen)))
        state, classes = (F.pad(part, (0, 0, 0, blank)) for part in parts)
        nothing = state.new_zeros(*state.shape[:2], dynamics.belief_dim)
        return Records(classes, state, nothing, *_beside(world_model, batch))

    def records(
        self, world_model: TokenWorldModel, observed: Observed, batch: Mapping[str, Tensor]
    ) -> Records:
        """What behaviour learns from: all records but those ahead."""
        latent = observed.latent
        assert latent.classes is not None
        parts = (latent.classes, latent.state, latent.belief, *_beside(world_model, batch))
        keep = latent.classes.shape[1] - self.ahead
        return Records(*(part[:, :keep].detach() for part in parts))


def _beside(
    world_model: TokenWorldModel, batch: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What :class:`Records` keep of a batch as it is."""
    return (
        batch["previous_action"].float(),
        world_model.reward(batch),
        batch["is_init"].squeeze(-1),
        ends(batch).squeeze(-1),
    )
