"""What transformers of this room share: widths, memory, and the three ways through the layers.

``step`` takes one token, ``scan`` any number of them, each with its own reset flag, so that a
time step of several tokens is one ``scan`` of that many: with a late token that still belongs to
the episode before, the reset stands at the token after it. ``scan(x, None, reset)`` starts from
nothing and leaves the empty memory out of the attention; the numbers are those of
``scan(x, initial(B), reset)``. On a CPU a memory that began so is no longer than what it holds until it
is full; elsewhere its shape is fixed.

In a time loop what does not change from step to step is made once by :meth:`Transformer.bind`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmkit.backbones.base import resets
from wmkit.errors import ConfigError
from wmkit.nn import Linear, rows_are_free
from wmkit.nn.attention import ALL, Memory, Remember, token_ages, visible


class Transformer(nn.Module):
    """Base of transformers whose carry is a :class:`~wmkit.nn.attention.Memory`.

    A subclass fills :attr:`layers` and implements :meth:`embed` and :meth:`through`.

    Args:
        in_dim: input width D; projected linearly where it is not ``width``.
        out_dim: output width U; likewise.
        width: of the tokens inside; ``out_dim`` if not given.
        window: tokens W that a token sees in each layer, itself included. Memory holds ``W - 1``.

    Raises:
        ConfigError: a window below two.
    """

    carry_is_output = False
    layers: Any  # a ModuleList; each has an ``attention``

    def __init__(self, in_dim: int, out_dim: int, *, width: int | None, window: int) -> None:
        super().__init__()
        if window < 2:
            raise ConfigError(f"the window of a transformer is {window}: wanted 2 tokens or more; set window")
        width = out_dim if width is None else width
        self.in_dim, self.out_dim, self.width, self.window = in_dim, out_dim, width, window
        self.project_in = nn.Identity() if in_dim == width else Linear(in_dim, width)
        self.project_out = nn.Identity() if out_dim == width else Linear(width, out_dim)

    @property
    def slots(self) -> int:
        """Tokens C that memory holds."""
        return self.window - 1

    # -- what a subclass says --------------------------------------------------------------

    def tables(self, tokens: int) -> Sequence[Tensor | None]:
        """What each layer needs besides its weights to look from ``tokens`` new tokens at all keys."""
        return [None] * len(self.layers)

    def embed(self, x: Tensor, ages: Tensor) -> Tensor:
        """Tokens ``[B, n, D]`` as the first layer takes them; ``ages [B, n]`` are their positions."""
        raise NotImplementedError

    def through(
        self,
        layer: nn.Module,
        x: Tensor,
        remember: Remember | None,
        mask: Tensor,
        table: Tensor | None,
        read: slice,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer: of tokens ``[B, n, D]`` those read, and all keys and values ``[B, heads, C + n, d]``."""
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """After the last layer: ``[B, n, D] -> [B, n, D]``."""
        return x

    # -- the contract ----------------------------------------------------------------------

    def initial(self, batch: int) -> Memory:
        """See :meth:`SequenceModel.initial <wmkit.backbones.base.SequenceModel.initial>`."""
        like = next(self.layers.parameters())
        attention = self.layers[0].attention
        # One row for all: a memory is never written to.
        empty = like.new_zeros(1, attention.heads, self.slots, attention.head_dim).expand(batch, -1, -1, -1)
        layers = (empty,) * len(self.layers)
        age = torch.zeros(batch, dtype=torch.int64, device=like.device)
        return Memory(layers, layers, age, like.new_zeros(1, self.out_dim).expand(batch, -1))

    def output(self, carry: Memory) -> Tensor:
        """The last output ``[B, U]``; zeros before the first."""
        return carry.output

    def step(self, x: Tensor, carry: Memory, reset: Tensor) -> tuple[Tensor, Memory]:
        """One token: ``x [B, D]``, ``reset [B]`` bool -> ``u [B, U]`` and the new carry."""
        return self.bind().step(x, carry, reset)

    def scan(
        self, x: Tensor, carry: Memory | None, reset: Tensor, read: slice = ALL
    ) -> tuple[Tensor, Memory]:
        """Any number of tokens at once.

        Args:
            x: ``[B, n, D]``.
            carry: what went before; ``None`` is nothing.
            reset: ``[B, n]`` bool, the token begins a segment.
            read: of which tokens outputs are wanted, the last among them: the last layer does nothing more
                for the others than to let them be looked at.

        Returns:
            ``[B, n, U]`` or as many as are read, and the carry after the last token.
        """
        return self.bind(tokens=x.shape[1]).scan(x, carry, reset, read)

    def bind(self, known: int = 0, tokens: int = 1) -> TransformerLoop:
        """The model made ready for a time loop; good until the weights change.

        Args:
            known: how many of the last columns of every input are given to :meth:`TransformerLoop.step`
                apart; nothing is gained by it here.
            tokens: the most tokens that :meth:`TransformerLoop.scan` is to take at once.
        """
        return TransformerLoop(self, self.tables(tokens))


