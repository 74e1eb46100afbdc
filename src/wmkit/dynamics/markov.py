"""Dynamics without memory: the next state follows from this one and the action alone.

PLDM (arXiv:2502.14819) and, with dense layers, TD-MPC2 (arXiv:2310.16828)::

    z_t ~ q(z | o_t)      u_t = f(z_t, a_t)      ẑ_{t+1} ~ p(z | u_t) = u_t

What is expected *is* the belief: its numbers are those of the latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from wmkit.dynamics.dynamics import Dynamics, Latent, Observed, Record
from wmkit.dynamics.token_dynamics import Represented
from wmkit.errors import ConfigError


class RecurrentTransition(nn.Module):
    """A recurrent cell whose memory is the state and whose input is the action (PLDM).

    Args:
        state_dim: width S of a state.
        action_dim: width A of an action.
        backbone: called as ``backbone(in_dim=..., out_dim=...)``, gives the cell.

    Raises:
        ConfigError: a sequence model that carries more than its output.

    >>> from functools import partial
    >>> from wmkit import backbones
    >>> transition = RecurrentTransition(8, 2, backbone=partial(backbones.build, "gru"))
    >>> transition(torch.zeros(3, 8), torch.zeros(3, 2)).shape
    torch.Size([3, 8])
    """

    def __init__(self, state_dim: int, action_dim: int, *, backbone: Callable[..., Any]) -> None:
        super().__init__()
        self.backbone: Any = backbone(in_dim=action_dim, out_dim=state_dim)
        if not self.backbone.carry_is_output:
            raise ConfigError(
                f"backbone {type(self.backbone).__name__} cannot move a state: found that it carries more "
                "than its output, wanted a plain recurrent cell; choose backbone=gru, ln_gru or block_gru"
            )

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """``[*B, S]`` and ``[*B, A]`` to the next state ``[*B, S]``."""
        rows, lead = state.flatten(0, -2), state.shape[:-1]
        never = torch.zeros(len(rows), dtype=torch.bool, device=state.device)
        after, _ = self.backbone.step(action.flatten(0, -2), rows, never)
        return after.unflatten(0, lead)


class MarkovDynamics(Dynamics):
    """A myopic posterior, and a transition from state to state.

    Args:
        action_dim: width A of an action.
        embed_dim: width E of an embedding.
        transition: called as ``transition(state_dim, action_dim)``, moves states.
        latent: what a state is made of (:mod:`wmkit.nn`).
        posterior: called as ``posterior(embed_dim, N)``, gives the N numbers of q's statistics.
        norm: called as ``norm(N)``: what posterior and transition both end with, one for the two (PLDM).
        in_keys: of embedding, previous action and ``is_init``.
        out_keys: of state, belief, posterior and prior.

    >>> from functools import partial
    >>> from wmkit import backbones
    >>> from wmkit.nn import MLP, DeterministicLatent
    >>> move = partial(RecurrentTransition, backbone=partial(backbones.build, "gru"))
    >>> head = partial(MLP, layers=0)
    >>> dynamics = MarkovDynamics(3, 7, transition=move, latent=DeterministicLatent(8), posterior=head)
    >>> record = {"previous_action": torch.zeros(2, 6, 3), "is_init": torch.zeros(2, 6, dtype=torch.bool)}
    >>> dynamics.observe(torch.zeros(2, 6, 7), record).latent.state.shape
    torch.Size([2, 6, 8])
    """

    myopic, resumable = True, False

    def __init__(
        self,
        action_dim: int,
        embed_dim: int,
        *,
        transition: Callable[..., nn.Module],
        latent: Any,
        posterior: Callable[..., nn.Module],
        norm: Callable[[int], nn.Module] = lambda _: nn.Identity(),
        in_keys: Iterable[NestedKey] | None = None,
        out_keys: Iterable[NestedKey] | None = None,
    ) -> None:
        super().__init__()
        self.latent = latent
        self.action_dim, self.state_dim = action_dim, latent.state_dim
        self.belief_dim = latent.stats_dim
        if self.state_dim != self.belief_dim:
            raise ConfigError(
                f"a state of {self.state_dim} numbers is expected by {self.belief_dim}: wanted as many, as a "
                "transition gives; choose wmkit.nn.DeterministicLatent"
            )
        self.posterior = posterior(embed_dim, latent.stats_dim)
        self.transition = transition(self.state_dim, action_dim)
        self.norm = norm(latent.stats_dim)
        self.name_keys(in_keys, out_keys)

    def move(self, state: Tensor, action: Tensor) -> Tensor:
        """What is expected of states ``[*B, S]`` after actions ``[*B, A]``: beliefs ``[*B, S]``."""
        return self.norm(self.transition(state, action))

    def initial(self, batch: int) -> Latent:
        """Zeros."""
        like = next(self.transition.parameters())
        return Latent(like.new_zeros(batch, self.state_dim), like.new_zeros(batch, self.belief_dim))

    def observe(
        self,
        embed: Tensor,
        record: Record,
        latent: Latent | None = None,
        represented: Represented | None = None,
    ) -> Observed:
        """See :meth:`Dynamics.observe`; where an episode starts, beliefs are still about the one before."""
        self.check_window(embed, record, latent)
        seen = self.represent(embed) if represented is None else represented
        first = self.initial(len(embed)).state if latent is None else latent.state
        before = torch.cat([first.unsqueeze(1), seen.state[:, :-1]], 1)
        belief = self.move(before, record["previous_action"])
        if latent is None:
            belief = torch.cat([torch.zeros_like(belief[:, :1]), belief[:, 1:]], 1)
        latents = Latent(seen.state, belief, None, seen.classes)
        last = latents.map(lambda x: x[:, -1])
        return Observed(latents, seen.logits, self.prior_logits(belief), last)

    def represent(self, embed: Tensor) -> Represented:
        """Posterior of ``embed [*B, E]``, and a sample of it."""
        logits = self.posterior_logits(embed)
        return Represented(logits, *self.sample(logits))

    def filter(self, latent: Latent, embed: Tensor, record: Record) -> Latent:
        """Take in one observation while acting; where an episode starts nothing was expected."""
        seen = self.represent(embed)
        belief = self.move(latent.state, record["previous_action"])
        return Latent(seen.state, belief.masked_fill(record["is_init"].unsqueeze(-1), 0), None, seen.classes)

    def bind(self, *, one_hot: bool = False) -> _MarkovSteps:
        """See :meth:`Dynamics.bind`."""
        return _MarkovSteps(self)

    def pack(self, latent: Latent) -> dict[str, Tensor]:
        """State and belief."""
        return {"state": latent.state, "belief": latent.belief}

    def unpack(self, tensors: Mapping[str, Tensor]) -> Latent:
        """See :meth:`Dynamics.unpack`; a state alone is enough."""
        state = tensors["state"].float()
        belief = tensors.get("belief", state.new_zeros(len(state), self.belief_dim))
        return Latent(state, belief.float(), None, self.latent.classes_of(state))

    @property
    def pack_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of :meth:`pack`."""
        return {"state": (self.state_dim,), "belief": (self.belief_dim,)}

    def posterior_logits(self, embed: Tensor) -> Tensor:
        """``[*B, E]`` to statistics."""
        return self.latent.statistics(self.norm(self.posterior(embed)))

    def prior_logits(self, belief: Tensor) -> Tensor:
        """The belief as statistics."""
        return self.latent.statistics(belief)


class _MarkovSteps(NamedTuple):
    """What a loop over imagined steps needs."""

    dynamics: MarkovDynamics

    def step(
        self, latent: Latent, action: Tensor, option: Tensor | None = None, noise: Tensor | None = None
    ) -> Latent:
        """See :meth:`Dynamics.step`."""
        assert option is None, "these dynamics have no options: wrap them in LongShortRSSM"
        belief = self.dynamics.move(latent.state, action)
        state, classes = self.dynamics.sample(self.dynamics.prior_logits(belief), noise)
        return Latent(state, belief, None, classes)
