"""Frame dynamics: a state of several tokens, predicted one after another (IRIS, arXiv:2209.00588).

::

    action a_{t-1}   z_t^1   z_t^2   ...   z_t^G      the tokens of record t, read by the sequence model
        │              │       │
      belief u_{t-1}   │       │
      p(z_t^1)      p(z_t^2) p(z_t^3) ...             the output at a token predicts the next one

The action is a late token: an episode begins after it. What predicts the frame is the belief for its first
token and the outputs at its other tokens, so a window is scored in one pass, and an imagined step draws the G
tokens one after another. The last token of a state is read together with the action that is taken there.

With ``at_once`` the belief predicts all tokens of the frame, independent of each other, as block teacher
forcing has it (Dedieu et al. 2025, arXiv:2502.01591): a step takes two passes instead of G.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.arguments import check_range
from wmkit.backbones import Carry, carry_width, flatten_carry, unflatten_carry
from wmkit.dynamics.dynamics import Latent, Observed, Record, map_carry
from wmkit.dynamics.token_dynamics import Represented, TokenDynamics
from wmkit.dynamics.tokens import Steps
from wmkit.functional import sample_index, widened


class FrameDynamics(TokenDynamics):
    """Token dynamics whose state is drawn token by token.

    The ``carry`` is that of the sequence model, which has read all tokens of the state but the last; ``None``
    where it has read nothing. The ``latent`` is a :class:`~wmkit.nn.CodebookLatent`, ``tokens`` a layout
    whose action comes first (:class:`~wmkit.dynamics.FrameTokens`); the ``prior`` predicts one token of an
    output. States are constants to the sequence model.

    Args:
        action_dim: width A of an action.
        embed_dim: width E of an embedding.
        latent: of two tokens or more.
        at_once: predict all tokens of a frame from the belief; ``prior`` then makes G times as many numbers.
        **options: all others of :class:`TokenDynamics`.

    >>> from functools import partial
    >>> from wmkit import backbones
    >>> from wmkit.dynamics import FrameTokens
    >>> from wmkit.nn import MLP, CodebookLatent, SlotLinear
    >>> latent = CodebookLatent(groups=4, rows=5, width=3)
    >>> dynamics = FrameDynamics(
    ...     3, 8, backbone=partial(backbones.build, "gpt"), tokens=partial(FrameTokens, groups=4, rows=5),
    ...     deter=16, latent=latent, posterior=partial(SlotLinear, slots=4), prior=partial(MLP, layers=0))
    >>> record = {"previous_action": torch.zeros(2, 6, 3), "is_init": torch.zeros(2, 6, dtype=torch.bool)}
    >>> seen = dynamics.observe(torch.zeros(2, 6, 8), record)
    >>> seen.latent.classes.shape, seen.prior_logits.shape
    (torch.Size([2, 6, 4]), torch.Size([2, 6, 4, 5]))
    >>> dynamics.step(seen.last, torch.zeros(2, 3)).classes.shape
    torch.Size([2, 4])
    """

    def __init__(
        self, action_dim: int, embed_dim: int, *, latent: Any, at_once: bool = False, **options: Any
    ) -> None:
        check_range("latent.groups", latent.groups, 2)
        self.__dict__["at_once"] = at_once  # before the base makes the prior
        super().__init__(action_dim, embed_dim, latent=latent, **options)

    @property
    def prior_dim(self) -> int:
        """Rows of the table, for each token that a belief predicts."""
        return self.latent.prior_dim if self.at_once else self.latent.rows

    # -- a window ------------------------------------------------------------------------

    def observe(
        self,
        embed: Tensor,
        record: Record,
        latent: Latent | None = None,
        represented: Represented | None = None,
    ) -> Observed:
        """See :meth:`TokenDynamics.observe`. Without a latent before it, nothing predicts a window's first
        token; where an episode begins, what predicts it is still about the one before.
        """
        self.check_window(embed, record, latent)
        seen = self.represent(embed) if represented is None else represented
        assert seen.classes is not None
        outputs, memory = self.run(seen.state.detach(), seen.classes, record, latent)
        belief = outputs[:, :, 0]
        last = Latent(seen.state[:, -1], belief[:, -1], memory, seen.classes[:, -1])
        expected = self.prior_logits(belief) if self.at_once else self.prior(outputs)
        return Observed(Latent(seen.state, belief, None, seen.classes), seen.logits, expected, last)

    def run(
        self, state: Tensor, classes: Tensor | None, record: Record, latent: Latent | None = None
    ) -> tuple[Tensor, Carry]:
        """Outputs ``[B, T, G, U]`` that predict each token of a window's states, and the carry after it."""
        action = record["previous_action"].to(state.dtype)
        steps = Steps(state, classes, action, action[..., :1], record["is_init"])
        x = self.tokens(steps)  # [B, T, 1+G, D]
        reset = torch.zeros(x.shape[:3], dtype=torch.bool, device=x.device)
        if self.separate_episodes:
            reset[:, :, self.tokens.late] = steps.is_init
        x, reset = x.flatten(1, 2)[:, :-1], reset.flatten(1)[:, :-1]
        if latent is None:
            outputs, memory = self.backbone.scan(x[:, 1:], None, reset[:, 1:])
            outputs = F.pad(outputs, (0, 0, 1, 0))
        else:
            first = self._last_token(latent)
            x = torch.cat([first, x], 1)
            reset = F.pad(reset, (1, 0))
            outputs, memory = self.backbone.scan(x, self._carry(latent), reset)
            outputs = outputs[:, 1:]
        per_step = self.tokens.per_step
        return F.pad(outputs, (0, 0, 0, 1)).unflatten(1, (-1, per_step))[:, :, :-1], memory

    def represent(self, embed: Tensor) -> Represented:
        """The nearest rows of the table: nothing is drawn."""
        vectors = self.posterior_logits(embed)
        return Represented(vectors, *self.latent.nearest(vectors))

    def remember(self, latent: Latent, record: Record) -> Latent:
        """See :meth:`TokenDynamics.remember`; one record needs no pass until a step is taken."""
        here = latent.map(lambda x: x[:, -1])
        if latent.state.shape[1] == 1:
            return Latent(here.state, torch.zeros_like(here.belief), None, here.classes)
        outputs, memory = self.run(latent.state, latent.classes, record)
        return Latent(here.state, outputs[:, -1, 0], memory, here.classes)

    # -- one step ------------------------------------------------------------------------

    def filter(self, latent: Latent, embed: Tensor, record: Record) -> Latent:
        """Take in one observation while acting; where an episode starts the belief is zero."""
        seen, first = self.represent(embed), record["is_init"]
        one = {key: value.unsqueeze(1) for key, value in record.items()}
        before = None if latent.carry is None and latent.classes is None else latent
        classes = None if seen.classes is None else seen.classes.unsqueeze(1)
        outputs, memory = self.run(seen.state.unsqueeze(1), classes, one, before)
        belief = outputs[:, -1, 0].masked_fill(first.unsqueeze(-1), 0)
        return Latent(seen.state, belief, memory, seen.classes)

    def bind(self, *, one_hot: bool = False) -> Any:
        """See :meth:`Dynamics.bind`."""
        return _FrameSteps(self, self.backbone.bind(tokens=self.latent.groups if self.at_once else 2))

    def restart(self, latent: Latent, mask: Tensor, start: Latent) -> Latent:
        """Other states in rows ``mask [B]``, whose own tokens are read first of all."""
        assert start.classes is not None
        x = self.tokens.frame(start.classes[:, :-1])  # [B, G-1, D]
        reset = F.pad(mask.unsqueeze(1), (0, x.shape[1] - 1))
        carry = self._carry(latent)
        _, fresh = self.backbone.scan(x, carry, reset)
        begun = Latent(start.state, latent.belief, fresh, start.classes)
        return begun.where(mask, Latent(latent.state, latent.belief, _as_long(carry, fresh), latent.classes))

    # -- what a policy carries -------------------------------------------------------------

    def pack(self, latent: Latent) -> dict[str, Tensor]:
        """See :meth:`Dynamics.pack`."""
        full = self.backbone.initial(len(latent.state))
        carry = _as_long(self._carry(latent), full)
        return {"state": latent.state, "belief": latent.belief, "carry": flatten_carry(carry)}

    def unpack(self, tensors: Mapping[str, Tensor]) -> Latent:
        """See :meth:`Dynamics.unpack`; a state alone is a start without a memory."""
        state, carry = tensors["state"].float(), None
        belief = tensors.get("belief", state.new_zeros(len(state), self.belief_dim))
        if "carry" in tensors:
            carry = unflatten_carry(tensors["carry"], self.backbone.initial(1))
        return Latent(state, belief.float(), carry, self.latent.classes_of(state))

    @property
    def dream_shapes(self) -> dict[str, tuple[int, ...]]:
        """State, belief and ``carry``."""
        width = carry_width(self.backbone.initial(1))
        return {"state": (self.state_dim,), "belief": (self.belief_dim,), "carry": (width,)}

    # -- pieces --------------------------------------------------------------------------

    def prior_logits(self, belief: Tensor) -> Tensor:
        """``[*B, U] -> [*B, 1, C]``: of a state's first token alone, which the others follow from; of all of
        them, ``[*B, G, C]``, where they are predicted at once.
        """
        return self.prior(belief).unflatten(-1, (-1, self.latent.rows))

    def draw(self, output: Tensor, uniform: Tensor) -> Tensor:
        """The next token ``[B]`` that an output ``[B, U]`` predicts, for a uniform ``[B, 1]``."""
        return sample_index(torch.softmax(widened(self.prior(output)), -1), uniform)

    def _carry(self, latent: Latent) -> Carry:
        """The sequence model after all tokens of a state but the last."""
        if latent.carry is not None:
            return latent.carry
        return self.backbone.scan(self.tokens.frame(self._classes(latent)[:, :-1]))[1]

    def _classes(self, latent: Latent) -> Tensor:
        return self.latent.classes_of(latent.state) if latent.classes is None else latent.classes

    def _last_token(self, latent: Latent) -> Tensor:
        return self.tokens.frame(self._classes(latent)[:, -1:])  # [B, 1, D]