@dataclass(frozen=True)
class TransformerLoop:
    """A :class:`Transformer` with what each step needs again computed once.

    Attributes:
        model: whose weights these are.
        tables: one per layer, see :meth:`Transformer.tables`.
        room: see :class:`Room`.

    >>> from wmkit import backbones
    >>> model, reset = backbones.build("transformer_xl", 6, 16).eval(), torch.zeros(2, 3, dtype=torch.bool)
    >>> x, loop = torch.randn(2, 3, 6), model.bind(tokens=3)
    >>> u, carry = loop.scan(x, model.initial(2), reset)
    >>> torch.allclose(u, model.scan(x, None, reset)[0], atol=1e-6)
    True
    """

    model: Transformer
    tables: Sequence[Tensor | None]
    room: Room = field(default_factory=lambda: Room())

    def ahead(self, x: Tensor) -> Tensor:
        """The last columns ``[*B, known]`` of inputs, as they are."""
        return x

    def step(
        self, x: Tensor, carry: Memory, reset: Tensor | None, ahead: Tensor | None = None
    ) -> tuple[Tensor, Memory]:
        """One token: ``x [B, D - known]``, ``reset [B]``, ``ahead [B, known]`` -> ``u [B, U]`` and carry."""
        x = x if ahead is None else torch.cat([x, ahead], -1)
        u, carry = self.scan(x.unsqueeze(1), carry, resets(reset, x).unsqueeze(1))
        return u.squeeze(1), carry

    def scan(
        self, x: Tensor, carry: Memory | None, reset: Tensor, read: slice = ALL
    ) -> tuple[Tensor, Memory]:
        """See :meth:`Transformer.scan`."""
        model, slots = self.model, self.model.slots
        age = reset.new_zeros(len(reset), dtype=torch.int64) if carry is None else carry.age
        ages = token_ages(age, reset)
        mask = visible(ages, 0 if carry is None else carry.keys[0].shape[2], model.window)
        x = model.embed(model.project_in(x), ages)
        all_keys, all_values = [], []
        remembers = self.room.remember(carry, x.shape[1], len(model.layers))
        reads = [ALL] * (len(model.layers) - 1) + [read]
        for layer, table, remember, part in zip(model.layers, self.tables, remembers, reads, strict=True):
            x, keys, values = model.through(layer, x, remember, mask, table, part)
            all_keys.append(_last(keys, slots))
            all_values.append(_last(values, slots))
        u = model.project_out(model.finish(x))
        after = Memory(tuple(all_keys), tuple(all_values), ages[:, -1] + 1, u[:, -1])
        self.room.last = after
        return u, after


def _last(x: Tensor, slots: int) -> Tensor:
    """The last slots of ``[B, heads, M, d]``; where fewer, zeros in front unless shapes are free."""
    missing = slots - x.shape[2]
    if missing <= 0:
        return x[:, :, -slots:]
    return x if rows_are_free(x) else F.pad(x, (0, 0, missing, 0))


class Room:
    """Puts a carry in front of new keys, without copying it at every step of a loop.

    From a loop's second call on, and where no gradients are recorded, the carry stands in buffers with
    slots to spare behind it. A step from the carry that the step before handed out fills the next of
    them; a step from any other copies it to buffers of its own. What was handed out is never written
    to, so that carries stay values.

    Attributes:
        last: the carry handed out last.
    """

    SPARE = 16  # calls until buffers are full

    def __init__(self) -> None:
        self.last: Memory | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._end = 0

    def remember(self, carry: Memory | None, count: int, layers: int) -> list[Remember | None]:
        """For each layer, what to call with its ``count`` new keys and values."""
        last, self.last = self.last, None
        looping = last is not None and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if carry is None or not looping:
            self._buffers = []
        if carry is None:
            return [None] * layers
        pairs = list(zip(carry.keys, carry.values, strict=True))
        if not looping:
            return [_joined(*pair) for pair in pairs]
        slots = pairs[0][0].shape[2]
        full = not self._buffers or self._end + count > self._buffers[0][0].shape[2]
        if full or carry is not last:
            spare = self.SPARE * count
            self._buffers = [(_roomy(keys, spare), _roomy(values, spare)) for keys, values in pairs]
            self._end = slots
        begin, self._end = self._end - slots, self._end + count
        return [_written(*buffers, begin, slots) for buffers in self._buffers]


def _joined(keys: Tensor, values: Tensor) -> Remember:
    return lambda new_keys, new_values: (torch.cat([keys, new_keys], 2), torch.cat([values, new_values], 2))


def _written(keys: Tensor, values: Tensor, begin: int, slots: int) -> Remember:
    def remember(new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        middle, end = begin + slots, begin + slots + new_keys.shape[2]
        keys[:, :, middle:end] = new_keys
        values[:, :, middle:end] = new_values
        return keys[:, :, begin:end], values[:, :, begin:end]

    return remember


def _roomy(x: Tensor, spare: int) -> Tensor:
    """A copy of ``[B, heads, C, d]`` with ``spare`` slots behind it."""
    roomy = x.new_empty(*x.shape[:2], x.shape[2] + spare, x.shape[3])
    roomy[:, :, : x.shape[2]] = x
    return roomy
