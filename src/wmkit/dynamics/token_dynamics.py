"""Token dynamics: any sequence model with a myopic posterior and a token layout.

TWM (arXiv:2303.07109, section 2), STORM (arXiv:2310.09615, section 3.2) and TransDreamer (arXiv:2202.09481)::

    z_t ~ q(z | o_t)      u_t = f(..., tokens(r_t, z_t, a_t))      ẑ_{t+1} ~ p(z | u_t)

The posterior looks at one observation alone, so a whole window is encoded at once and the
sequence model runs over all its tokens in parallel. As everywhere, index t of a window holds
the belief on arriving at ``o_t``: u_{t-1}, which has consumed ``(z_{t-1}, a_{t-1})``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.backbones import Carry, SequenceModel, carry_width, flatten_carry, unflatten_carry
from wmkit.dynamics.dynamics import Dynamics, Latent, Observed, Record
from wmkit.dynamics.tokens import RecentSteps, Steps, TokenLayout
from wmkit.nn import CategoricalLatent


class TokenCarry(NamedTuple):
    """What token dynamics need to go on from a step whose own tokens are not consumed yet.

    Attributes:
        memory: carry of the sequence model; ``None`` before its first token.
        arrival: ``[B, 1]`` what was received on arriving here, in the layout's units.
        is_init: ``[B]`` bool, what was before is to be forgotten.
    """

    memory: Carry
    arrival: Tensor
    is_init: Tensor


class Represented(NamedTuple):
    """Posterior of observations without their history.

    Attributes:
        logits: ``[*B, G, C]`` statistics.
        state: ``[*B, S]`` a sample.
        classes: ``[*B, G]`` int64, of its categoricals if it has any.
    """

    logits: Tensor
    state: Tensor
    classes: Tensor | None


class TokenDynamics(Dynamics):
    """World-model dynamics with a myopic posterior over a sequence model that reads tokens.

    Args:
        action_dim: width A of an action.
        embed_dim: width E of an embedding.
        backbone: called as ``backbone(in_dim=..., out_dim=...)``, gives the sequence model.
        tokens: called as ``tokens(state_dim, action_dim, width)``, gives the layout.
        deter: width U of the belief; null is that of a token.
        width: of a token; ``deter`` if not given.
        groups: categoricals G in a state.
        classes: classes C of each.
        posterior: called as ``posterior(embed_dim, N)``, gives the N numbers of q's statistics.
        prior: called as ``prior(deter, N)``, gives those of p.
        unimix: share of the uniform in every categorical.
        latent: what a state is made of instead of such categoricals (:mod:`wmkit.nn`).
        state_gradient: whether the sequence model's gradient reaches the posterior through the tokens
            (STORM) or states are constants to it (TWM).
        separate_episodes: whether an episode sees nothing of the one before it; the released STORM lets
            attention cross.
        acting_window: act on the last so many steps, run through the sequence model anew each time (STORM);
            its own memory goes from step to step if not given.
        in_keys: of embedding, previous action, ``is_init`` and the layout's conditions.
        out_keys: of state, belief, posterior and prior.

    >>> from functools import partial
    >>> from wmkit import backbones
    >>> from wmkit.dynamics import LateRewardTokens
    >>> from wmkit.nn import MLP
    >>> head = partial(MLP, layers=0)
    >>> gru = partial(backbones.build, "gru")
    >>> dynamics = TokenDynamics(3, 7, backbone=gru, tokens=LateRewardTokens, deter=16, groups=4, classes=5,
    ...                          posterior=head, prior=head)
    >>> record = {"previous_action": torch.zeros(2, 6, 3), "reward": torch.zeros(2, 6, 1),
    ...           "is_init": torch.zeros(2, 6, dtype=torch.bool)}
    >>> seen = dynamics.observe(torch.zeros(2, 6, 7), record)
    >>> seen.latent.state.shape, seen.latent.belief.shape
    (torch.Size([2, 6, 20]), torch.Size([2, 6, 16]))
    """

    myopic, resumable = True, False
    tokens: Any

    def __init__(
        self,
        action_dim: int,
        embed_dim: int,
        *,
        backbone: Callable[..., SequenceModel],
        tokens: Callable[..., TokenLayout],
        deter: int | None,
        width: int | None = None,
        groups: int = 32,
        classes: int = 32,
        posterior: Callable[..., nn.Module],
        prior: Callable[..., nn.Module],
        unimix: float = 0.0,
        latent: Any = None,
        state_gradient: bool = False,
        separate_episodes: bool = True,
        acting_window: int | None = None,
        in_keys: Iterable[NestedKey] | None = None,
        out_keys: Iterable[NestedKey] | None = None,
    ) -> None:
        super().__init__()
        self.latent = CategoricalLatent(groups, classes, unimix) if latent is None else latent
        self.action_dim, self.state_dim = action_dim, self.latent.state_dim
        self.state_gradient, self.separate_episodes = state_gradient, separate_episodes
        self.posterior = posterior(embed_dim, self.latent.stats_dim)
        self.tokens = tokens(self.state_dim, action_dim, deter if width is None else width)
        self.belief_dim = deter = self.tokens.width if deter is None else deter
        self.conditions = self.tokens.conditions
        self.backbone: Any = backbone(in_dim=self.tokens.width, out_dim=deter)
        self.prior = prior(deter, self.prior_dim)
        self._batchwise = any(
            isinstance(part, nn.modules.batchnorm._NormBase) for part in self.prior.modules()
        )
        self.recent: RecentSteps | None = None
        if acting_window is not None:
            check_range("acting_window", acting_window, 1)
            self.recent = RecentSteps(acting_window, self.latent, action_dim)
        self.name_keys(in_keys, out_keys)

    @property
    def prior_dim(self) -> int:
        """Numbers that the prior predicts from a belief."""
        return self.latent.stats_dim

    # -- a window ------------------------------------------------------------------------

    def observe(
        self,
        embed: Tensor,
        record: Record,
        latent: Latent | None = None,
        represented: Represented | None = None,
    ) -> Observed:
        """Encode a window ``[B, T]`` and run the sequence model over it.

        Args:
            embed: ``[B, T, E]``.
            record: leaves ``[B, T, ...]``.
            latent: state before the window; with a carry its own step comes first.
            represented: of these embeddings, where that is known already.

        Returns:
            Beliefs are zero at index 0 of a window that nothing went before; where an episode starts they are
            still about the one before.
        """
        self.check_window(embed, record, latent)
        seen = self.represent(embed) if represented is None else represented
        visible = seen.state if self.state_gradient else seen.state.detach()
        steps = self._steps(visible, seen.classes, record)
        before, here = steps.map(lambda x: x[:, :-1]), steps.map(lambda x: x[:, -1])
        start = None if latent is None else latent.carry
        if latent is not None and start is not None:
            first = _one_step(latent, start, record["previous_action"][:, 0])
            before = Steps(
                *(
                    None if a is None or b is None else torch.cat([a, b], 1)
                    for a, b in zip(first, before, strict=True)
                )  # type: ignore[arg-type]
            )
        memory = None if start is None else start.memory
        belief = visible.new_zeros(len(visible), 0, self.belief_dim)
        if before.action.shape[1]:
            belief, memory = self.advance(before, memory)
        prior = self._counted(belief) if start is None and self._batchwise else None
        if start is None:
            belief = torch.nn.functional.pad(belief, (0, 0, 1, 0))  # [B, T, U]
        last = Latent(here.state, belief[:, -1], TokenCarry(memory, here.arrival, here.is_init), here.classes)
        latents = Latent(seen.state, belief, None, seen.classes)
        return Observed(latents, seen.logits, self.prior_logits(belief) if prior is None else prior, last)

    def represent(self, embed: Tensor) -> Represented:
        """Posterior of ``embed [*B, E]``, and a sample of it."""
        logits = self.posterior_logits(embed)
        return Represented(logits, *self.sample(logits))

    def remember(self, latent: Latent, record: Record) -> Latent:
        """State to go on from after records whose states are known.

        Args:
            latent: of ``c + 1`` records, leaves ``[N, c+1, ...]``; the last is where to go on.
            record: leaves ``[N, c+1, ...]``.
        """
        steps = self._steps(latent.state, latent.classes, record)
        here, memory = steps.map(lambda x: x[:, -1]), None
        belief = here.state.new_zeros(len(here.state), self.belief_dim)
        if steps.state.shape[1] > 1:
            beliefs, memory = self.advance(steps.map(lambda x: x[:, :-1]), None)
            belief = beliefs[:, -1]
        return Latent(here.state, belief, TokenCarry(memory, here.arrival, here.is_init), here.classes)

    def advance(
        self, steps: Steps, memory: Carry | None, loop: Any = None, separate: bool | None = None
    ) -> tuple[Tensor, Carry]:
        """Consume ``n`` time steps.

        Args:
            steps: leaves ``[B, n, ...]``.
            memory: of the sequence model; ``None`` before the first step, whose late tokens are left out.
            loop: the sequence model made ready for a loop, see :meth:`bind`.
            separate: whether ``is_init`` cuts off what was before; ``separate_episodes`` if not given.

        Returns:
            Beliefs ``[B, n, U]`` after each step, and the memory.
        """
        layout = self.tokens
        x = layout(steps)  # [B, n, k, D]
        reset = torch.zeros(x.shape[:3], dtype=torch.bool, device=x.device)
        if self.separate_episodes if separate is None else separate:
            reset[:, :, layout.late] = steps.is_init
        x, reset = x.flatten(1, 2), reset.flatten(1)
        skip = layout.late if memory is None else 0
        x, reset = x[:, skip:], reset[:, skip:]
        read = slice(layout.per_step - 1 - skip, None, layout.per_step)
        return (loop or self.backbone).scan(x, memory, reset, read)

    # -- one step ------------------------------------------------------------------------

    def initial(self, batch: int) -> Latent:
        """Zeros: nothing was seen or consumed."""
        like = next(self.parameters())
        return Latent(like.new_zeros(batch, self.state_dim), like.new_zeros(batch, self.belief_dim))

    def filter(self, latent: Latent, embed: Tensor, record: Record) -> Latent:
        """Take in one observation while acting; where an episode starts the belief is zero."""
        seen, first = self.represent(embed), record["is_init"]
        arrival = self._arrival(record)
        if self.recent is not None:
            recent = self.recent.unpack(latent.carry, record["previous_action"])
            beliefs, _ = self.advance(self.recent.steps(recent), None, separate=True)
            carry: Any = self.recent.push(recent, seen.state, seen.classes, arrival, first)
            belief = beliefs[:, -1]
        elif latent.carry is None:
            belief = embed.new_zeros(len(embed), self.belief_dim)
            carry = TokenCarry(None, arrival, first)
        else:
            steps = _one_step(latent, latent.carry, record["previous_action"])
            beliefs, memory = self.advance(steps, latent.carry.memory, separate=True)
            belief, carry = beliefs[:, -1], TokenCarry(memory, arrival, first)
        return Latent(seen.state, belief.masked_fill(first.unsqueeze(-1), 0), carry, seen.classes)

    def bind(self, *, one_hot: bool = False) -> _TokenSteps:
        """See :meth:`Dynamics.bind`."""
        return _TokenSteps(self, self.backbone.bind(tokens=self.tokens.per_step))

    def believe(self, latent: Latent, action: Tensor) -> Tensor:
        """The belief ``[B, U]`` after ``action [B, A]`` was chosen at a latent: what a step's prior reads."""
        return self.consumed(latent, action)[0]

    def consumed(self, latent: Latent, action: Tensor, loop: Any = None) -> tuple[Tensor, Carry]:
        """:meth:`believe`, and the memory after it."""
        nothing = torch.zeros_like(action[:, :1])
        carry = latent.carry or TokenCarry(None, nothing, nothing[:, 0] > 0)
        beliefs, memory = self.advance(_one_step(latent, carry, action), carry.memory, loop)
        return beliefs[:, -1], memory

    def told(self, latent: Latent, conditions: Mapping[str, Tensor]) -> Latent:
        """The reward that a world model expects here is part of the next step's tokens."""
        if not self.conditions:
            return latent
        return latent._replace(carry=latent.carry._replace(arrival=conditions["reward"]))

    def restart(self, latent: Latent, mask: Tensor, start: Latent) -> Latent:
        """Other states in rows ``mask [B]``; what was before is cut off with their own tokens."""
        rows, classes = mask.unsqueeze(-1), latent.classes
        if classes is not None and start.classes is not None:
            classes = torch.where(rows, start.classes, classes)
        state = torch.where(rows, start.state, latent.state)
        assert latent.carry is not None
        return Latent(state, latent.belief, latent.carry._replace(is_init=mask), classes)

    # -- what a policy carries -------------------------------------------------------------

    @property
    def pack_shapes(self) -> dict[str, tuple[int, ...]]:
        """The recent steps of an acting window; else :attr:`dream_shapes`."""
        return self.dream_shapes if self.recent is None else {"recent_steps": self.recent.shape}

    @property
    def dream_shapes(self) -> dict[str, tuple[int, ...]]:
        """State, belief and ``carry``."""
        width = carry_width(self._carry_like(1))
        return {"state": (self.state_dim,), "belief": (self.belief_dim,), "carry": (width,)}

    def pack(self, latent: Latent) -> dict[str, Tensor]:
        """See :meth:`Dynamics.pack`; the recent steps of a latent that :meth:`filter` gave with a window."""
        if isinstance(latent.carry, Tensor):
            return {"recent_steps": latent.carry}
        carry, rows = latent.carry, len(latent.state)
        if carry is None or carry.memory is None:  # nothing was before: late tokens are not to be seen
            empty = self._carry_like(rows)
            arrival = empty.arrival if carry is None else carry.arrival
            carry = TokenCarry(empty.memory, arrival, torch.ones_like(empty.is_init))
        return {"state": latent.state, "belief": latent.belief, "carry": flatten_carry(carry)}

    def unpack(self, tensors: Mapping[str, Tensor]) -> Latent:
        """See :meth:`Dynamics.unpack`; a state alone is a start without a memory."""
        if "recent_steps" in tensors:
            recent = tensors["recent_steps"]
            return self.initial(len(recent))._replace(carry=recent)
        state, carry = tensors["state"].float(), None
        belief = tensors.get("belief", state.new_zeros(len(state), self.belief_dim))
        if "carry" in tensors:
            carry = unflatten_carry(tensors["carry"], self._carry_like(1))
        return Latent(state, belief.float(), carry, self.latent.classes_of(state))

    def _carry_like(self, batch: int) -> TokenCarry:
        nothing = self.initial(batch).belief[:, :1]
        return TokenCarry(self.backbone.initial(batch), nothing, nothing[:, 0] > 0)

    # -- pieces --------------------------------------------------------------------------

    def posterior_logits(self, embed: Tensor) -> Tensor:
        """``[*B, E] -> [*B, G, C]``."""
        return self.latent.statistics(self.posterior(embed))

    def prior_logits(self, belief: Tensor) -> Tensor:
        """``[*B, U] -> [*B, G, C]``."""
        return self.latent.statistics(self.prior(belief))

    def _counted(self, belief: Tensor) -> Tensor:
        """What beliefs ``[B, T-1, U]`` expect, behind zeros, which no batch's statistics are to count."""
        nothing = self.latent.statistics(belief.new_zeros(len(belief), 1, self.latent.stats_dim))
        return torch.cat([nothing, self.prior_logits(belief)], 1) if belief.shape[1] else nothing

    def _arrival(self, record: Record) -> Tensor:
        if not self.conditions:
            return torch.zeros_like(record["previous_action"][..., :1])
        return self.tokens.arrival(record["reward"])

    def _steps(self, state: Tensor, classes: Tensor | None, record: Record) -> Steps:
        """Steps of a window of records; the last one's action is not known and not to be read."""
        action = record["previous_action"].roll(-1, 1)
        return Steps(state, classes, action, self._arrival(record), record["is_init"])


class _TokenSteps(NamedTuple):
    """What a loop over imagined steps needs."""

    dynamics: TokenDynamics
    loop: Any

    def step(
        self, latent: Latent, action: Tensor, option: Tensor | None = None, noise: Tensor | None = None
    ) -> Latent:
        """See :meth:`Dynamics.step`."""
        assert option is None, "token dynamics alone have no options: wrap them in LongShortRSSM"
        dynamics, nothing = self.dynamics, torch.zeros_like(action[:, :1])
        belief, memory = dynamics.consumed(latent, action, self.loop)
        state, classes = dynamics.sample(dynamics.prior_logits(belief), noise)
        return Latent(state, belief, TokenCarry(memory, nothing, nothing[:, 0] > 0), classes)


def _one_step(latent: Latent, carry: TokenCarry, action: Tensor) -> Steps:
    """A latent and the action chosen there as a step ``[B, 1, ...]``."""
    parts = Steps(latent.state, latent.classes, action, carry.arrival, carry.is_init)
    return parts.map(lambda x: x.unsqueeze(1))
