"""The model's state at one step, and what observing a window returns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from wmkit.backbones import Carry


class Latent(NamedTuple):
    """State of the model at one step of ``B`` rollouts.

    Attributes:
        state: ``[*B, G*C]`` float, stochastic part z, one-hot per categorical.
        belief: ``[*B, U]`` float, deterministic part u.
        carry: whatever the backbone needs to go on (its carry).
    """

    state: Tensor
    belief: Tensor
    carry: Carry

    @property
    def feature(self) -> Tensor:
        """What heads read: ``[*B, G*C + U]``, state first."""
        return torch.cat([self.state, self.belief], -1)

    def map(self, fn) -> Latent:  # noqa: ANN001 - any tensor function
        """Apply a tensor function to every part.

        >>> Latent(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 4)).map(lambda x: x[:1]).belief.shape
        torch.Size([1, 4])
        """
        if self.carry is self.belief:  # keep the sharing: a recurrent cell's carry is its belief
            belief = fn(self.belief)
            return Latent(fn(self.state), belief, belief)
        return Latent(fn(self.state), fn(self.belief), tree_map(fn, self.carry))

    def detach(self) -> Latent:
        """The same values without gradient history."""
        return self.map(Tensor.detach)

    def where(self, mask: Tensor, other: Latent) -> Latent:
        """Rows of ``self`` where ``mask [B]`` is set, of ``other`` elsewhere.

        >>> a, b = (Latent(x, x, x) for x in (torch.ones(2, 1), torch.zeros(2, 1)))
        >>> a.where(torch.tensor([True, False]), b).state.tolist()
        [[1.0], [0.0]]
        """

        def pick(x: Tensor, y: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (x.ndim - 1)), x, y)

        if self.carry is self.belief and other.carry is other.belief:
            belief = pick(self.belief, other.belief)
            return Latent(pick(self.state, other.state), belief, belief)
        return Latent(
            pick(self.state, other.state),
            pick(self.belief, other.belief),
            tree_map(pick, self.carry, other.carry),
        )

    @staticmethod
    def cat(latents: list[Latent]) -> Latent:
        """Join along the batch."""
        first = latents[0]
        state = torch.cat([x.state for x in latents])
        belief = torch.cat([x.belief for x in latents])
        if first.carry is first.belief:
            return Latent(state, belief, belief)
        carry = tree_map(lambda *parts: torch.cat(parts), *(x.carry for x in latents))
        return Latent(state, belief, carry)


class Observed(NamedTuple):
    """Posterior over a window.

    Attributes:
        latent: state at every step, leaves ``[B, T, ...]``.
        posterior_logits: ``[B, T, G, C]``.
        prior_logits: ``[B, T, G, C]``, what the model expected before seeing each step.
    """

    latent: Latent
    posterior_logits: Tensor
    prior_logits: Tensor
