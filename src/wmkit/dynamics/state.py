"""What a roll-out owns at one step, and what observing a window returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from wmkit.nn import Feature

Carry = Any
NEXT = "next_"  # before a field: that of the state after a transition


class Latent(NamedTuple):
    """State of a model at one step of ``B`` roll-outs; the fields are the keys.

    Attributes:
        state: ``[*B, S]`` float, stochastic part z: one-hot per categorical, or numbers.
        belief: ``[*B, U]`` float, deterministic part: the output of the sequence model before ``z`` is known.
        carry: what else the sequence model needs to go on (a pytree); ``None`` where the belief is all.
        classes: ``[*B, G]`` int64, class of each categorical of ``state`` where known.

    >>> Latent(torch.ones(2, 3), torch.ones(2, 4)).map(lambda x: x[:1]).belief.shape
    torch.Size([1, 4])
    """

    state: Tensor
    belief: Tensor
    carry: Carry = None
    classes: Tensor | None = None

    @property
    def feature(self) -> Feature:
        """State and belief side by side."""
        return read(self, ("state", "belief"))

    def map(self, fn: Callable[[Tensor], Tensor]) -> Latent:
        """Apply a tensor function to every part."""
        return Latent(*(map_carry(fn, part) for part in self))

    def detach(self) -> Latent:
        """The same values without gradient history."""
        return self.map(Tensor.detach)

    def light(self) -> Latent:
        """Without the carry, which may be large and only the next step needs."""
        return self._replace(carry=None)

    def where(self, mask: Tensor, other: Latent) -> Latent:
        """Rows of ``self`` where ``mask [B]`` is set, of ``other`` elsewhere.

        >>> a, b = (Latent(x, x) for x in (torch.ones(2, 1), torch.zeros(2, 1)))
        >>> a.where(torch.tensor([True, False]), b).state.tolist()
        [[1.0], [0.0]]
        """

        def pick(x: Tensor, y: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (x.ndim - 1)), x, y)

        return _merge(pick, self, other)

    @staticmethod
    def cat(latents: Sequence[Latent]) -> Latent:
        """Join along the batch."""
        return _merge(lambda *parts: torch.cat(parts), *latents)

    @staticmethod
    def stack(latents: Sequence[Latent], dim: int) -> Latent:
        """Latents of T steps as one with a dimension of T."""
        return _merge(lambda *parts: torch.stack(parts, dim), *latents)


class Observed(NamedTuple):
    """Posterior over a window.

    Attributes:
        latent: state at every step, leaves ``[B, T, ...]``; with its carry only where that has a value at
            each.
        posterior_logits: ``[B, T, G, C]``, or whatever statistics describe the latent (:mod:`wmkit.nn`).
        prior_logits: of the same shape, what the model expected before seeing each step.
        last: state after the window, leaves ``[B, ...]``, to go on from.
    """

    latent: Latent
    posterior_logits: Tensor
    prior_logits: Tensor
    last: Latent


def read(latent: Latent, fields: Sequence[str], following: Latent | None = None) -> Feature:
    """What a head reads: some fields side by side.

    Args:
        latent: where a transition starts, or the only state.
        fields: of ``state``, ``belief``, ``next_state``, ``next_belief``.
        following: where it ends; needed for the last two.

    >>> before, after = (Latent(torch.full((1, 1), x), torch.full((1, 1), x + 1)) for x in (0.0, 2.0))
    >>> read(before, ["belief", "next_state"], after).dense
    tensor([[1., 2.]])
    """
    parts, classes = [], []
    for field in fields:
        source = following if field.startswith(NEXT) else latent
        assert source is not None, "a transition is read, but only one state is given"
        name = field.removeprefix(NEXT)
        parts.append(getattr(source, name))
        classes.append(source.classes if name == "state" else None)
    return Feature(*parts, classes=classes)


def map_carry(fn: Callable[..., Tensor], *carries: Any) -> Any:
    """``fn`` of the tensors of pytrees of one form; parts that are ``None`` stay so.

    >>> map_carry(lambda x: x + 1, (torch.zeros(1), None))
    (tensor([1.]), None)
    """
    return tree_map(lambda *parts: None if parts[0] is None else fn(*parts), *carries)


def _merge(fn: Callable[..., Tensor], *latents: Latent) -> Latent:
    """One latent of several; a part that one of them lacks is left out."""
    parts = (
        None if any(part is None for part in field) else map_carry(fn, *field)
        for field in zip(*latents, strict=True)
    )
    return Latent(*parts)  # type: ignore[arg-type]
