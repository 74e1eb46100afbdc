"""The base of this room's transformers: widths, memory, and the three ways through the layers.

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

from wmkit import fast
from wmkit.backbones.base import IN_KEYS, OUT_KEYS, Keys, Loop, SequenceModel, check_input, joined, resets
from wmkit.errors import ConfigError
from wmkit.nn import Linear
from wmkit.nn.attention import ALL, Memory, Remember, token_ages, visible


class Transformer(SequenceModel):
    """Base of transformers whose carry is a :class:`~wmkit.nn.attention.Memory`.

    A subclass fills :attr:`layers` and implements :meth:`embed`; where its layers read more than tokens and
    memory, :meth:`tables` and :meth:`through` too.

    Args:
        in_dim: input width D; projected linearly where it is not ``width``.
        out_dim: output width U; projected linearly where it is not ``width``.
        width: of the tokens inside; ``out_dim`` if not given.
        window: tokens W that a token sees in each layer, itself included. Memory holds ``W - 1``. A list has
            one for each kind of tokens that take turns from an episode's first on; memory follows the widest.
        in_keys: see :class:`~wmkit.backbones.base.SequenceModel`.
        out_keys: see :class:`~wmkit.backbones.base.SequenceModel`.

    Raises:
        ConfigError: a window below two.
    """

    layers: Any  # a ModuleList; each has an ``attention``
    windows: Tensor | None  # [k] int64, where kinds of tokens differ

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        width: int | None,
        window: int | Sequence[int],
        in_keys: Keys = IN_KEYS,
        out_keys: Keys = OUT_KEYS,
    ) -> None:
        super().__init__(in_dim, out_dim, in_keys=in_keys, out_keys=out_keys)
        windows = [window] if isinstance(window, int) else list(window)
        if min(windows, default=0) < 2:
            raise ConfigError(f"the window of a transformer is {window}: wanted 2 tokens or more; set window")
        width = out_dim if width is None else width
        self.width, self.window = width, max(windows)
        kinds = None if len(windows) == 1 else torch.tensor(windows)
        self.register_buffer("windows", kinds, persistent=False)
        self.project_in = nn.Identity() if in_dim == width else Linear(in_dim, width)
        self.project_out = nn.Identity() if out_dim == width else Linear(width, out_dim)

    @property
    def slots(self) -> int:
        """Tokens C that memory holds."""
        return self.window - 1

    # -- what a subclass says --------------------------------------------------------------

    def tables(self, tokens: int) -> Sequence[Tensor | None]:
        """Positions and masks of each layer, for ``tokens`` new tokens that look at all keys."""
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
        return layer(x, remember, mask, read)

    def finish(self, visited: Sequence[Tensor], read: slice) -> Tensor:
        """The output before its projection ``[B, n, D]``, of the tokens read.

        Args:
            visited: what came out of each layer, ``[B, n, D]``; of the last one the tokens read alone.
            read: which those are.
        """
        return visited[-1]

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
        check_input(self, x, carry, reset, 2)
        return self.bind().step(x, carry, reset)

    def scan(
        self, x: Tensor, carry: Memory | None = None, reset: Tensor | None = None, read: slice | None = None
    ) -> tuple[Tensor, Memory]:
        """See :meth:`SequenceModel.scan <wmkit.backbones.base.SequenceModel.scan>`.

        Of the tokens that are not read the last layer makes keys and values alone.
        """
        check_input(self, x, carry, reset, 3)
        return self.bind(tokens=x.shape[1]).scan(x, carry, reset, read)

    def bind(self, known: int = 0, tokens: int = 1) -> TransformerLoop:
        """Tables made once; see :meth:`SequenceModel.bind <wmkit.backbones.base.SequenceModel.bind>`."""
        return TransformerLoop(self, self.tables(tokens))


@dataclass(frozen=True)
class TransformerLoop(Loop):
    """A :class:`Transformer` with what each step needs again computed once.

    Attributes:
        model: whose weights these are.
        tables: one per layer, see :meth:`Transformer.tables`.
        room: see :class:`~wmkit.fast.Room`.

    >>> from wmkit import backbones
    >>> model, reset = backbones.build("transformer_xl", 6, 16).eval(), torch.zeros(2, 3, dtype=torch.bool)
    >>> x, loop = torch.randn(2, 3, 6), model.bind(tokens=3)
    >>> u, carry = loop.scan(x, model.initial(2), reset)
    >>> torch.allclose(u, model.scan(x, None, reset)[0], atol=1e-6)
    True
    """

    tables: Sequence[Tensor | None]
    room: fast.Room = field(default_factory=lambda: fast.Room())  # a compiler reads a call, not a class

    def step(
        self, x: Tensor, carry: Memory, reset: Tensor | None = None, ahead: Tensor | None = None
    ) -> tuple[Tensor, Memory]:
        """One token: ``x [B, D - known]``, ``reset [B]``, ``ahead [B, known]`` -> ``u [B, U]`` and carry."""
        x = joined(x, ahead)
        u, carry = self.scan(x.unsqueeze(1), carry, resets(reset, x).unsqueeze(1))
        return u.squeeze(1), carry

    def scan(
        self, x: Tensor, carry: Memory | None = None, reset: Tensor | None = None, read: slice | None = None
    ) -> tuple[Tensor, Memory]:
        """See :meth:`Transformer.scan`."""
        model, slots, reset, read = self.model, self.model.slots, resets(reset, x), read or ALL
        age = reset.new_zeros(len(reset), dtype=torch.int64) if carry is None else carry.age
        ages = token_ages(age, reset)
        window = model.window if model.windows is None else model.windows
        mask = visible(ages, 0 if carry is None else carry.keys[0].shape[2], window)
        x = model.embed(model.project_in(x), ages)
        visited, all_keys, all_values = [], [], []
        remembers = self.room.remember(carry, x.shape[1], len(model.layers))
        reads = [ALL] * (len(model.layers) - 1) + [read]
        for layer, table, remember, part in zip(model.layers, self.tables, remembers, reads, strict=True):
            x, keys, values = model.through(layer, x, remember, mask, table, part)
            visited.append(x)
            all_keys.append(_last(keys, slots))
            all_values.append(_last(values, slots))
        u = model.project_out(model.finish(visited, read))
        after = Memory(tuple(all_keys), tuple(all_values), ages[:, -1] + 1, u[:, -1])
        self.room.last = after
        return u, after


def _last(x: Tensor, slots: int) -> Tensor:
    """The last slots of ``[B, heads, M, d]``; where fewer, zeros in front where shapes have to be fixed."""
    missing = slots - x.shape[2]
    if missing <= 0:
        return x[:, :, -slots:]
    return x if fast.rows_are_free(x) else F.pad(x, (0, 0, missing, 0))
