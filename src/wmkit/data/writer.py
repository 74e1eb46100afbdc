"""From a collector to replay: batches joined, late latents patched, long-branch pairs resolved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from wmkit.data.layout import EXCLUDE, LATENTS, Chunk, to_chunks
from wmkit.data.schema import Key, as_key
from wmkit.errors import SpecError


class Streams(Protocol):
    """The store that :class:`StreamWriter` writes to."""

    num_streams: int

    def extend(self, records: TensorDictBase, stream: int) -> Tensor:
        """Append records, return their ids."""

    def patch(self, indices: Tensor, values: TensorDictBase) -> int:
        """Overwrite keys of records."""

    def ids(self, stream: int) -> Tensor:
        """Ids of the records held, oldest first."""


class Pairs(Protocol):
    """The part of :class:`wmkit.data.PendingPairs` that :class:`StreamWriter` uses."""

    max_steps: int

    def process(self, records: TensorDictBase, stream: int, first_index: int) -> Iterable[Tensor]:
        """Resolve pairs: positions in the stream, Delta, normalised G, each ``[n]``."""


@dataclass(frozen=True)
class Written:
    """The addition of :meth:`StreamWriter.write` to one stream: records ``[n]`` and their ids ``[n]``."""

    stream: int
    index: Tensor
    records: TensorDict


class StreamWriter:
    """Append a collector's batches to replay streams, one environment per stream.

    Consecutive batches of an environment join without loss or repetition, and latents that the
    policy computes one batch later are patched in. Where a batch neither starts an episode nor
    continues an earlier one (a restarted collector), its first record is marked ``is_init``.

    Args:
        streams: a :class:`~wmkit.data.ReplayStreams` or anything with its ``extend`` and ``patch``.
        defaults: keys that every record gets where the transitions lack them, as values without
            batch dimensions: for example latents that a random policy does not write.
        pairs: a :class:`~wmkit.data.PendingPairs`; every record then has ``jump_steps``,
            ``jump_return`` and ``jump_resolved``, patched when its pair is resolved.
        action: key of the action at the root.
        latents: root keys that the policy writes.
        exclude: top-level keys that replay does not keep.

    >>> from wmkit.data import ReplayStreams
    >>> streams = ReplayStreams(num_streams=2, capacity=100)
    >>> writer = StreamWriter(streams)
    >>> flag = torch.zeros(2, 3, 1, dtype=torch.bool)
    >>> batch = TensorDict({
    ...     "pixels": torch.zeros(2, 3, 1), "action": torch.ones(2, 3, 4), "is_init": flag, "next": {
    ...     "pixels": torch.zeros(2, 3, 1), "reward": torch.ones(2, 3, 1), "done": flag, "terminated": flag}},
    ...     [2, 3])
    >>> [len(written.records) for written in writer.write(batch)]
    [4, 4]
    >>> [len(written.records) for written in writer.write(batch)]
    [3, 3]
    """

    def __init__(
        self,
        streams: Streams,
        *,
        defaults: Mapping[str | Key, Tensor] | None = None,
        pairs: Pairs | None = None,
        action: str = "action",
        latents: Sequence[str] = LATENTS,
        exclude: Iterable[str] = EXCLUDE,
    ):
        self.streams = streams
        self.defaults = {as_key(key): value for key, value in (defaults or {}).items()}
        self.pairs = pairs
        if pairs is not None:
            self.defaults[("jump_steps",)] = torch.full((1,), float(pairs.max_steps))
            self.defaults[("jump_return",)] = torch.zeros(1)
            self.defaults[("jump_resolved",)] = torch.zeros(1, dtype=torch.bool)
        self.action, self.latents, self.exclude = action, tuple(latents), tuple(exclude)
        self._last: dict[int, Tensor] = {}  # id [1] of each stream's newest record

    def write(self, transitions: TensorDictBase, streams: Sequence[int] | None = None) -> list[Written]:
        """Write a batch ``[*B, T]``.

        Args:
            transitions: as a collector returns it.
            streams: the stream of each environment of the flattened ``*B``; None is 0, 1, 2, …

        Returns:
            What was added, per environment.

        Raises:
            SpecError: as many streams as environments are needed; or a key is missing.
        """
        number = transitions.batch_size[:-1].numel()
        streams = range(number) if streams is None else streams
        if len(streams) != number or number > self.streams.num_streams:
            raise SpecError(
                f"collector batch does not fit the replay: found {number} environments for {len(streams)} "
                f"of {self.streams.num_streams} streams, wanted one stream each; make the replay with "
                f"num_streams={number}"
            )
        chunks = to_chunks(
            transitions,
            [stream in self._last for stream in streams],
            action=self.action,
            latents=self.latents,
            exclude=self.exclude,
        )
        return [self._write(chunk, stream) for chunk, stream in zip(chunks, streams, strict=True)]

    def go_on(self) -> None:
        """The next batch joins what the streams hold, as if this writer had written it."""
        held = {stream: self.streams.ids(stream)[-1:] for stream in range(self.streams.num_streams)}
        self._last = {stream: last for stream, last in held.items() if len(last)}

    def _write(self, chunk: Chunk, stream: int) -> Written:
        records = chunk.records
        if chunk.latents is not None:
            self.streams.patch(self._last[stream], chunk.latents)
        if stream not in self._last:
            records.get("is_init")[0] = True
        for key, value in self.defaults.items():
            if records.get(key, None) is None:
                records.set(key, value.expand(len(records), *value.shape).clone())
        index = self.streams.extend(records, stream)
        self._last[stream] = index[-1:]
        if self.pairs is not None:
            self._resolve(self.pairs, records, stream, int(index[0]) // self.streams.num_streams)
        return Written(stream, index, records)

    def _resolve(self, pairs: Pairs, records: TensorDict, stream: int, first: int) -> None:
        position, steps, jump_return = pairs.process(records, stream, first)
        if position.numel():
            values = {
                "jump_steps": steps.unsqueeze(-1),
                "jump_return": jump_return.unsqueeze(-1),
                "jump_resolved": torch.ones(len(position), 1, dtype=torch.bool),
            }
            ids = position * self.streams.num_streams + stream
            self.streams.patch(ids, TensorDict(values, batch_size=[len(position)]))
