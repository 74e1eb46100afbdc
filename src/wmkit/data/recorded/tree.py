"""Arrays by name in groups, as HDF5 and Zarr hold them, read as episodes.

Two layouts are told apart by what lies there:

* **a group for each episode** (Minari, robomimic): every group that holds an array of actions is one, in the
  order of the numbers in its name;
* **flat**: every array has a row for each step, and where episodes begin is said by ``ep_len`` and
  ``ep_offset`` (stable-worldmodel), ``episode_ends`` (diffusion policy), a column such as ``episode_index``,
  or flags of ends such as ``terminals`` and ``timeouts`` (D4RL).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wmkit.data.recorded.contract import LARGEST_EPISODE, NUMBERS, Column, Episode, reading, refused

ACTION = ("action", "actions")
REWARD = ("reward", "rewards", "next.reward")
ENDS = ("terminated", "terminations", "terminals", "terminal")  # true ones
LIMITS = ("truncated", "truncations", "timeouts", "timeout")
DONES = ("done", "dones", "next.done")
OBSERVED = ("observation", "observations", "obs")
AFTER = ("next_observation", "next_observations", "next_obs")
NUMBERED = ("episode_index", "episode_idx", "ep_idx", "episode_id", "episode")
SIDE = (  # bookkeeping, of which nothing is learned
    *(*ACTION, *REWARD, *ENDS, *LIMITS, *DONES, *AFTER, *NUMBERED),
    *("ep_len", "ep_offset", "episode_ends", "step_idx", "step_index", "frame_index", "timestamp", "index"),
    *(
        "info",
        "infos",
        "env_infos",
        "success",
        "next.success",
        "task_index",
        "seed",
        "id",
        "metadata",
        "meta",
    ),
)
ADVICE = "mend or leave out that episode"


@dataclass
class Leaf:
    """An array that is not read yet.

    Attributes:
        shape: steps first.
        dtype: as it is stored; of coded pictures, what one is made of.
        read: rows from, to.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]


@dataclass
class Group:
    """Arrays and groups by name.

    Attributes:
        path: of the file, for messages.
        name: in the file.
        parts: what lies in it.
    """

    path: str
    name: str
    parts: dict[str, Leaf | Group] = field(default_factory=dict)

    def leaf(self, names: Sequence[str]) -> tuple[str, Leaf] | None:
        """The first array of these names."""
        for name in names:
            if isinstance(part := self.parts.get(name), Leaf):
                return name, part
        return None

    def groups(self) -> Iterator[Group]:
        """The groups in it, in order of the numbers in their names."""
        for name in sorted(self.parts, key=natural):
            if isinstance(part := self.parts[name], Group):
                yield part


