"""Recurrent state-space model: any sequence model with a filtering posterior.

DreamerV3 (arXiv:2301.04104, eq. 3)::

    u_t = f(u_{t-1}, [z_{t-1}, a_{t-1}])     z_t ~ q(z | u_t, o_t)     ẑ_t ~ p(z | u_t)

Encoder, prior and heads run once over a whole window; only f and q are looped over time,
and what in them does not depend on the carry is computed before the loop. The posterior reads u_t,
so that any backbone goes step by step here, a transformer with its memory: the parallel ``scan``
is for posteriors that see the observation alone.

==================  ==============  ========================================
option              2023            since 2024 (danijar/dreamerv3 e3f0224)
==================  ==============  ========================================
``backbone``        ``ln_gru``      ``block_gru``
``style``           ``STYLE_2023``  ``STYLE_2024``
``joint_input``     true            false
``prior_layers``    1               2
``initial_state``   ``"mode"``      ``"zeros"``
==================  ==============  ========================================

DreamerV1 and V2 are as 2023 with zeros for a start, a cell of their own and, V1, a Gaussian ``latent``.

Both clip actions; it changes nothing for one-hot ones and is therefore an option.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from wmkit.backbones import SequenceModel, carry_width, flatten_carry, unflatten_carry
from wmkit.dynamics import filter_loop
from wmkit.dynamics.inputs import CutLayer, JointInput, SplitInput, Transition
from wmkit.dynamics.latent import Latent, Observed
from wmkit.errors import ConfigError
from wmkit.functional import rounded
from wmkit.nn import (
    MLP,
    STYLE_2023,
    CategoricalLatent,
    DenseNormAct,
    GaussianLatent,
    LayerStyle,
    Linear,
    init_output,
    kept,
    loop_weights,
)


class RSSM(nn.Module):
    """World-model dynamics with a filtering posterior; latents are categorical unless others are given.

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
        latent: what a state is made of instead of such categoricals (:mod:`wmkit.nn.distributions.latents`).
        style: of every layer here; the backbone has its own.
        joint_input: one layer over state and action together; otherwise one over each, side by side
            (the backbone's input is then ``2 * hidden`` wide).
        clip_action: divide entries of actions by their magnitude where it is above one, as
            constants: ``a / sg(max(1, |a|))``.
        initial_state: state of a rollout that has seen nothing, also after a reset: ``"mode"`` of the prior
            or ``"zeros"``.

    Raises:
        ConfigError: an unknown ``initial_state``.

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
        latent: CategoricalLatent | GaussianLatent | None = None,
        style: LayerStyle = STYLE_2023,
        joint_input: bool = True,
        clip_action: bool = False,
        initial_state: Literal["mode", "zeros"] = "mode",
    ) -> None:
        super().__init__()
        if initial_state not in ("mode", "zeros"):
            raise ConfigError(
                f"initial_state is {initial_state!r}: wanted mode or zeros; correct initial_state"
            )
        self.latent = CategoricalLatent(groups, classes, unimix) if latent is None else latent
        self.action_dim, self.state_dim, self.belief_dim = action_dim, self.latent.state_dim, deter
        self.feature_dim = self.state_dim + deter
        self.clip_action, self.initial_state = clip_action, initial_state

        def logits() -> nn.Linear:
            return init_output(Linear(hidden, self.latent.stats_dim), init=style.init)

        make_input = JointInput if joint_input else SplitInput
        self.input = make_input(self.state_dim, action_dim, hidden, style)
        self.backbone: Any = backbone(in_dim=self.input.out_dim, out_dim=deter)
        self.prior = nn.Sequential(*MLP(deter, hidden, prior_layers, style), logits())
        self.posterior_in = DenseNormAct(deter + embed_dim, hidden, style)
        self.posterior_out = nn.Sequential(*MLP(hidden, hidden, posterior_layers - 1, style), logits())

    # -- starting ------------------------------------------------------------------------

    def initial(self, batch: int) -> Latent:
        """Latent of ``batch`` rollouts that have seen nothing."""
        carry = self.backbone.initial(1)
        belief = self.backbone.output(carry)
        if self.initial_state == "zeros":
            state, index = belief.new_zeros(1, self.state_dim), None
        else:
            state, index = self.latent.mode(self.prior_logits(belief))
        latent = Latent(state, belief, belief if self.backbone.carry_is_output else carry, index)
        return latent.map(lambda x: x.expand(batch, *x.shape[1:]))

    @property
    def carry_dim(self) -> int:
        """Numbers in a row of :meth:`packed`; none where the belief is all there is to carry."""
        return 0 if self.backbone.carry_is_output else carry_width(self.backbone.initial(1))

    def packed(self, latent: Latent) -> Tensor:
        """What the backbone carries, ``[B, carry_dim]``, for :meth:`resume`."""
        return flatten_carry(latent.carry) if self.carry_dim else latent.belief[:, :0]

    def resume(self, state: Tensor, belief: Tensor, carry: Tensor | None = None) -> Latent:
        """Latent from a stored state and belief.

        Args:
            state: ``[B, G*C]``.
            belief: ``[B, U]``.
            carry: ``[B, carry_dim]``, see :meth:`packed`. Without it a backbone whose carry is more than
                its output remembers nothing from before: the rollout goes on from the state alone.
        """
        if self.backbone.carry_is_output:
            return Latent(state, belief, belief)
        if carry is None:
            return Latent(state, belief, self.backbone.initial(belief.shape[0]))
        return Latent(state, belief, unflatten_carry(carry, self.backbone.initial(1)))

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """The chance that ``lead`` samples of a state take, for :meth:`step` and :meth:`sample`."""
        return self.latent.noise(*lead, device=device)

    # -- one step ------------------------------------------------------------------------

    def step(
        self, latent: Latent, action: Tensor, noise: Tensor | None = None, *, one_hot: bool = False
    ) -> Latent:
        """Imagine one step: ``action [B, A]`` from ``latent`` to a sample of the prior.

        Args:
            latent: where the step starts.
            action: ``[B, A]`` float.
            noise: of :meth:`noise`, ``[B, ...]``; drawn here if not given.
            one_hot: promises that every action is; what they add is then looked up in a table.
        """
        learns = torch.is_grad_enabled()
        bound = ("transition", id(self), learns)
        transition = kept(lambda: bound, self, lambda: self.input.bind(self.backbone))
        if one_hot and not learns:
            table = kept(
                lambda: ("actions", id(self)),
                self,
                lambda: transition.ahead(
                    torch.eye(action.shape[-1], dtype=action.dtype, device=action.device)
                ),
            )
            ahead = table.index_select(0, action.argmax(-1))
        else:
            ahead = transition.ahead(self._clipped(action))
        belief, carry = self._carried(
            *transition.step(latent.state, latent.classes, latent.carry, None, ahead)
        )
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
        noise = self.noise(*embed.shape[:-1], device=embed.device)
        loop = self._bind()
        action_in = loop.transition.ahead(self._action(previous_action, is_init))
        return self._filter(loop, latent, action_in, loop.posterior.ahead(embed), is_init, noise)

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
        if filter_loop.applies(self):
            return self._observe_at_once(embed, previous_action, is_init, latent)
        loop = self._bind()
        action_in = loop.transition.ahead(self._action(previous_action, is_init))  # [B, T, ...]
        embed_in = loop.posterior.ahead(embed)  # [B, T, H]
        noise = self.noise(*embed.shape[:2], device=embed.device)
        latents, logits = [], []
        per_step = zip(
            action_in.unbind(1), embed_in.unbind(1), is_init.unbind(1), noise.unbind(1), strict=True
        )
        with loop_weights(self.input, self.backbone, self.posterior_out):
            for action_t, embed_t, init_t, noise_t in per_step:
                latent, logits_t = self._filter(loop, latent, action_t, embed_t, init_t, noise_t)
                latents.append(latent)
                logits.append(logits_t)
        stacked = _stack(latents)
        return Observed(stacked, torch.stack(logits, 1), self.prior_logits(stacked.belief))

    def _observe_at_once(
        self, embed: Tensor, previous_action: Tensor, is_init: Tensor, latent: Latent
    ) -> Observed:
        """:meth:`observe` by :mod:`wmkit.dynamics.filter_loop`."""
        noise = self.noise(*embed.shape[:2], device=embed.device)
        action = self._action(previous_action, is_init)
        seen = filter_loop.run(self, embed, action, is_init, latent.state, latent.carry, noise)
        stacked = Latent(seen.states, seen.beliefs, seen.beliefs, seen.classes)
        return Observed(stacked, seen.logits, self.prior_logits(seen.beliefs))

    # -- pieces --------------------------------------------------------------------------

    def prior_logits(self, belief: Tensor) -> Tensor:
        """``[*B, U] -> [*B, G, C]``: the latent's statistics, logits unless it is Gaussian."""
        return self.latent.statistics(self.prior(belief))

    def sample(self, logits: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Sample ``[*B, G*C]`` of statistics ``[*B, G, C]``, and its classes ``[*B, G]`` if it has any."""
        if noise is None:
            noise = self.noise(*logits.shape[:-2], device=logits.device)
        return self.latent.sample(logits, noise)

    def _bind(self) -> _Loop:
        transition = self.input.bind(self.backbone)
        return _Loop(transition, CutLayer.of(self.posterior_in, self.belief_dim), self.initial(1).state)

    def _filter(
        self,
        loop: _Loop,
        latent: Latent,
        action_in: Tensor,
        embed_in: Tensor,
        is_init: Tensor,
        noise: Tensor,
    ) -> tuple[Latent, Tensor]:
        state = torch.where(is_init.unsqueeze(-1), loop.start, latent.state)
        belief, carry = self._carried(*loop.transition.step(state, None, latent.carry, is_init, action_in))
        hidden = loop.posterior.finish(belief, embed_in)
        logits = self.latent.statistics(self.posterior_out(hidden))
        state, index = self.sample(logits, noise)
        return Latent(state, belief, carry, index), logits

    def _carried(self, belief: Tensor, carry: Any) -> tuple[Tensor, Any]:
        """Under autocast the belief is carried, and stored, in the precision that is computed in."""
        belief = rounded(belief)
        return belief, belief if self.backbone.carry_is_output else carry

    def _action(self, action: Tensor, is_init: Tensor) -> Tensor:
        """What the transition reads: no action where an episode starts."""
        return self._clipped(action.masked_fill(is_init.unsqueeze(-1), 0))

    def _clipped(self, action: Tensor) -> Tensor:
        return action / action.detach().abs().clamp(min=1) if self.clip_action else action


class _Loop(NamedTuple):
    """What a loop over time needs besides its inputs, made once."""

    transition: Transition
    posterior: CutLayer
    start: Tensor  # [1, G*C], state after a reset


def _stack(latents: list[Latent]) -> Latent:
    """Latents of T steps to one with leaves ``[B, T, ...]``."""
    first = latents[0]
    belief = torch.stack([x.belief for x in latents], 1)
    carry = belief
    if first.carry is not first.belief:
        carry = tree_map(lambda *parts: torch.stack(parts, 1), *(x.carry for x in latents))
    known = [x.classes for x in latents if x.classes is not None]
    index = torch.stack(known, 1) if known else None
    return Latent(torch.stack([x.state for x in latents], 1), belief, carry, index)