class _FrameSteps(NamedTuple):
    """What a loop over imagined steps needs."""

    dynamics: FrameDynamics
    loop: Any

    def step(
        self, latent: Latent, action: Tensor, option: Tensor | None = None, noise: Tensor | None = None
    ) -> Latent:
        """See :meth:`Dynamics.step`."""
        assert option is None, "frame dynamics alone have no options: wrap them in LongShortRSSM"
        dynamics, tokens = self.dynamics, self.dynamics.tokens
        if noise is None:
            noise = dynamics.noise(len(action), device=action.device)
        x = torch.cat([dynamics._last_token(latent), tokens.action(action).unsqueeze(1)], 1)
        output, memory = self.loop.scan(x, dynamics._carry(latent), None, slice(-1, None))
        belief, drawn = output[:, -1], list[Tensor]()
        if dynamics.at_once:
            state, classes = dynamics.latent.sample(dynamics.prior_logits(belief), noise)
            _, memory = self.loop.scan(tokens.frame(classes[:, :-1]), memory, None, slice(-1, None))
            return Latent(state, belief, memory, classes)
        for uniform in noise.unbind(-2):
            if drawn:
                output, memory = self.loop.scan(tokens.frame(drawn[-1]).unsqueeze(1), memory)
            drawn.append(dynamics.draw(output[:, -1], uniform))
        classes = torch.stack(drawn, -1)  # [B, G]
        return Latent(dynamics.latent.of(classes), belief, memory, classes)


def _as_long(carry: Carry, other: Carry) -> Carry:
    """With empty slots in front where another carry of the same model remembers more."""

    def pad(x: Tensor, y: Tensor) -> Tensor:
        return x if x.shape == y.shape else F.pad(x, (0, 0, y.shape[2] - x.shape[2], 0))

    return map_carry(pad, carry, other)
