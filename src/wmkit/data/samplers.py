"""Which windows a replay hands out: uniform, fresh ones first, or the least visited.

A sampler sees only :class:`Windows` (where each stream begins and ends) and returns global
record ids of window starts. A record at position ``p`` of stream ``s`` has the id
``p * S + s``; positions count up for ever, so an id never comes back after eviction. A
window's length includes whatever extra frames a system wants (one context record for stored
latents, one record before and one after for TWM: ask for ``length + 2``).
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from wmkit.arguments import check_range
from wmkit.errors import SpecError


@dataclass(frozen=True)
class Windows:
    """The windows that a replay can give now.

    Attributes:
        begin: int64 ``[S]``, position of the oldest record of each stream.
        end: int64 ``[S]``, one past the newest.
        capacity: records per stream C; position p lies in slot ``p % C``.
        length: records per window.
    """

    begin: Tensor
    end: Tensor
    capacity: int
    length: int

    @property
    def count(self) -> Tensor:
        """int64 ``[S]``, number of valid starts of each stream."""
        return (self.end - self.begin - self.length + 1).clamp_min(0)

    def locate(self, rank: Tensor) -> tuple[Tensor, Tensor]:
        """Stream and position of the rank-th valid start, counted through all streams; any shape."""
        count = self.count
        last = count.cumsum(0)  # [S], one past the last rank of each stream
        stream = torch.searchsorted(last, rank, right=True)
        return stream, self.begin[stream] + rank - (last - count)[stream]

    def ids(self, stream: Tensor, position: Tensor) -> Tensor:
        """Global ids of positions, any shape."""
        return position * self.begin.numel() + stream


@runtime_checkable
class Sampler(Protocol):
    """The contract: ids of ``batch_size`` window starts, and a state that a checkpoint keeps."""

    def draw(self, windows: Windows, batch_size: int, generator: Generator) -> Tensor:
        """int64 ``[batch_size]`` ids."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later :meth:`draw` depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""


