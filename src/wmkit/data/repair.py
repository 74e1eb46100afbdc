"""NaN and infinity in a replay: finding the records, and mending them where they lie.

A record cannot be taken out of a stream: windows are consecutive, and ids count positions. One that holds
NaN in what an environment showed is cut off instead: it becomes an episode of its own, without action, reward
or transition, showing what the record beside it showed::

    before   o3 a2 r3 | NaN a3 r4       | o5 a4 r5 |
    after    o3 a2 r3 | o3  -  - (init) | o5 -  -  (init) |     o3 done (truncated), o5 begins an episode

Every other record keeps every value, except that latents (``state``, ``belief``) which are not finite
become zeros: a policy that was shown NaN carries it on to the end of its episode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from wmkit.data.layout import LATENTS
from wmkit.data.streams import ReplayStreams

CHUNK = 4096  # records read at a time


@dataclass
class NotFinite:
    """Records of a replay that hold NaN or infinity; false if none does.

    Attributes:
        shown: ids by key, of what environments showed or paid; int64 ``[n]`` each.
        latents: ids of those of which only latents are not finite.
    """

    shown: dict[str, Tensor] = field(default_factory=dict)
    latents: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def __bool__(self) -> bool:
        return bool(self.shown) or bool(len(self.latents))

    @property
    def ids(self) -> Tensor:
        """Of all records of ``shown``, in order."""
        return torch.cat([*self.shown.values(), self.latents[:0]]).unique()

    def words(self, num_streams: int) -> Iterator[str]:
        """A line per key: how many, and the first of them."""
        for key, ids in self.shown.items():
            first = int(ids[0])
            yield (
                f"{key!r} is not finite in {len(ids):,} records, first in environment {first % num_streams}, "
                f"record {first // num_streams}"
            )
        if len(self.latents):
            yield f"latents are not finite in {len(self.latents):,} more records"

    def advice(self, run: Path) -> str:
        """The sentence for a run that cannot learn from these."""
        count, keys = len(self.ids) or len(self.latents), ", ".join(map(repr, self.shown)) or "its latents"
        return (
            f"replay of run {str(run)!r} holds NaN or infinity: found {count:,} such records, in {keys}, "
            f"wanted finite numbers; clean it with `wmkit data check {run} --repair`, then resume"
        )


def not_finite(streams: ReplayStreams, *, latents: bool = False) -> NotFinite:
    """Records that hold NaN or infinity.

    Args:
        streams: an open replay.
        latents: look at the stored latents as well, which are large.

    >>> streams = ReplayStreams(num_streams=1, capacity=100)
    >>> flags = torch.zeros(3, 1, dtype=torch.bool)
    >>> reward = torch.tensor([[0.0], [float("nan")], [1.0]])
    >>> _ = streams.extend(TensorDict({"reward": reward, "is_init": flags, "done": flags}, [3]), stream=0)
    >>> not_finite(streams).shown
    {'reward': tensor([1])}
    """
    floats = [
        f for f in streams.fields() if f.dtype.is_floating_point and f.key[0] not in streams.options.sparse
    ]
    dense = [f.key for f in floats if f.key[0] not in LATENTS]
    carried = [f.key for f in floats if f.key[0] in LATENTS] if latents else []
    found: dict[str, list[Tensor]] = {}
    of_latents: list[Tensor] = []
    for ids in _chunks(streams) if dense or carried else ():
        records = streams.get(ids, keys={key[0] for key in (*dense, *carried)})
        whole = torch.zeros(len(ids), dtype=torch.bool)
        for key in dense:
            if (bad := _bad(records, key)).any():
                found.setdefault("/".join(key), []).append(ids[bad])
                whole |= bad
        for key in carried:
            if (bad := _bad(records, key) & ~whole).any():
                of_latents.append(ids[bad])
    spent = torch.cat(of_latents).unique() if of_latents else torch.zeros(0, dtype=torch.int64)
    return NotFinite({key: torch.cat(ids) for key, ids in found.items()}, spent)


def repair(
    streams: ReplayStreams, found: NotFinite, keep: Callable[[TensorDictBase], object] = lambda records: None
) -> TensorDictBase:
    """Cut the records of :func:`not_finite` off, see above.

    Args:
        streams: an open replay, which no other process writes to.
        found: with latents.
        keep: is given what will change, as it is, before anything does.

    Returns:
        TensorDict ``[n]`` of the records that changed, as they were, with their ``index``.
    """
    count, bad = streams.num_streams, set(found.ids.tolist())
    here = {i for stream in range(count) for i in streams.ids(stream).tolist()}
    beside = {i + step for i in bad for step in (-count, count)} & here
    touched = torch.tensor(sorted(bad | beside | set(found.latents.tolist())), dtype=torch.int64)
    before = streams.get(touched)
    keep(before)
    after = before.clone()
    place = {index: row for row, index in enumerate(touched.tolist())}
    for index in sorted(bad):
        row = after[place[index]]
        near = _nearest(index, count, here - bad)
        known = streams.get(torch.tensor([near]))[0] if near is not None else None
        for f in streams.fields():
            if f.dtype.is_floating_point and f.key[0] not in streams.options.sparse:
                value = row.get(f.key)
                if bool(_wrong(value, f.key).any()):
                    value.copy_(known.get(f.key) if known is not None else torch.zeros_like(value))
        _begin(row, done=True)
        if (next_one := index + count) in place and next_one not in bad:
            _begin(after[place[next_one]], done=None)
        if (last := index - count) in place and last not in bad:
            after[place[last]].get("done").fill_(True)
    for name in LATENTS:
        value = after.get(name, None)
        if value is not None:
            value.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    dense = [f.key for f in streams.fields() if f.key[0] not in streams.options.sparse]
    streams.patch(touched, TensorDict({key: after.get(key) for key in dense}, [len(touched)]))
    return before


def clear_latents(streams: ReplayStreams, ids: Tensor) -> None:
    """Make zeros of what is not finite in the latents of these records; all else stays.

    Args:
        streams: an open replay.
        ids: int64 ``[n]``.
    """
    names = [f.key[0] for f in streams.fields() if f.key[0] in LATENTS]
    for some in ids.split(CHUNK) if len(ids) else ():
        latents = streams.get(some, keys=set(names)).select(*names).clone()
        for value in latents.values():
            value.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        streams.patch(some, latents)


def _begin(row: TensorDictBase, done: bool | None) -> None:
    """Make a record the first of an episode, and the only one where it is ``done``."""
    row.get("is_init").fill_(True)
    for key in ("previous_action", "reward", "terminated"):
        if (value := row.get(key, None)) is not None and not (key == "terminated" and done is None):
            value.zero_()
    if done is not None:
        row.get("done").fill_(done)


def _nearest(index: int, step: int, good: set[int]) -> int | None:
    """The good record of the same stream that lies nearest, earlier ones first."""
    if not (same := [i for i in good if (i - index) % step == 0]):
        return None
    return min(same, key=lambda i: (abs(i - index), i))


def _chunks(streams: ReplayStreams) -> Iterator[Tensor]:
    for stream in range(streams.num_streams):
        yield from streams.ids(stream).split(CHUNK) if len(streams) else ()


def _bad(records: TensorDictBase, key: tuple[str, ...]) -> Tensor:
    return _wrong(records.get(key), key).flatten(1).any(1)


def _wrong(value: Tensor, key: tuple[str, ...]) -> Tensor:
    """NaN and infinity; minus infinity is how an observation says that a number is missing."""
    wrong = ~value.isfinite()
    return wrong if key[0] in ("reward", *LATENTS) else wrong & (value != -torch.inf)
