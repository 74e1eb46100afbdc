"""The model's state at one step, and what observing a window returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from wmkit.backbones import Carry
from wmkit.nn import Feature


class Latent(NamedTuple):
    """State of the model at one step of ``B`` rollouts.

    Attributes:
        state: ``[*B, G*C]`` float, stochastic part z: one-hot per categorical, or numbers.
        belief: ``[*B, U]`` float, deterministic part u.
        carry: whatever the backbone needs to go on (its carry).
        classes: ``[*B, G]`` int64, class of each categorical of ``state`` where known.
    """

    state: Tensor
    belief: Tensor
    carry: Carry
    classes: Tensor | None = None

    @property
    def feature(self) -> Tensor:
        """What heads read: ``[*B, G*C + U]``, state first."""
        return self.parts.dense

    @property
    def parts(self) -> Feature:
        """:attr:`feature` kept in its parts."""
        return Feature(self.state, self.belief, self.classes)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Latent:
        """Apply a tensor function to every part.

        >>> Latent(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 4)).map(lambda x: x[:1]).belief.shape
        torch.Size([1, 4])
        """
        classes = None if self.classes is None else fn(self.classes)
        belief = fn(self.belief)
        # Keep the sharing: a recurrent cell's carry is its belief.
        carry = belief if self.carry is self.belief else tree_map(fn, self.carry)
        return Latent(fn(self.state), belief, carry, classes)

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

        shared = self.carry is self.belief and other.carry is other.belief
        known = self.classes is not None and other.classes is not None
        belief = pick(self.belief, other.belief)
        return Latent(
            pick(self.state, other.state),
            belief,
            belief if shared else tree_map(pick, self.carry, other.carry),
            pick(self.classes, other.classes) if known else None,  # type: ignore[arg-type]
        )

    @staticmethod
    def cat(latents: list[Latent]) -> Latent:
        """Join along the batch."""
        belief = torch.cat([x.belief for x in latents])
        if all(x.carry is x.belief for x in latents):
            carry = belief
        else:
            carry = tree_map(lambda *parts: torch.cat(parts), *(x.carry for x in latents))
        classes = [x.classes for x in latents if x.classes is not None]
        known = torch.cat(classes) if len(classes) == len(latents) else None
        return Latent(torch.cat([x.state for x in latents]), belief, carry, known)


class Observed(NamedTuple):
    """Posterior over a window.

    Attributes:
        latent: state at every step, leaves ``[B, T, ...]``.
        posterior_logits: ``[B, T, G, C]``, or whatever statistics describe the latent
            (:mod:`wmkit.nn.distributions.latents`).
        prior_logits: likewise, what the model expected before seeing each step.
    """

    latent: Latent
    posterior_logits: Tensor
    prior_logits: Tensor