def natural(name: str) -> list[tuple[int, str]]:
    """Order by which ``episode_10`` comes after ``episode_9``.

    >>> sorted(["e10", "e9", "e1"], key=natural)
    ['e1', 'e9', 'e10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


@dataclass
class Span:
    """Where an episode lies: rows of a group."""

    group: Group
    start: int
    stop: int


class TreeSource:
    """Episodes of groups of arrays, behind the contract of :class:`~wmkit.data.recorded.contract.Source`.

    Args:
        path: of the data set.
        kind: in words.
        roots: one for each file, in order.
        spaces: columns by key, where the data set says more than its arrays do.

    Raises:
        DataError: no episode, no actions, or episodes of unequal keys, shapes, dtypes or lengths.
    """

    def __init__(
        self, path: str, kind: str, roots: Sequence[Group], spaces: Mapping[str, Column] | None = None
    ) -> None:
        self.path, self.kind = path, kind
        self._spans = [span for root in roots for span in _spans(root)]
        if not self._spans:
            raise refused(
                path,
                "the whole",
                "no array of actions",
                f"one called {' or '.join(ACTION)}, in each episode or for all",
                "rename it, or write the data anew",
            )
        first = self._spans[0]
        self.observations = {key: _column(key, leaf) for key, leaf in observed(first.group).items()}
        if not self.observations:
            raise refused(
                first.group.path,
                f"group {first.group.name!r}",
                f"no observation beside {', '.join(sorted(first.group.parts))}",
                "arrays of numbers or pictures",
                "add them",
            )
        self.action = _column("action", _need(first.group, ACTION)[1])
        self.rewards = first.group.leaf(REWARD) is not None
        for key, said in (spaces or {}).items():
            found = self.action if key == "action" else self.observations.get(key)
            if found is None:
                continue
            if found.shape != said.shape or found.dtype.kind != said.dtype.kind:
                raise refused(
                    first.group.path,
                    f"key {key!r}",
                    str(found),
                    f"{said}, as its metadata say",
                    "correct one of them",
                )
            if key == "action":
                self.action = said
            else:
                self.observations[key] = said
        self.lengths = [self._check(index, span) for index, span in enumerate(self._spans)]

    def _check(self, index: int, span: Span) -> int:
        """Observations of an episode, whose keys must be those of the first."""
        group, where = span.group, f"episode {index}"
        leaves = observed(group)
        if leaves.keys() != self.observations.keys():
            raise refused(
                group.path,
                f"keys of {where}",
                ", ".join(sorted(leaves)) or "none",
                f"{', '.join(sorted(self.observations))}, as in the first",
                ADVICE,
            )
        flat = span.stop >= 0
        rows = {leaf.shape[0] for leaf in leaves.values()}
        length = span.stop - span.start if flat else min(rows, default=0)
        name, action = _need(group, ACTION)
        for key, leaf in (*leaves.items(), (name, action)):
            wanted = self.action if key == name else self.observations[key]
            found = _column(wanted.key, leaf)
            if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
                raise refused(
                    group.path, f"key {key!r} of {where}", str(found), f"{wanted}, as in the first", ADVICE
                )
            few = leaf.shape[0] < span.stop if flat else leaf.shape[0] != length
            if key == name and not flat:
                few = leaf.shape[0] not in (length, length - 1)
            if few:
                wanted_rows = span.stop if flat else f"{length}" + f" or {length - 1}" * (key == name)
                raise refused(
                    group.path, f"key {key!r} of {where}", f"{leaf.shape[0]} rows", f"{wanted_rows}", ADVICE
                )
            if np.prod(leaf.shape[1:], dtype=float) * leaf.dtype.itemsize * length > LARGEST_EPISODE:
                raise refused(
                    group.path,
                    f"key {key!r} of {where}",
                    f"{length:,} rows of {found}",
                    f"at most {LARGEST_EPISODE:,} bytes in an episode",
                    "split it",
                )
        reward = group.leaf(REWARD)
        if (reward is not None) != self.rewards:
            raise refused(
                group.path,
                f"keys of {where}",
                "rewards" if reward else "no rewards",
                "rewards in all episodes or in none",
                ADVICE,
            )
        if length < 2:
            raise refused(group.path, where, f"{length} observations", "2 or more", ADVICE)
        return length

    def episode(self, index: int, keys: Sequence[str] | None = None) -> Episode:
        """One episode, read now."""
        span, length = self._spans[index], self.lengths[index]
        group = span.group
        with reading(group.path, f"episode {index}"):
            chosen = {k: leaf for k, leaf in observed(group).items() if keys is None or k in keys}
            seen = {key: leaf.read(span.start, span.start + length) for key, leaf in chosen.items()}
            actions = self.actions(index)
            count = len(actions)
            rewards = None
            if (reward := group.leaf(REWARD)) is not None:
                rewards = reward[1].read(span.start, span.start + count)
                rewards = rewards.reshape(len(rewards), -1)
                if rewards.shape != (count, 1):
                    raise refused(
                        group.path,
                        f"key {reward[0]!r} of episode {index}",
                        f"shape {list(rewards.shape)}",
                        f"one for each of {count} actions",
                        ADVICE,
                    )
            after = group.leaf(AFTER)
            if after is not None and count == length and len(chosen) == 1:  # what the last action led to
                (key,) = seen
                last = after[1].read(span.start + length - 1, span.start + length)
                if last.shape[1:] == seen[key].shape[1:]:
                    seen[key] = np.concatenate([seen[key], last.astype(seen[key].dtype)])
            return Episode(
                seen, actions, None if rewards is None else rewards[:, 0], self._ended(span, count)
            )

    def actions(self, index: int) -> np.ndarray:
        """The actions of one episode."""
        span, length = self._spans[index], self.lengths[index]
        name, leaf = _need(span.group, ACTION)
        count = length if span.stop >= 0 else leaf.shape[0]
        with reading(span.group.path, f"key {name!r} of episode {index}"):
            return leaf.read(span.start, span.start + count)

    def _ended(self, span: Span, count: int) -> bool:
        group, last = span.group, span.start + count - 1
        true = group.leaf(ENDS)
        if true is None:
            limits = group.leaf(LIMITS)
            true = group.leaf(DONES[:2]) if limits is None else None
        if true is None or true[1].shape[0] <= last or last < 0:
            return False
        return bool(np.any(true[1].read(last, last + 1)))


def observed(group: Group) -> dict[str, Leaf]:
    """The arrays of a group that are observations, by the key they are known under."""
    found: dict[str, Leaf] = {}
    for name, part in group.parts.items():
        if name in OBSERVED and isinstance(part, Leaf):
            found["pixels" if looks_like_picture(part.shape[1:], part.dtype) else "observation"] = part
        elif name in OBSERVED and isinstance(part, Group):
            found |= {known_as(inner): leaf for inner, leaf in _leaves(part)}
        elif name not in SIDE and isinstance(part, Leaf):
            found[known_as(name)] = part
    return {key: leaf for key, leaf in sorted(found.items()) if leaf.shape and leaf.dtype.kind in NUMBERS}


def known_as(name: str) -> str:
    """The key of an observation: without dots and slashes, and none of a run's own.

    >>> known_as("observation.images.top"), known_as("observation.state"), known_as("proprio")
    ('observation_images_top', 'observation_state', 'proprio')
    """
    key = re.sub(r"[^\w-]+", "_", name).strip("_") or "observation"
    own = ("state", "belief", "carry", "action", "reward", "done", "next", "is_init", "frame", "score")
    return f"observed_{key}" if key in own else key


def looks_like_picture(shape: Sequence[int], dtype: np.dtype) -> bool:
    """Whether one step of a key is a picture: bytes ``[H, W, C]`` or ``[C, H, W]``, 1, 3 or 4 channels."""
    return dtype == np.uint8 and len(shape) == 3 and any(shape[axis] in (1, 3, 4) for axis in (0, 2))


def _leaves(group: Group, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
    for name, part in group.parts.items():
        if isinstance(part, Leaf):
            yield prefix + name, part
        else:
            yield from _leaves(part, f"{prefix}{name}_")


def _column(key: str, leaf: Leaf) -> Column:
    return Column(key, tuple(leaf.shape[1:]), leaf.dtype)


def _need(group: Group, names: Sequence[str]) -> tuple[str, Leaf]:
    found = group.leaf(names)
    if found is None or found[1].dtype.kind not in NUMBERS or not found[1].shape:
        here = "text or objects" if found else ", ".join(sorted(group.parts)) or "nothing"
        raise refused(
            group.path,
            f"key {names[0]!r} of {group.name!r}",
            here,
            "an array of numbers, a row for each step",
            "write actions there",
        )
    return found


def _spans(group: Group) -> list[Span]:
    """Episodes of a file: of the group itself where actions lie in it, else of those inside."""
    if any(name in group.parts for name in (*ACTION, *OBSERVED)):
        name, action = _need(group, ACTION)
        borders = _borders(group, action.shape[0])
        if borders is None:
            return [Span(group, 0, -1)]
        return [Span(group, start, stop) for start, stop in borders]
    found = [span for inner in group.groups() for span in _spans(inner)]
    for name in ("meta", "metadata"):  # diffusion policy keeps the borders beside the data
        part = group.parts.get(name)
        if isinstance(part, Group) and (ends := part.leaf(("episode_ends",))) and len(found) == 1:
            inner = found[0].group
            inner.parts["episode_ends"] = ends[1]
            return _spans(inner)
    return found


def _borders(group: Group, rows: int) -> list[tuple[int, int]] | None:
    """First and last row of each episode of a flat layout; None where a group is one episode."""

    def whole(names: Sequence[str]) -> tuple[str, np.ndarray] | None:
        found = group.leaf(names)
        if found is None:
            return None
        name, leaf = found
        if leaf.dtype.kind not in NUMBERS or np.prod(leaf.shape, dtype=float) > LARGEST_EPISODE // 8:
            raise refused(
                group.path, f"key {name!r}", f"{leaf.dtype} {list(leaf.shape)}", "whole numbers", ADVICE
            )
        with reading(group.path, f"key {name!r}"):
            return name, leaf.read(0, leaf.shape[0]).reshape(leaf.shape[0], -1)

    lengths, offsets, ends = whole(("ep_len",)), whole(("ep_offset",)), whole(("episode_ends",))
    if lengths and offsets:
        starts = offsets[1][:, 0].astype(np.int64)
        stops = starts + lengths[1][:, 0].astype(np.int64) if len(starts) == len(lengths[1]) else starts[:0]
        name = "ep_len"
    elif ends:
        stops, name = ends[1][:, 0].astype(np.int64), ends[0]
        starts = np.concatenate([[0], stops[:-1]])
    elif numbers := whole(NUMBERED):
        name, values = numbers
        cuts = np.flatnonzero(np.diff(values[:, 0])) + 1
        starts, stops = np.concatenate([[0], cuts]), np.concatenate([cuts, [len(values)]])
    else:
        flags = [flag for names in (ENDS, LIMITS, DONES) if (flag := whole(names))]
        if not flags or all(len(flag) != rows for _, flag in flags):
            return None
        name = flags[0][0]
        over = np.any([flag[:, 0].astype(bool) for _, flag in flags if len(flag) == rows], 0)
        stops = np.flatnonzero(over) + 1
        if len(stops) < 2 and (not len(stops) or stops[0] >= rows - 1):
            return None
        if stops[-1] < rows - 1:
            stops = np.append(stops, rows)
        starts = np.concatenate([[0], stops[:-1]])
        keep = stops - starts > 1  # an end twice, at a limit of time too
        starts, stops = starts[keep], stops[keep]
    order = bool(len(starts)) and bool(
        np.all(starts[1:] >= stops[:-1]) and np.all(stops > starts) and starts[0] >= 0
    )
    if not order or stops[-1] > rows:
        found: Any = [starts[:3].tolist(), stops[-3:].tolist()]
        raise refused(
            group.path, f"key {name!r}", found, f"episodes one after another in {rows} rows", "restore it"
        )
    return [(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)]
