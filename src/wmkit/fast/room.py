"""Room for the memory of a transformer in a loop, so that it is not copied at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wmkit.fast.switch import enabled

Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


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
        self.last: Any = None
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._end = self._slots = 0  # where they are filled to, and how much of that was remembered

    def remember(self, carry: Any, count: int, layers: int) -> list[Remember | None]:
        """For each layer, what to call with its ``count`` new keys and values ``[B, heads, count, d]``.

        Args:
            carry: a :class:`~wmkit.nn.attention.Memory` of C tokens, or nothing.
            count: new tokens.
            layers: how many.

        Returns:
            Of each layer a function from new keys and values to all, ``[B, heads, C + count, d]``; ``None``
            where nothing is remembered.
        """
        last, self.last = self.last, None
        if carry is None:
            self._buffers = []
            return [None] * layers
        looping = last is not None and not torch.is_grad_enabled()
        looping = looping and enabled(carry.age, autocast=True, everywhere=True)
        pairs = list(zip(carry.keys, carry.values, strict=True))
        if not looping:
            self._buffers = []
            return [_joined(*pair) for pair in pairs]
        slots = pairs[0][0].shape[2]
        full = not self._buffers or self._end + count > self._buffers[0][0].shape[2]
        if full or carry is not last:
            # A memory that grows would be copied again and again: it gets as much room as it takes.
            spare = max(self.SPARE * count, slots if 0 < self._slots < slots else 0)
            self._buffers = [(_roomy(keys, spare), _roomy(values, spare)) for keys, values in pairs]
            self._end = slots
        begin, self._end, self._slots = self._end - slots, self._end + count, slots
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
