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

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from tensordict.utils import NestedKey
from torch import Tensor

from wmkit import fast
from wmkit.backbones import SequenceModel, carry_width, flatten_carry, unflatten_carry
from wmkit.dynamics.dynamics import Dynamics, Latent, Observed, Record
from wmkit.dynamics.inputs import CutLayer, JointInput, SplitInput, Transition
from wmkit.errors import ConfigError
from wmkit.fast import filter_loop
from wmkit.functional import rounded
from wmkit.nn import (
    MLP,
    STYLE_2023,
    CategoricalLatent,
    DenseNormAct,
    GaussianLatent,
    LayerStyle,
)


class RSSM(Dynamics):
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
        latent: what a state is made of instead of such categoricals (:mod:`wmkit.nn`).
        style: of every layer here; the backbone has its own.
        joint_input: one layer over state and action together; otherwise one over each, side by side
            (the backbone's input is then ``2 * hidden`` wide).
        clip_action: divide entries of actions by their magnitude where it is above one, as
            constants: ``a / sg(max(1, |a|))``.
        initial_state: state of a rollout that has seen nothing, also after a reset: ``"mode"`` of the prior
            or ``"zeros"``.
        initial_gradient: let the loss reach prior and start through that mode, as if it were its
            log-probabilities (LS-Imagine's code, qiwang067/LS-Imagine b6a9e4c); the JAX original has no such
            gradient.
        in_keys: of embedding, previous action and ``is_init``.
        out_keys: of state, belief, posterior and prior.

    Raises:
        ConfigError: an unknown ``initial_state``.

    >>> from functools import partial
    >>> from tensordict import TensorDict
    >>> from wmkit import backbones
    >>> gru = partial(backbones.build, "ln_gru")
    >>> rssm = RSSM(3, 7, backbone=gru, deter=16, groups=4, classes=5, hidden=8)
    >>> latent = rssm.step(rssm.initial(2), torch.zeros(2, 3))
    >>> latent.state.shape, latent.belief.shape
    (torch.Size([2, 20]), torch.Size([2, 16]))
    >>> window = {"embed": torch.zeros(2, 6, 7), "previous_action": torch.zeros(2, 6, 3),
    ...           "is_init": torch.zeros(2, 6, 1, dtype=torch.bool)}
    >>> rssm(TensorDict(window, [2, 6]))["prior_logits"].shape
    torch.Size([2, 6, 4, 5])
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
        initial_gradient: bool = False,
        in_keys: Iterable[NestedKey] | None = None,
        out_keys: Iterable[NestedKey] | None = None,
    ) -> None:
        super().__init__()
        if initial_state not in ("mode", "zeros"):
            raise ConfigError(
                f"initial_state is {initial_state!r}: wanted mode or zeros; correct initial_state"
            )
        self.latent = CategoricalLatent(groups, classes, unimix) if latent is None else latent
        self.action_dim, self.state_dim, self.belief_dim = action_dim, self.latent.state_dim, deter
        self.clip_action, self.initial_state = clip_action, initial_state
        self.initial_gradient = initial_gradient

        layer: dict[str, Any] = {"units": hidden, "style": style}
        make_input = JointInput if joint_input else SplitInput
        self.input = make_input(self.state_dim, action_dim, hidden, style)
        self.backbone: Any = backbone(in_dim=self.input.out_dim, out_dim=deter)
        self.prior = MLP(deter, self.latent.stats_dim, layers=prior_layers, **layer)
        self.posterior_in = DenseNormAct(deter + embed_dim, hidden, style)
        self.posterior_out = MLP(hidden, self.latent.stats_dim, layers=posterior_layers - 1, **layer)
        self.name_keys(in_keys, out_keys)

    # -- starting ------------------------------------------------------------------------

    def initial(self, batch: int) -> Latent:
        """Latent of ``batch`` rollouts that have seen nothing."""
        carry = self.backbone.initial(1)
        belief = self.backbone.output(carry)
        if self.initial_state == "zeros":
            state, index = belief.new_zeros(1, self.state_dim), None
        else:
            state, index = self.latent.mode(self.prior_logits(belief), self.initial_gradient)
        latent = Latent(state, belief, None if self.backbone.carry_is_output else carry, index)
        return latent.map(lambda x: x.expand(batch, *x.shape[1:]))

    @property
    def pack_shapes(self) -> dict[str, tuple[int, ...]]:
        """State and belief and, where the backbone carries more than its output, ``carry``."""
        shapes: dict[str, tuple[int, ...]] = {"state": (self.state_dim,), "belief": (self.belief_dim,)}
        if not self.backbone.carry_is_output:
            shapes["carry"] = (carry_width(self.backbone.initial(1)),)
        return shapes

    def pack(self, latent: Latent) -> dict[str, Tensor]:
        """See :meth:`Dynamics.pack <wmkit.dynamics.Dynamics.pack>`."""
        packed = {"state": latent.state, "belief": latent.belief}
        return packed if latent.carry is None else packed | {"carry": flatten_carry(latent.carry)}

    def unpack(self, tensors: Mapping[str, Tensor]) -> Latent:
        """Latent of ``state [B, S]``, ``belief [B, U]`` and, where there is one, ``carry [B, N]``.

        Without its carry a backbone whose carry is more than its output remembers nothing from before: the
        rollout goes on from the state alone.
        """
        state, belief, carry = tensors["state"].float(), tensors["belief"].float(), None
        if not self.backbone.carry_is_output:
            carry = self.backbone.initial(len(belief))
            if "carry" in tensors:
                carry = unflatten_carry(tensors["carry"], self.backbone.initial(1))
        return Latent(state, belief, carry)

    # -- one step ------------------------------------------------------------------------

    def bind(self, *, one_hot: bool = False) -> _Steps:
        """See :meth:`Dynamics.bind <wmkit.dynamics.Dynamics.bind>`."""
        transition, table = self.input.bind(self.backbone), None
        if one_hot and not torch.is_grad_enabled():
            like = self.posterior_in.linear.weight
            table = transition.ahead(torch.eye(self.action_dim, dtype=like.dtype, device=like.device))
        return _Steps(self, transition, table)

    def filter(self, latent: Latent, embed: Tensor, record: Record) -> Latent:
        """Acting: take in one observation."""
        noise = self.noise(*embed.shape[:-1], device=embed.device)
        loop = self._bind()
        action_in = loop.transition.ahead(self._action(record))
        ahead = loop.posterior.ahead(embed)
        return self._filter(loop, latent, action_in, ahead, record["is_init"], noise)[0]

    # -- a window ------------------------------------------------------------------------

    def observe(self, embed: Tensor, record: Record, latent: Latent | None = None) -> Observed:
        """Filter a window ``[B, T]``: state, belief and action are forgotten where an episode starts."""
        self.check_window(embed, record, latent)
        latent = self.initial(len(embed)) if latent is None else latent
        if filter_loop.applies(self):
            return self._observe_at_once(embed, record, latent)
        loop = self._bind()
        action_in = loop.transition.ahead(self._action(record))  # [B, T, ...]
        embed_in = loop.posterior.ahead(embed)  # [B, T, H]
        noise = self.noise(*embed.shape[:2], device=embed.device)
        latents, logits = [], []
        per_step = (action_in, embed_in, record["is_init"], noise)
        with fast.loop_weights(embed):
            for action_t, embed_t, init_t, noise_t in zip(*(x.unbind(1) for x in per_step), strict=True):
                latent, logits_t = self._filter(loop, latent, action_t, embed_t, init_t, noise_t)
                latents.append(latent)
                logits.append(logits_t)
        stacked = Latent.stack(latents, 1)
        return Observed(stacked, torch.stack(logits, 1), self.prior_logits(stacked.belief), latent)

    def _observe_at_once(self, embed: Tensor, record: Record, latent: Latent) -> Observed:
        """:meth:`observe` by :mod:`wmkit.fast.filter_loop`."""
        noise = self.noise(*embed.shape[:2], device=embed.device)
        action, is_init = self._action(record), record["is_init"]
        seen = filter_loop.run(self, embed, action, is_init, latent.state, latent.belief, noise)
        stacked = Latent(seen.states, seen.beliefs, None, seen.classes)
        last = stacked.map(lambda x: x[:, -1])
        return Observed(stacked, seen.logits, self.prior_logits(seen.beliefs), last)

    # -- pieces --------------------------------------------------------------------------

    def prior_logits(self, belief: Tensor) -> Tensor:
        """``[*B, U] -> [*B, G, C]``: the latent's statistics, logits unless it is Gaussian."""
        return self.latent.statistics(self.prior(belief))

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
        belief, carry = self._moved(loop.transition, state, None, latent, is_init, action_in)
        hidden = loop.posterior.finish(belief, embed_in)
        logits = self.latent.statistics(self.posterior_out(hidden))
        state, index = self.sample(logits, noise)
        return Latent(state, belief, carry, index), logits

    def _moved(
        self,
        transition: Transition,
        state: Tensor,
        classes: Tensor | None,
        latent: Latent,
        is_init: Tensor | None,
        action_in: Tensor,
    ) -> tuple[Tensor, Any]:
        """The next belief, in the precision that is computed in, and what is carried beside it."""
        alone = self.backbone.carry_is_output
        carry = latent.belief if alone else latent.carry
        belief, carry = transition.step(state, classes, carry, is_init, action_in)
        return rounded(belief), None if alone else carry

    def _action(self, record: Record) -> Tensor:
        """What the transition reads: no action where an episode starts."""
        return self._clipped(record["previous_action"].masked_fill(record["is_init"].unsqueeze(-1), 0))

    def _clipped(self, action: Tensor) -> Tensor:
        return action / action.detach().abs().clamp(min=1) if self.clip_action else action


class _Loop(NamedTuple):
    """What a loop over observations needs besides its inputs, made once."""

    transition: Transition
    posterior: CutLayer
    start: Tensor  # [1, G*C], state after a reset


class _Steps(NamedTuple):
    """What a loop over imagined steps needs."""

    rssm: RSSM
    transition: Transition
    table: Tensor | None  # what each one-hot action adds

    def step(
        self, latent: Latent, action: Tensor, option: Tensor | None = None, noise: Tensor | None = None
    ) -> Latent:
        """See :meth:`Dynamics.step <wmkit.dynamics.Dynamics.step>`."""
        assert option is None, "an RSSM alone has no options: wrap it in LongShortRSSM"
        rssm = self.rssm
        if self.table is None:
            ahead = self.transition.ahead(rssm._clipped(action))
        else:
            ahead = self.table.index_select(0, action.argmax(-1))
        belief, carry = rssm._moved(self.transition, latent.state, latent.classes, latent, None, ahead)
        state, index = rssm.sample(rssm.prior_logits(belief), noise)
        return Latent(state, belief, carry, index)
