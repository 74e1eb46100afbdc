"""Long short-term dynamics: ordinary steps and jumps through one and the same model.

LS-Imagine (arXiv:2410.03618, eq. 3) has one transition for both: a jump is a step with no
action and one more action entry, the jump bit, set. :class:`LongShortRSSM` adds that bit to
any dynamics; which rows jump is a mask, so that shapes never depend on data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wmkit.dynamics.latent import Latent, Observed


class JumpObserved(NamedTuple):
    """Posterior of states reached by a jump.

    Attributes:
        latent: state after the jump, leaves ``[N, ...]``.
        posterior_logits: ``[N, G, C]``.
        prior_logits: ``[N, G, C]``.
    """

    latent: Latent
    posterior_logits: Tensor
    prior_logits: Tensor


class LongShortRSSM(nn.Module):
    """Any filtering dynamics with a jumpy branch.

    Args:
        action_dim: width A of an environment action.
        embed_dim: width E of an embedding.
        dynamics: called as ``dynamics(action_dim=A + 1, embed_dim=E)``, gives the dynamics to wrap.

    >>> from functools import partial
    >>> from wmkit import backbones
    >>> from wmkit.dynamics import RSSM
    >>> gru = partial(backbones.build, "ln_gru")
    >>> rssm = partial(RSSM, backbone=gru, deter=16, groups=4, classes=5, hidden=8)
    >>> long_short = LongShortRSSM(3, 7, dynamics=rssm)
    >>> after = long_short.step(long_short.initial(2), torch.zeros(2, 3), torch.tensor([True, False]))
    >>> after.belief.shape
    torch.Size([2, 16])
    """

    def __init__(self, action_dim: int, embed_dim: int, *, dynamics: Callable[..., Any]) -> None:
        super().__init__()
        self.short = dynamics(action_dim=action_dim + 1, embed_dim=embed_dim)
        self.action_dim = action_dim
        self.state_dim, self.belief_dim = self.short.state_dim, self.short.belief_dim
        self.feature_dim = self.short.feature_dim

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """See :meth:`RSSM.noise <wmkit.dynamics.rssm.RSSM.noise>`."""
        return self.short.noise(*lead, device=device)

    def initial(self, batch: int) -> Latent:
        """See :meth:`RSSM.initial <wmkit.dynamics.rssm.RSSM.initial>`."""
        return self.short.initial(batch)

    @property
    def carry_dim(self) -> int:
        """See :attr:`RSSM.carry_dim <wmkit.dynamics.rssm.RSSM.carry_dim>`."""
        return self.short.carry_dim

    def packed(self, latent: Latent) -> Tensor:
        """See :meth:`RSSM.packed <wmkit.dynamics.rssm.RSSM.packed>`."""
        return self.short.packed(latent)

    def resume(self, state: Tensor, belief: Tensor, carry: Tensor | None = None) -> Latent:
        """See :meth:`RSSM.resume <wmkit.dynamics.rssm.RSSM.resume>`."""
        return self.short.resume(state, belief, carry)

    def step(
        self,
        latent: Latent,
        action: Tensor,
        jump: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        one_hot: bool = False,
    ) -> Latent:
        """Imagine one transition per row, a step or a jump.

        Args:
            latent: where it starts.
            action: ``[B, A]`` float; ignored where ``jump`` is set.
            jump: ``[B]`` bool, rows that jump; none if not given.
            noise: ``[B, G, 1]`` uniforms.
            one_hot: promises that every action is; a jump, which blanks it and sets the bit, is then too.
        """
        return self.short.step(latent, self._with_bit(action, jump), noise, one_hot=one_hot)

    def filter(
        self, latent: Latent, previous_action: Tensor, embed: Tensor, is_init: Tensor
    ) -> tuple[Latent, Tensor]:
        """Acting: jumps never happen in the real environment."""
        return self.short.filter(latent, self._with_bit(previous_action), embed, is_init)

    def observe(self, embed: Tensor, previous_action: Tensor, is_init: Tensor, latent: Latent) -> Observed:
        """Filter a window of real steps."""
        return self.short.observe(embed, self._with_bit(previous_action), is_init, latent)

    def observe_jump(self, latent: Latent, embed: Tensor) -> JumpObserved:
        """Filter the view that a jump from each ``latent`` leads to.

        Args:
            latent: posterior before the jump, leaves ``[N, ...]``.
            embed: ``[N, E]`` embedding of the zoomed view.
        """
        rows = embed.shape[0]
        action = embed.new_zeros(rows, self.action_dim)
        jump = torch.ones(rows, dtype=torch.bool, device=embed.device)
        no_reset = torch.zeros_like(jump)
        after, logits = self.short.filter(latent, self._with_bit(action, jump), embed, no_reset)
        return JumpObserved(after, logits, self.short.prior_logits(after.belief))

    def prior_logits(self, belief: Tensor) -> Tensor:
        """``[*B, U] -> [*B, G, C]``."""
        return self.short.prior_logits(belief)

    def _with_bit(self, action: Tensor, jump: Tensor | None = None) -> Tensor:
        """Append the jump bit and blank the action of rows that jump."""
        if jump is None:
            return torch.nn.functional.pad(action, (0, 1))
        bit = jump.unsqueeze(-1).to(action.dtype)
        return torch.cat([action * (1 - bit), bit], -1)
