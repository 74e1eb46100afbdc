"""Recurrent state-space model: any sequence model with a filtering posterior.

DreamerV3 of 2023 (arXiv:2301.04104v1, eq. 3)::

    u_t = f(u_{t-1}, [z_{t-1}, a_{t-1}])     z_t ~ q(z | u_t, o_t)     ẑ_t ~ p(z | u_t)

Encoder, prior and heads run once over a whole window; only f and q are looped over time,
and what in them does not depend on the carry is computed before the loop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from wmkit.backbones import SequenceModel
from wmkit.dynamics.latent import Latent, Observed
from wmkit.functional import sample_index, straight_through, unimix_probs
from wmkit.nn import MLP, DenseNormAct, Feature, init_output


class RSSM(nn.Module):
    """World-model dynamics with categorical latents and a filtering posterior.

    Args:
        action_dim: width A of an action.
        embed_dim: width E of an embedding.
        backbone: called as ``backbone(in_dim=..., out_dim=...)``, gives the sequence model.
        deter: width U of the belief.
        groups: categoricals G in a state.
        classes: classes C of each.
        hidden: width of the layers around the backbone.
        prior_layers: hidden layers of the prior.
        posterior_layers: hidden layers of the posterior.
        unimix: share of the uniform in every categorical.

    >>> from functools import partial
    >>> from wmkit import backbones
    >>> gru = partial(backbones.build, "ln_gru")
    >>> rssm = RSSM(3, 7, backbone=gru, deter=16, groups=4, classes=5, hidden=8)
    >>> latent = rssm.step(rssm.initial(2), torch.zeros(2, 3))
    >>> latent.state.shape, latent.belief.shape
    (torch.Size([2, 20]), torch.Size([2, 16]))
    """

    def __init__(
        self,
        action_dim: int,
        embed_dim: int,
        *,
        backbone: Callable[..., SequenceModel],
        deter: int,
        groups: int = 32,
        classes: int = 32,
        hidden: int,
        prior_layers: int = 1,
        posterior_layers: int = 1,
        unimix: float = 0.01,
    ) -> None:
        super().__init__()
        self.action_dim, self.groups, self.classes, self.unimix = action_dim, groups, classes, unimix
        self.state_dim, self.belief_dim = groups * classes, deter
        self.feature_dim = self.state_dim + deter
        self.input = DenseNormAct(self.state_dim + action_dim, hidden)
        self.backbone = backbone(in_dim=hidden, out_dim=deter)
        self.prior = nn.Sequential(
            *MLP(deter, hidden, prior_layers), init_output(nn.Linear(hidden, self.state_dim))
        )
        self.posterior_in = DenseNormAct(deter + embed_dim, hidden)
        self.posterior_out = nn.Sequential(
            *MLP(hidden, hidden, posterior_layers - 1), init_output(nn.Linear(hidden, self.state_dim))
        )

    # -- starting ------------------------------------------------------------------------

    def initial(self, batch: int) -> Latent:
        """Latent of ``batch`` rollouts that have seen nothing: the mode of the prior."""
        carry = self.backbone.initial(1)
        belief = self.backbone.output(carry)
        index = self.prior_logits(belief).argmax(-1)  # [1, G]
        state = F.one_hot(index, self.classes).to(belief.dtype).flatten(-2)
        latent = Latent(state, belief, belief if self.backbone.carry_is_output else carry, index)
        return latent.map(lambda x: x.expand(batch, *x.shape[1:]))

    def resume(self, state: Tensor, belief: Tensor) -> Latent:
        """Latent from a stored state and belief.

        A backbone whose carry is more than its output starts with an empty carry.
        """
        carry = belief if self.backbone.carry_is_output else self.backbone.initial(belief.shape[0])
        return Latent(state, belief, carry)

    # -- one step ------------------------------------------------------------------------

    def step(self, latent: Latent, action: Tensor, noise: Tensor | None = None) -> Latent:
        """Imagine one step: ``action [B, A]`` from ``latent`` to a sample of the prior.

        Args:
            latent: where the step starts.
            action: ``[B, A]`` float.
            noise: ``[B, G, 1]`` uniforms; drawn here if none are given.
        """
        x = self.input(Feature(latent.state, action, latent.classes))
        reset = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
        belief, carry = self.backbone.step(x, latent.carry, reset)
        state, index = self.sample(self.prior_logits(belief), noise)
        return Latent(state, belief, carry, index)

    def filter(
        self, latent: Latent, previous_action: Tensor, embed: Tensor, is_init: Tensor
    ) -> tuple[Latent, Tensor]:
        """Acting: take in one observation.

        Args:
            latent: state before the observation.
            previous_action: ``[B, A]`` action that led to it.
            embed: ``[B, E]`` its embedding.
            is_init: ``[B]`` bool, the observation starts an episode.

        Returns:
            The posterior latent and its logits ``[B, G, C]``.
        """
        noise = torch.rand(*embed.shape[:-1], self.groups, 1, device=embed.device)
        action_in = self._action_in(previous_action, is_init)
        start = self.initial(1).state
        return self._filter(latent, action_in, self._embed_in(embed), is_init, noise, start)

    # -- a window ------------------------------------------------------------------------

    def observe(self, embed: Tensor, previous_action: Tensor, is_init: Tensor, latent: Latent) -> Observed:
        """Filter a window ``[B, T]``.

        Args:
            embed: ``[B, T, E]`` embeddings of ``o_t``.
            previous_action: ``[B, T, A]`` the action that led to ``o_t``.
            is_init: ``[B, T]`` bool, ``o_t`` starts an episode: state, belief and action of
                the step before are forgotten.
            latent: state before the window.
        """
        action_in = self._action_in(previous_action, is_init)  # [B, T, H]
        embed_in = self._embed_in(embed)  # [B, T, H]
        noise = torch.rand(*embed.shape[:2], self.groups, 1, device=embed.device)
        start = self.initial(1).state
        latents, logits = [], []
        per_step = zip(
            action_in.unbind(1), embed_in.unbind(1), is_init.unbind(1), noise.unbind(1), strict=True
        )
        for action_t, embed_t, init_t, noise_t in per_step:
            latent, logits_t = self._filter(latent, action_t, embed_t, init_t, noise_t, start)
            latents.append(latent)
            logits.append(logits_t)
        stacked = _stack(latents)
        return Observed(stacked, torch.stack(logits, 1), self.prior_logits(stacked.belief))

    # -- pieces --------------------------------------------------------------------------

    def prior_logits(self, belief: Tensor) -> Tensor:
        """``[*B, U] -> [*B, G, C]``."""
        return self.prior(belief).unflatten(-1, (self.groups, self.classes))

    def sample(self, logits: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Straight-through sample ``[*B, G*C]`` of logits ``[*B, G, C]``, and its classes ``[*B, G]``."""
        if noise is None:
            noise = torch.rand(*logits.shape[:-1], 1, device=logits.device)
        probs = unimix_probs(logits, self.unimix)
        index = sample_index(probs.detach(), noise)
        state = torch.zeros_like(probs).scatter_(-1, index.unsqueeze(-1), 1.0)
        if torch.is_grad_enabled():
            state = straight_through(state, probs)
        return state.flatten(-2), index

    def _filter(
        self,
        latent: Latent,
        action_in: Tensor,
        embed_in: Tensor,
        is_init: Tensor,
        noise: Tensor,
        start: Tensor,
    ) -> tuple[Latent, Tensor]:
        state = torch.where(is_init.unsqueeze(-1), start, latent.state)
        state_in = F.linear(state, self.input.linear.weight[:, : self.state_dim])
        x = self.input.finish(state_in + action_in)
        belief, carry = self.backbone.step(x, latent.carry, is_init)
        logits = self._posterior(belief, embed_in)
        state, index = self.sample(logits, noise)
        return Latent(state, belief, carry, index), logits

    def _posterior(self, belief: Tensor, embed_in: Tensor) -> Tensor:
        belief_in = F.linear(belief, self.posterior_in.linear.weight[:, : self.belief_dim])
        hidden = self.posterior_in.finish(belief_in + embed_in)
        return self.posterior_out(hidden).unflatten(-1, (self.groups, self.classes))

    def _action_in(self, action: Tensor, is_init: Tensor) -> Tensor:
        action = action.masked_fill(is_init.unsqueeze(-1), 0)
        return F.linear(action, self.input.linear.weight[:, self.state_dim :])

    def _embed_in(self, embed: Tensor) -> Tensor:
        return F.linear(embed, self.posterior_in.linear.weight[:, self.belief_dim :])


def _stack(latents: list[Latent]) -> Latent:
    """Latents of T steps to one with leaves ``[B, T, ...]``."""
    first = latents[0]
    belief = torch.stack([x.belief for x in latents], 1)
    carry = belief
    if first.carry is not first.belief:
        carry = tree_map(lambda *parts: torch.stack(parts, 1), *(x.carry for x in latents))
    index = torch.stack([x.classes for x in latents if x.classes is not None], 1)
    return Latent(torch.stack([x.state for x in latents], 1), belief, carry, index)