class Uniform:
    """Every valid start of every stream is equally likely, with replacement.

    >>> windows = Windows(torch.tensor([0, 5]), torch.tensor([3, 9]), capacity=4, length=3)
    >>> windows.count
    tensor([1, 2])
    >>> sorted(set(Uniform().draw(windows, 100, torch.Generator().manual_seed(0)).tolist()))
    [0, 11, 13]
    """

    def draw(self, windows: Windows, batch_size: int, generator: Generator) -> Tensor:
        """int64 ``[batch_size]`` ids; SpecError where no stream is long enough."""
        total = int(windows.count.sum())
        if total == 0:
            longest = int((windows.end - windows.begin).max())
            raise SpecError(
                f"replay has no window yet: found {longest} records in its longest stream, "
                f"wanted {windows.length}; collect more before sampling"
            )
        return windows.ids(*windows.locate(torch.randint(total, (batch_size,), generator=generator)))

    def state_dict(self) -> dict[str, Any]:
        """Empty: the generator belongs to the replay."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


class OnlineQueue:
    """Fresh windows first, then uniform (DreamerV3's replay at HEAD, arXiv:2301.04104).

    Each stream is cut into windows that do not overlap. Every finished one is handed out
    once, in the order in which they were finished; slots of a batch that find the queue empty
    are drawn uniformly. Windows evicted before their turn are skipped. Everything in a stream
    that the sampler has not seen counts as fresh.

    Args:
        stride: records from one fresh window to the next. None is the window's length (the
            reference: the context record of each window is then never trained on);
            ``length - context`` trains on every record.

    Raises:
        ConfigError: ``stride`` is not positive.

    >>> windows = Windows(torch.tensor([0]), torch.tensor([9]), capacity=100, length=4)
    >>> OnlineQueue().draw(windows, 2, torch.Generator())
    tensor([0, 4])
    """

    def __init__(self, stride: int | None = None):
        if stride is not None:
            check_range("stride", stride, 1)
        self.stride = stride
        self._next: Tensor | None = None  # [S], position where the next fresh window starts
        self._queue: deque[int] = deque()
        self._uniform = Uniform()

    def draw(self, windows: Windows, batch_size: int, generator: Generator) -> Tensor:
        """int64 ``[batch_size]`` ids, fresh ones first."""
        self._enqueue(windows)
        streams = windows.begin.numel()
        begin = windows.begin.tolist()
        fresh: list[int] = []
        while self._queue and len(fresh) < batch_size:
            start = self._queue.popleft()
            if start // streams >= begin[start % streams]:  # else evicted
                fresh.append(start)
        if len(fresh) == batch_size:
            return torch.tensor(fresh)
        rest = self._uniform.draw(windows, batch_size - len(fresh), generator)
        return torch.cat([torch.tensor(fresh, dtype=torch.int64), rest])

    def _enqueue(self, windows: Windows) -> None:
        if self._next is None:
            self._next = windows.begin.clone()
        start = torch.maximum(self._next, windows.begin).tolist()
        stride = self.stride or windows.length
        ripe = []
        for stream, end in enumerate(windows.end.tolist()):
            while start[stream] + windows.length <= end:
                # How long ago it was finished decides the order among streams.
                ripe.append((start[stream] + windows.length - end, stream, start[stream]))
                start[stream] += stride
        self._next = torch.tensor(start)
        streams = len(start)
        self._queue.extend(position * streams + stream for _, stream, position in sorted(ripe))
        if len(self._queue) > streams * windows.capacity // stride + streams:  # more than can be held
            begin = windows.begin.tolist()
            self._queue = deque(s for s in self._queue if s // streams >= begin[s % streams])

    def state_dict(self) -> dict[str, Any]:
        """The queue and each stream's next fresh window."""
        return {"next": None if self._next is None else self._next.clone(), "queue": list(self._queue)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; of a sampler without a queue, everything held is fresh."""
        self._next = state.get("next")
        self._queue = deque(state.get("queue", ()))


class VisitBalanced:
    """Seldom visited starts are likelier (TWM, arXiv:2303.07109): ``p = softmax(-visits / tau)``.

    Drawn without replacement by the Gumbel top-k trick in its exponential form: the k smallest
    of ``E * exp(visits / tau)`` with ``E ~ Exp(1)``, which is exactly sequential sampling
    without replacement. Only the start of a window counts as visited. Where a batch asks for
    more starts than there are, whole rounds are repeated.

    Args:
        temperature: tau in visits, 0.001 or more; 20 in TWM. ``inf`` is uniform without replacement.
        device: where counts are kept and starts chosen; by default where the replay lies. Elsewhere one
            copy of the chosen starts comes back per draw, and nothing else waits. A run names its own
            device, if that is CUDA.

    Raises:
        ConfigError: ``temperature`` is too small.

    >>> windows = Windows(torch.tensor([0]), torch.tensor([5]), capacity=8, length=2)
    >>> sorted(VisitBalanced().draw(windows, 4, torch.Generator().manual_seed(0)).tolist())
    [0, 1, 2, 3]
    """

    def __init__(self, temperature: float = 20.0, device: str | torch.device | None = None):
        check_range("temperature", temperature, 1e-3)
        self.temperature = temperature
        self.device = None if device is None else torch.device(device)
        self._visits: Tensor | None = None  # int32 [S, C]
        self._seen: list[int] | None = None  # [S], one past the newest record whose slot was cleared
        self._generator: Generator | None = None  # of a device that the replay's is not on
        self._states: dict[str, Tensor] = {}  # its state as loaded, by kind of device
        self._stream: torch.cuda.Stream | None = None  # of draws on CUDA

    def draw(self, windows: Windows, batch_size: int, generator: Generator) -> Tensor:
        """int64 ``[batch_size]`` ids on the host, distinct where there are enough starts."""
        begin, end = windows.begin.tolist(), windows.end.tolist()  # the host's own
        counts = [max(0, new - old - windows.length + 1) for old, new in zip(begin, end, strict=True)]
        if not any(counts):
            return Uniform().draw(windows, batch_size, generator)  # raises
        with self._beside():
            visits = self._forget(windows)
            never = torch.full(visits.shape, torch.inf, device=visits.device)
            for row, first, count in zip(never, begin, counts, strict=True):
                for piece in _ring(first, count, windows.capacity):
                    row[piece].zero_()
            source = self._source(visits.device, generator)
            slot = self._choose(visits, never, batch_size, sum(counts), source)
            # The only wait for the device: records are read where the replay lies.
            stream, column = slot.to(windows.begin.device)
        oldest = windows.begin[stream]
        return windows.ids(stream, oldest + (column - oldest) % windows.capacity)

    def _beside(self) -> AbstractContextManager[Any]:
        """On CUDA a stream of its own: a draw does not wait for the update before it."""
        if self.device is None or self.device.type != "cuda":
            return nullcontext()
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        return torch.cuda.stream(self._stream)

    def _choose(
        self, visits: Tensor, never: Tensor, batch_size: int, total: int, generator: Generator | None
    ) -> Tensor:
        """Streams and slots of starts, int64 ``[2, batch_size]``, and count them as visited.

        Every slot ``[S, C]`` takes part; of those that are no start, ``never`` is infinite, of the ``total``
        others zero.
        """
        least = (visits + never).amin()
        weight = ((visits - least) / self.temperature).exp_()
        chosen = []
        for left in range(batch_size, 0, -total):
            # Exponential times from uniforms in float64, as only small ones are taken: near one, float32 is
            # coarse. Torch's own exponential_ takes three times as long on a CPU.
            uniform = torch.empty_like(weight, dtype=torch.float64).uniform_(generator=generator)
            arrival = uniform.log_().neg_().float().mul_(weight)
            arrival = arrival.clamp_max_(torch.finfo(arrival.dtype).max).add_(never)
            chosen.append(arrival.view(-1).topk(min(left, total), largest=False).indices)
        slot = torch.cat(chosen)
        slot = torch.stack([slot // visits.shape[1], slot % visits.shape[1]])
        visits.index_put_(tuple(slot), torch.ones_like(slot[0], dtype=visits.dtype), accumulate=True)
        return slot

    def _forget(self, windows: Windows) -> Tensor:
        """Counts of all slots that were ever written, zero where new records came since the last draw."""
        device = windows.begin.device if self.device is None else self.device
        ends, capacity = windows.end.tolist(), windows.capacity
        if self._visits is None or self._seen is None:
            self._visits = torch.zeros(len(ends), capacity, dtype=torch.int32, device=device)
            self._seen = ends
        self._visits = self._visits.to(device)
        for row, old, new in zip(self._visits, self._seen, ends, strict=True):
            fresh = min(new - old, capacity)
            for piece in _ring(new - fresh, fresh, capacity):
                row[piece].zero_()
        self._seen = ends
        return self._visits[:, : min(capacity, max(ends))]

    def _source(self, device: torch.device, generator: Generator) -> Generator | None:
        """The replay's generator, or on another device one that it seeds."""
        if device == generator.device:
            return generator
        if self._generator is None:
            seed = torch.randint(2**63 - 1, (), generator=generator)
            self._generator = Generator(device).manual_seed(int(seed))
            if device.type in self._states:
                self._generator.set_state(self._states[device.type])
        return self._generator

    def state_dict(self) -> dict[str, Any]:
        """Visit counts per slot, up to where they are current; by device, the state of an own generator."""
        visits = None if self._visits is None else self._visits.cpu()
        seen = None if self._seen is None else torch.tensor(self._seen)
        states = self._states
        if self._generator is not None:
            states = {self._generator.device.type: self._generator.get_state()}
        return {"visits": visits, "seen": seen, "generator": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; of another device's, all but its generator."""
        self._visits, seen = state["visits"], state["seen"]
        self._seen = None if seen is None else seen.tolist()
        self._generator, self._states = None, state.get("generator", {})


def _ring(first: int, count: int, capacity: int) -> tuple[slice, slice]:
    """Slots of ``count`` positions from ``first`` on, in a ring: up to its end, and again from its start."""
    start = first % capacity
    return slice(start, start + count), slice(0, max(0, start + count - capacity))
