"""Replay as streams of arrival-aligned records, in memory or memory-mapped on disk.

Each environment writes one stream, a ring of ``C`` records. Windows are consecutive records of
one stream and cross episode borders; ``is_init`` tells where. A record is known by a global id
that never comes back, so patches to evicted records are dropped in silence.

Crash safety. One process writes. Every :meth:`ReplayStreams.extend` first moves the oldest
position past what it will overwrite, then writes the data, then moves the newest position;
positions change together, by one 8-byte store that picks one of two copies. A process killed
between any two instructions therefore leaves every record of every finished ``extend`` and
none that is half written. (The guarantee is against a dying process, not a dying kernel.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from wmkit.data.files import LARGEST, need
from wmkit.data.reservation import Reservation
from wmkit.data.samplers import Sampler, Uniform, Windows
from wmkit.data.schema import (
    Field,
    Key,
    Options,
    as_half,
    as_key,
    check_nothing_written,
    check_options,
    first_difference,
    load_schema,
    plain,
    save_schema,
)
from wmkit.data.storage import ADVICE, Column, Counters, reserve
from wmkit.errors import CheckpointError, SpecError

NOBODY = -1


class ReplayStreams:
    """Ring buffers of records, one per environment, sampled as windows ``[B, L]``.

    The first record fixes the schema; with a directory it is saved, and opening the directory
    again continues exactly where the last finished ``extend`` ended.

    Args:
        directory: where the memory maps lie (made if missing); None keeps records in memory.
        num_streams: streams S, one per environment.
        capacity: records over all streams; each keeps its newest ``capacity // S``.
        sparse: nested group to the share of records that may have it. The group ``"zoomed"``
            is stored only where the record's flag ``"is_zoomed"`` is true, and read back dense
            with zeros elsewhere. Where a ring of that size overflows, the oldest entries go and
            their flags read False. Groups that records lack are ignored.
        one_hot: key to classes per group: ``{"state": 32}`` stores a flat ``[G * 32]`` one-hot
            latent as G class indices. Lossless.
        half: key to the half precision it is stored in, for example ``{"belief": "bfloat16"}``; keys
            alone mean float16. Lossy (relative error 2**-8, 2**-11) unless the value was carried so.
        sampler: which windows :meth:`sample` draws; :class:`~wmkit.data.samplers.Uniform` by default.
        seed: of the sampling generator.

    Raises:
        CheckpointError: the directory holds a replay with other options.

    >>> streams = ReplayStreams(num_streams=1, capacity=100)
    >>> flags = torch.zeros(10, 1, dtype=torch.bool)
    >>> records = TensorDict({"pixels": torch.zeros(10, 3, 64, 64, dtype=torch.uint8),
    ...                       "is_init": flags, "done": flags}, [10])
    >>> streams.extend(records, stream=0)[-1]
    tensor(9)
    >>> batch = streams.sample(batch_size=4, length=8)
    >>> batch["pixels"].shape, batch["index"].shape
    (torch.Size([4, 8, 3, 64, 64]), torch.Size([4, 8]))
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        num_streams: int,
        capacity: int,
        sparse: Mapping[str, float] | None = None,
        one_hot: Mapping[str, int] | None = None,
        half: Mapping[str, str] | Iterable[str] = (),
        sampler: Sampler | None = None,
        seed: int = 0,
    ):
        rows = capacity // num_streams
        if rows < 2:
            raise SpecError(
                f"replay capacity is too small: found {capacity} records for {num_streams} streams, "
                "wanted at least 2 per stream; raise capacity"
            )
        sparse = {"zoomed": 0.25} if sparse is None else sparse
        slots = {name: max(1, round(share * rows * num_streams)) for name, share in sparse.items()}
        options = Options(num_streams, rows, slots, dict(one_hot or {}), as_half(half))
        self.sampler: Sampler = sampler or Uniform()
        self.generator = torch.Generator().manual_seed(seed)
        self.directory = None if directory is None else Path(directory)
        found = None
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            found = load_schema(self.directory)
            if found is None:
                check_nothing_written(self.directory)
        if found is not None and self.directory is not None:
            check_options(self.directory, found[0], options)
        self._start(options, found[1] if found else None)

    @classmethod
    def open(cls, directory: str | Path, *, sampler: Sampler | None = None, seed: int = 0) -> ReplayStreams:
        """Open what lies in ``directory`` with the options it was made with.

        Raises:
            CheckpointError: there is no replay.
        """
        found = load_schema(Path(directory))
        if found is None:
            raise CheckpointError(
                f"replay {directory} does not exist: found no schema.json, wanted a directory that "
                "ReplayStreams wrote; check the path"
            )
        self = cls.__new__(cls)
        self.sampler = sampler or Uniform()
        self.generator = torch.Generator().manual_seed(seed)
        self.directory = Path(directory)
        self._start(*found)
        return self

    def _start(self, options: Options, fields: dict[Key, Field] | None) -> None:
        self.options = options
        self.num_streams, self.capacity = options.num_streams, options.capacity
        self._fields: dict[Key, Field] = {}
        self._signature: tuple = ()
        self._reopened = fields is not None
        self._counters = Counters(3 * self.num_streams + len(options.sparse))
        self._place: Reservation | None = None
        self._to_set_aside = False
        if fields is not None:
            self._allocate(fields, create=False)

    def _allocate(self, fields: dict[Key, Field], *, create: bool) -> None:
        directory, rows = self.directory, self.num_streams * self.capacity
        present = {key[0] for key in fields if len(key) > 1}
        self._groups = [name for name in self.options.sparse if name in present]
        self._columns: dict[Key, Column] = {}
        for key, field in fields.items():
            sparse = key[0] in self._groups
            size = self.options.sparse[key[0]] + 1 if sparse else rows  # the last one stays zero
            self._columns[key] = Column(field, size, directory, create=create)
            if create and sparse:
                reserve(self._columns[key], size - 1, 1)
                self._columns[key].values[-1] = 0
        self._dense = [c for key, c in self._columns.items() if key[0] not in self._groups]
        self._sparse = {n: [c for key, c in self._columns.items() if key[0] == n] for n in self._groups}
        self._slot: dict[str, np.ndarray] = {}  # which slot a record's entry lies in
        self._owner: dict[str, np.ndarray] = {}  # whose entry a slot holds; anything else is stale
        aside = list(self._dense)
        for name in self._groups:
            slot, owner = (Field((of, name), (), torch.int64) for of in ("_slots", "_owners"))
            slots = Column(slot, rows, directory, create=create)
            owners = Column(owner, self.options.sparse[name] + 1, directory, create=create)
            aside.append(slots)
            self._slot[name], self._owner[name] = slots.values, owners.values
            if create:
                reserve(owners, 0, len(owners.values))
                self._owner[name][:] = NOBODY
        path = None if directory is None else directory / "counters.memmap"
        self._counters = Counters(3 * self.num_streams + len(self.options.sparse), path, create=create)
        if not create:
            self._check_counters()
        self._place = Reservation(
            aside,
            self.capacity,
            self._begin.tolist(),
            {name: self._sparse.get(name, []) for name in self.options.sparse},
            self.options.sparse,
            self._used.tolist(),
        )
        self._to_set_aside = not create
        if create and directory is not None:
            save_schema(directory, self.options, fields)
        self._fields = fields

    def _check_counters(self) -> None:
        """Refuse counters and slots of files that no finished :meth:`extend` left so."""
        begin, end, steps = self._begin, self._end, self._steps
        fits = (
            (begin >= 0)
            & (begin <= end)
            & (end - begin <= self.capacity)
            & (end < LARGEST // self.num_streams)
        )
        fits &= (steps >= 0) & (steps <= end)
        thing = f"counters.memmap of replay {str(self.directory)!r}"
        found = self._counters.live.tolist()
        need(bool(fits.all()) and bool((self._used >= 0).all()), thing, found, "positions of records", ADVICE)
        rows = [
            stream * self.capacity + np.arange(first, last) % self.capacity
            for stream, (first, last) in enumerate(zip(begin.tolist(), end.tolist(), strict=True))
        ]  # a page that was never written is left alone: to read it may take room as well
        for name, slot in self._slot.items():
            size, slots = self.options.sparse[name], slot[np.concatenate(rows)]
            thing = f"_slots/{name}.memmap of replay {str(self.directory)!r}"
            wrong = slots[(slots < 0) | (slots > size)]
            need(not len(wrong), thing, wrong[:3].tolist(), f"slots from 0 to {size}", ADVICE)

    def _set_aside(self) -> None:
        """The place of records that a replay held when it was opened, which a copy may have lost."""
        self._to_set_aside = False
        for stream, end in enumerate(self._end.tolist()):
            self._set_aside_until(stream, end, self._used)

    def _set_aside_until(self, stream: int, end: int, used: np.ndarray) -> None:
        assert self._place is not None  # since there is a schema
        self._place.ensure(stream, end, used.tolist())

    @property
    def _begin(self) -> np.ndarray:
        """[S], position of the oldest record of each stream."""
        return self._counters.live[: self.num_streams]

    @property
    def _end(self) -> np.ndarray:
        """[S], one past the position of the newest."""
        return self._counters.live[self.num_streams : 2 * self.num_streams]

    @property
    def _steps(self) -> np.ndarray:
        """[S], records written that do not start an episode."""
        return self._counters.live[2 * self.num_streams : 3 * self.num_streams]

    @property
    def _used(self) -> np.ndarray:
        """[sparse groups], entries written."""
        return self._counters.live[3 * self.num_streams :]

    # ------------------------------------------------------------------ counts

    def stream_steps(self) -> list[int]:
        """Environment steps written to each stream, ``[S]``."""
        return self._steps.tolist()

    @property
    def total_records(self) -> int:
        """Records written since the beginning, evicted ones included."""
        return int(self._end.sum())

    @property
    def total_steps(self) -> int:
        """Environment steps written: records that are not the first of an episode."""
        return int(self._steps.sum())

    def __len__(self) -> int:
        """Records held now."""
        return int((self._end - self._begin).sum())

    def bytes_by_key(self) -> dict[str, int]:
        """Bytes that all records this replay can hold take, by key; nothing before the first record.

        They are counted in full: files are sparse and their place is set aside step by step, so that a
        replay takes them only as it fills.
        """
        return self.options.bytes_by_key(self._fields) if self._fields else {}

    def fields(self) -> list[Field]:
        """What a record consists of; nothing before the first one."""
        return list(self._fields.values())

    def encodings(self) -> dict[str, str]:
        """How keys are stored that are not as in the record: ``" (float32 [128] as uint8 [32])"``."""
        found = {}
        for field in self._fields.values():
            shape, dtype = field.stored
            if field.encoding != "raw":
                before = f"{plain(field.dtype)} {list(field.shape)}"
                found[field.name] = f" ({before} as {plain(dtype)} {list(shape)})"
        return found

    def windows(self, length: int) -> Windows:
        """Where each stream begins and ends, for samplers."""
        begin, end = torch.from_numpy(self._begin.copy()), torch.from_numpy(self._end.copy())
        return Windows(begin, end, self.capacity, length)

    def num_windows(self, length: int) -> int:
        """Valid starts of windows of ``length`` records over all streams."""
        return int(self.windows(length).count.sum())

    def ids(self, stream: int) -> Tensor:
        """Ids of the records that ``stream`` holds, oldest first; int64 ``[n]``."""
        return torch.arange(int(self._begin[stream]), int(self._end[stream])) * self.num_streams + stream

    # ------------------------------------------------------------------ writing

    def extend(self, records: TensorDictBase, stream: int) -> Tensor:
        """Append records in order of time.

        ``done`` is set on the last record of an episode that was abandoned, that is, where the
        next record ``is_init``. The caller's tensors are left alone.

        Args:
            records: ``[n]``, with at least ``is_init`` and ``done`` (bool ``[n, 1]``).
            stream: which stream, 0 to S - 1.

        Returns:
            int64 ``[n]``, the records' ids.

        Raises:
            SpecError: keys, shapes or dtypes differ from the schema.
            CheckpointError: the same, in a directory that was reopened; or its disk is full.
        """
        self._check(records, stream)
        pieces = records.split(self.capacity) if len(records) > self.capacity else [records]
        return torch.cat([self._append(piece, stream) for piece in pieces])

    def _check(self, records: TensorDictBase, stream: int) -> None:
        if records.ndim != 1 or not 0 <= stream < self.num_streams:
            raise SpecError(
                f"replay takes records of one stream: found batch size {list(records.batch_size)} and "
                f"stream {stream}, wanted [n] and 0 to {self.num_streams - 1}; extend each stream by itself"
            )
        items = records.items(include_nested=True, leaves_only=True)
        signature = tuple((key, value.shape[1:], value.dtype) for key, value in items)
        if signature == self._signature:
            return
        fields = self.options.fields(records)
        if not self._fields:
            for name in ("is_init", "done", *(f"is_{g}" for g in self.options.sparse if g in records)):
                if fields.get((name,)) != Field((name,), (1,), torch.bool):
                    found = fields[(name,)].describe() if (name,) in fields else "nothing"
                    raise SpecError(
                        f"replay record lacks its flag {name!r}: found {found}, wanted bool [1]; "
                        "convert collected data with StreamWriter or to_sequence"
                    )
            self._allocate(fields, create=True)
        elif difference := first_difference(self._fields, fields):
            if self._reopened:
                raise CheckpointError(
                    f"replay {self.directory} holds records of another schema: {difference}; "
                    "resume with the system and environment that wrote it, or choose another directory"
                )
            raise SpecError(
                f"replay record differs from the first one: {difference}; write the same keys every time"
            )
        self._signature = signature

    def _append(self, records: TensorDictBase, stream: int) -> Tensor:
        n, end = len(records), int(self._end[stream])
        index = np.arange(end, end + n) * self.num_streams + stream
        if n == 0:
            return torch.from_numpy(index)
        if self._to_set_aside:
            self._set_aside()
        self._set_aside_until(stream, end + n, self._used + n)
        oldest = end + n - self.capacity
        if oldest > self._begin[stream]:
            self._begin[stream] = oldest
            self._counters.commit()
        base = stream * self.capacity
        first = base + end % self.capacity
        head = min(n, base + self.capacity - first)  # records before the ring wraps
        is_init = records.get("is_init")
        for column in self._dense:
            value = records.get(column.field.key)
            if column.field.key == ("done",) and n > 1:
                value = torch.cat([value[:-1] | is_init[1:], value[-1:]])
            column[first : first + head] = value if head == n else value[:head]
            if head < n:
                column[base : base + n - head] = value[head:]
        for name in self._groups:
            slots = self._append_sparse(name, records, index)
            self._slot[name][first : first + head] = slots[:head]
            self._slot[name][base : base + n - head] = slots[head:]
        starts = is_init.view(-1).cpu().numpy()
        if starts[0] and end > self._begin[stream]:
            self._columns[("done",)].values[base + (end - 1) % self.capacity] = True
        self._end[stream] = end + n
        self._steps[stream] += n - starts.sum()
        self._counters.commit()
        return torch.from_numpy(index)

    def _append_sparse(self, name: str, records: TensorDictBase, index: np.ndarray) -> np.ndarray:
        """Write the flagged rows of a group; their slots int64 ``[n]``, the row of zeros for the others."""
        size = self.options.sparse[name]
        slots = np.full(len(index), size)
        rows = records.get(f"is_{name}").view(-1).cpu().numpy().nonzero()[0][-size:]
        if len(rows):
            used = list(self.options.sparse).index(name)
            target = (self._used[used] + np.arange(len(rows))) % size
            self._owner[name][target] = NOBODY  # while it is being written
            for column in self._sparse[name]:
                column[target] = records.get(column.field.key)[torch.from_numpy(rows)]
            self._owner[name][target] = index[rows]
            slots[rows] = target
            self._used[used] += len(rows)
        return slots

    def patch(self, indices: Tensor, values: TensorDictBase) -> int:
        """Overwrite some keys of records that are still here; evicted ones are skipped.

        Used for stored latents and for Δ and G of long-branch pairs. Flags are written after
        all other keys, so that a crash never leaves a flag raised over old values.

        Args:
            indices: int64 ids, any shape ``[*B]``; of equal ones the last counts.
            values: TensorDict ``[*B]`` of dense keys of the schema.

        Returns:
            How many records were patched.

        Raises:
            SpecError: a key is not one of the schema's dense keys.
        """
        index = indices.detach().reshape(-1).cpu().numpy()
        stream, position = index % self.num_streams, index // self.num_streams
        here = ((position >= self._begin[stream]) & (position < self._end[stream])).nonzero()[0]
        if len(here) == 0:
            return 0
        if self._to_set_aside:
            self._set_aside()
        rows = (stream * self.capacity + position % self.capacity)[here]
        pairs = []
        for key in values.keys(include_nested=True, leaves_only=True):
            column = self._columns.get(as_key(key))
            if column is None or column not in self._dense:
                raise SpecError(
                    f"replay cannot patch key {key!r}: wanted one of "
                    f"{', '.join(c.field.name for c in self._dense)}; sparse groups are written once"
                )
            pairs.append((column, values.get(key)))
        for column, value in sorted(pairs, key=lambda pair: pair[0].field.dtype == torch.bool):
            flat = value.reshape(-1, *column.field.shape)
            column[rows] = flat if len(here) == len(flat) else flat[torch.from_numpy(here)]
        return len(here)

    # ------------------------------------------------------------------ reading

    def sample(
        self,
        batch_size: int,
        length: int,
        *,
        force_init: bool = False,
        keys: Iterable[str | Key] | None = None,
        out: TensorDictBase | None = None,
        sampler: Sampler | None = None,
    ) -> TensorDictBase:
        """Windows of consecutive records of one stream, drawn by the sampler.

        Args:
            batch_size: windows B.
            length: records L per window, context records included.
            force_init: treat index 0 of every window as the start of an episode: ``is_init``
                true and ``previous_action`` zero (DreamerV3 of 2023 and LS-Imagine, which store no
                latents); the reward stays, since it was received. Otherwise flags come back as written.
            keys: top-level keys to read; None reads all.
            out: a batch of the same B, L and keys whose memory is used again. Fresh memory costs
                as much as the copy, because the system hands it out page by page.
            sampler: draws instead of the stream's own, whose state stays as it is.

        Returns:
            TensorDict ``[B, L]`` with every key dense, and ``index`` int64 ``[B, L]``.

        Raises:
            SpecError: no stream holds L records yet.
        """
        sampler = sampler or self.sampler
        start = sampler.draw(self.windows(length), batch_size, self.generator)  # [B]
        batch = self.get(start.unsqueeze(1) + self.num_streams * torch.arange(length), keys=keys, out=out)
        if force_init:
            for key, value in (("is_init", True), ("previous_action", 0)):
                if (flags := batch.get(key, None)) is not None:
                    flags[:, 0] = value
        return batch

    def get(
        self, indices: Tensor, *, keys: Iterable[str | Key] | None = None, out: TensorDictBase | None = None
    ) -> TensorDictBase:
        """Records by id, of any shape ``[*B]``.

        Args:
            indices: int64 ids that are still held (see :meth:`ids`).
            keys: as in :meth:`sample`.
            out: as in :meth:`sample`.
        """
        index = indices.reshape(-1).numpy()
        rows = index % self.num_streams * self.capacity + index // self.num_streams % self.capacity
        wanted = None if keys is None else {as_key(key)[0] for key in keys}
        columns = [c for c in self._columns.values() if wanted is None or c.field.key[0] in wanted]
        slots = {name: self._slots(name, rows, index) for name in self._groups}
        if out is None:
            out = self._empty(columns, indices.shape)
        for column in columns:
            key = column.field.key
            column.take(slots.get(key[0], rows), out.get(key).view(len(rows), *column.field.shape))
        for name, slot in slots.items():
            if wanted is None or f"is_{name}" in wanted:
                out.get(f"is_{name}").view(-1).logical_and_(
                    torch.from_numpy(slot < self.options.sparse[name])
                )
        out.get("index").copy_(indices)
        return out

    def _slots(self, name: str, rows: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Where each record's entry lies; the row of zeros after the ring where it has none any more."""
        slot, nothing = self._slot[name][rows], self.options.sparse[name]
        return np.where(self._owner[name][slot] == index, slot, nothing)

    @staticmethod
    def _empty(columns: list[Column], shape: torch.Size) -> TensorDict:
        tree: dict[str, Any] = {"index": torch.empty(shape, dtype=torch.int64)}
        for column in columns:
            branch = tree
            for part in column.field.key[:-1]:
                branch = branch.setdefault(part, {})
            branch[column.field.key[-1]] = torch.empty(
                (*shape, *column.field.shape), dtype=column.field.dtype
            )
        return TensorDict(tree, batch_size=shape)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """The generator and the sampler; the records themselves stay in the directory."""
        return {"generator": self.generator.get_state(), "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.generator.set_state(state["generator"])
        self.sampler.load_state_dict(state["sampler"])
