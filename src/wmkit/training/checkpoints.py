"""Checkpoints that are either there and whole, or not there.

One checkpoint is a folder ``step-000000012000-000/`` (step, and a serial number for a step saved twice); its
files are those of :mod:`wmkit.training.checkpoint_files`: safetensors, JSON and a checksum of each.

It is written to a hidden folder, synced to disk and renamed, so a kill at any moment
leaves the earlier checkpoints untouched. The newest two and the best-scored one stay. One whose checksums do
not agree is passed over, with a word about it, and set aside as ``damaged-step-...`` by the next save.
(TorchRL's ``CheckpointRotation`` neither syncs nor allows checkpoints without a score.)
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from wmkit.data.files import is_count, is_number, need, read_json
from wmkit.errors import CheckpointError, NonFiniteLossError
from wmkit.training import checkpoint_files as files

RUN = ("system", "counters", "tracker", "memory", "rng")  # of a run's checkpoint
COUNTS, ADVICE = ("step", "updates", "replay_steps"), "move that checkpoint away to take the one before it"


def _say(sentence: str) -> None:
    print(f"wmkit: {sentence}", file=sys.stderr)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where the ``step-*`` folders lie; made on the first save.
        keep: how many of the newest stay besides the best one.
        say: told in a sentence which damaged checkpoint is passed over; standard error by default.

    >>> import tempfile
    >>> store = CheckpointStore(tempfile.mkdtemp())
    >>> _ = store.save(100, {"system": {"weight": torch.ones(2)}}, score=0.5)
    >>> store.load(store.latest())["system"]["weight"]
    tensor([1., 1.])
    """

    def __init__(self, folder: str | Path, keep: int = 2, say: Callable[[str], None] = _say) -> None:
        self.folder = Path(folder)
        self.keep, self.say = keep, say
        self._damaged: set[Path] = set()

    def save(self, step: int, state: Mapping[str, Any], score: float | None = None) -> Path:
        """Write ``state`` (nested dicts, lists, numbers, strings, tensors); drop what is no longer kept.

        Raises:
            NonFiniteLossError: ``state["system"]`` holds NaN or infinity; nothing is written.
            CheckpointError: the disk takes no more.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self._free_name(step)
        if found := files.not_finite(state.get("system"), "system"):
            raise NonFiniteLossError(
                f"checkpoint {str(target)!r} is not written: found {found}, wanted finite numbers; resume "
                "from the checkpoint before, with a lower learning rate"
            )
        stage = self.folder / f".{target.name}-{uuid.uuid4().hex}"
        stage.mkdir()
        try:
            try:
                files.write(stage, state, {"step": step, "score": score, "torch": torch.__version__})
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"checkpoint {str(target)!r} cannot be written: found {str(error).splitlines()[0]!r} "
                    f"with {shutil.disk_usage(self.folder).free:,} bytes free, wanted room for it; make "
                    "room and resume from the checkpoint before"
                ) from error
            _sync_folder(stage)
            stage.rename(target)
            _sync_folder(self.folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        self._prune()
        return target

    def load(self, path: Path | None, wanted: Iterable[str] = ()) -> dict[str, Any]:
        """Read one checkpoint onto the CPU.

        Args:
            path: its folder.
            wanted: keys that it must have.

        Raises:
            CheckpointError: there is none, a checksum does not agree, its contents are of another kind, or a
                tensor of ``system`` is not finite.
        """
        if path is None:
            raise CheckpointError(
                f"no checkpoint in {str(self.folder)!r}: found none, wanted at least one step-* folder; "
                "the run was stopped before its first save, so start it anew"
            )
        if found := files.damage(path):
            raise files.unreadable(path, found)
        state = files.read(path)
        if found := files.not_finite(state.get("system"), "system"):
            raise files.unreadable(path, found)
        for name in wanted:
            need(
                name in state, f"checkpoint {str(path)!r}", sorted(map(str, state)), f"{name!r} in it", ADVICE
            )
        if wanted:
            _check_contents(state, f"checkpoint {str(path)!r}")
        return state

    def steps(self) -> dict[int, Path]:
        """Every checkpoint, by step, oldest first."""
        return {files.step_of(path) or 0: path for path in self._folders()}  # a later write of a step wins

    def latest(self) -> Path | None:
        """The newest checkpoint whose checksums agree, or None where there is no checkpoint.

        Raises:
            CheckpointError: there are some, and all are damaged.
        """
        return self._first_whole(reversed(self._folders()))

    def best(self) -> Path | None:
        """The checkpoint with the highest score (the newest of equals), or None where none has a score."""
        return self._first_whole(self._scored())

    def _scored(self) -> list[Path]:
        """Those with a score, the highest first."""
        scored = []
        for step, path in self.steps().items():
            with suppress(CheckpointError):  # dropped since by a run that goes on, or damaged
                if (score := self.meta(path)["score"]) is not None:
                    scored.append((score, step, path))
        return [path for *_, path in sorted(scored, reverse=True)]

    def _first_whole(self, paths: Iterable[Path]) -> Path | None:
        passed: list[str] = []
        for path in paths:
            found = files.damage(path)
            if found is None:
                if passed:
                    self.say(f"{' and '.join(passed)}; {path.name} is taken in its place")
                return path
            if not path.exists():  # dropped since by a run that goes on
                continue
            self._damaged.add(path)
            passed.append(f"checkpoint {str(path)!r} is passed over: found {found}")
        if passed:
            raise CheckpointError(
                f"no checkpoint in {str(self.folder)!r} is whole: {' and '.join(passed)}, wanted one "
                "with the files that `wmkit train` wrote; restore one from a copy, or move that folder "
                "away to learn anew from the run's replay"
            )
        return None

    def meta(self, path: Path) -> dict[str, Any]:
        """The contents of ``meta.json`` of one checkpoint.

        Raises:
            CheckpointError: it cannot be read, or holds no step and score.
        """
        meta = read_json(path / files.META, ADVICE)
        thing = repr(str(path / files.META))
        need(isinstance(meta, dict), thing, meta, "step and score", ADVICE)
        step, score = meta.get("step"), meta.get("score")
        need(is_count(step), f"'step' of {thing}", step, "a whole number", ADVICE)
        need(score is None or is_number(score), f"'score' of {thing}", score, "a number or null", ADVICE)
        return meta

    def _folders(self) -> list[Path]:
        """Those that :meth:`save` named, oldest first; a user's own stay out of it."""
        named = [path for path in self.folder.glob("step-*") if files.step_of(path) is not None]
        return sorted(named, key=lambda path: [int(part) for part in path.name.split("-")[1:]])

    def _free_name(self, step: int) -> Path:
        # Above all that are there: a number that was pruned, used again, would count as older.
        pattern = re.compile(rf"(?:damaged-)?step-{step:012d}-(\d{{3,18}})")
        found = [pattern.fullmatch(path.name) for path in self.folder.glob("*step-*")]
        taken = [int(match[1]) for match in found if match is not None]
        return self.folder / f"step-{step:012d}-{max(taken, default=-1) + 1:03d}"

    def _prune(self) -> None:
        for path in self._damaged:
            with suppress(OSError):
                path.rename(self.folder / f"damaged-{path.name}")
        self._damaged.clear()
        kept = {*list(self.steps().values())[-self.keep :], *self._scored()[:1]}
        for path in self._folders():
            if path not in kept:
                hidden = self.folder / f".{path.name}-{uuid.uuid4().hex}"
                path.rename(hidden)
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _check_contents(state: Mapping[str, Any], source: str) -> None:
    """What a run reads of its checkpoint, where it is there: counters, episodes, replay's state, generators.

    Raises:
        CheckpointError: one is of another kind.
    """

    def check(fits: bool, name: str, found: Any, wanted: str) -> None:
        need(fits, f"{name!r} of {source}", found, wanted, ADVICE)

    for name in {*RUN, "transform", "means", "worlds"} & state.keys():
        check(isinstance(state[name], dict), name, state[name], "a mapping")
    if (counters := state.get("counters")) is not None:
        for name in COUNTS:
            check(is_count(counters.get(name)), f"counters/{name}", counters.get(name), "a whole number")
        owed, score = counters.get("owed"), counters.get("score")
        check(is_number(owed) and abs(owed) < 2**31, "counters/owed", owed, "a number of updates")
        check(score is None or is_number(score), "counters/score", score, "a number or null")
        left, since = counters.get("left"), counters.get("since", {})
        check(left is None or (is_count(left) and left < 2**31), "counters/left", left, "a number of updates")
        fits = isinstance(since, dict) and all(map(is_count, since.values()))
        check(fits, "counters/since", since, "steps")
    check(_are_sums(state.get("means", {})), "means", state.get("means"), "sums of the log")
    if (tracker := state.get("tracker")) is not None:
        recent = tracker.get("recent")
        fits = isinstance(recent, list) and all(map(_is_episode, recent))
        check(fits, "tracker/recent", recent, "a list of return, length, success and achievements")
        check(_are_sums(tracker.get("sums", {})), "tracker/sums", tracker.get("sums"), "sums of the log")
        check(
            _are_open(tracker.get("open", _NONE)), "tracker/open", tracker.get("open"), "unfinished episodes"
        )


_NONE: list[list[Any]] = [[], [], [], []]


def _are_sums(sums: Any) -> bool:
    """Whether these are values of metrics by name, ``[n]`` each."""
    return isinstance(sums, dict) and all(
        isinstance(one, Tensor) and one.is_floating_point() and one.ndim == 1 and len(one)
        for one in sums.values()
    )


def _are_open(lists: Any) -> bool:
    """Whether these are returns, lengths, successes and ends of unfinished episodes."""
    if not isinstance(lists, list) or len(lists) != 4 or not all(isinstance(one, list) for one in lists):
        return False
    returns, lengths, *flags = lists
    kinds = all(map(is_number, returns)) and all(map(is_count, lengths))
    return (
        kinds
        and all(isinstance(flag, bool) for one in flags for flag in one)
        and (len({len(one) for one in lists}) == 1)
    )


def _is_episode(entry: Any) -> bool:
    if not isinstance(entry, (list, tuple)) or len(entry) < 3:
        return False
    names = entry[3] if len(entry) > 3 else None
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    success = entry[2] is None or isinstance(entry[2], bool)
    return is_number(entry[0]) and is_count(entry[1]) and success and (names is None or named)


def check_shapes(found: Mapping[str, Any], wanted: Mapping[str, Any], source: str, prefix: str = "") -> None:
    """Compare two state dictionaries before anything is loaded.

    Args:
        found: from the checkpoint.
        wanted: ``state_dict()`` of the system as it is configured now.
        source: how to call the checkpoint in the message.
        prefix: name of the part that is compared.

    Raises:
        CheckpointError: names the first parameter that is missing, unknown or of another shape.

    >>> check_shapes({"w": torch.ones(3)}, {"w": torch.ones(2)}, "run")
    Traceback (most recent call last):
    wmkit.errors.CheckpointError: parameter 'w' of 'run' does not fit: found shape (3,), wanted (2,); ...
    """
    advice = "use the size and parts of the run's own config.yaml"
    for name in wanted:
        path = f"{prefix}{name}"
        if name.endswith("_extra_state"):
            continue  # the module itself refuses on load what it cannot use
        if name not in found:
            raise CheckpointError(
                f"parameter {path!r} is missing from {source!r}: found none, "
                f"wanted {_describe(wanted[name])}; {advice}"
            )
        here, there = found[name], wanted[name]
        if isinstance(here, Tensor) and isinstance(there, Tensor) and here.shape != there.shape:
            raise CheckpointError(
                f"parameter {path!r} of {source!r} does not fit: found shape {tuple(here.shape)}, "
                f"wanted {tuple(there.shape)}; {advice}"
            )
        if isinstance(here, Mapping) and isinstance(there, Mapping) and "param_groups" not in there:
            # (Moments appear with an optimiser's first step; torch checks them on load.)
            check_shapes(here, there, source, f"{path}.")
    unknown = [name for name in found if name not in wanted]
    if unknown:
        raise CheckpointError(
            f"parameter '{prefix}{unknown[0]}' of {source!r} is unknown here: found "
            f"{_describe(found[unknown[0]])}, wanted no such parameter; {advice}"
        )


def rng_state() -> dict[str, Any]:
    """State of the global random number generators (Python, NumPy, torch): tensors and plain values."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Undo :func:`rng_state`; generators of devices that are not here are left alone.

    Raises:
        CheckpointError: it is not such a state.
    """
    try:
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"'rng' of a checkpoint does not fit: found {' '.join(str(error).split())[:80]}, wanted "
            f"states of the generators of Python, NumPy and torch; {ADVICE}"
        ) from error


def _describe(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _sync_folder(path: Path) -> None:
    if os.name == "nt":
        return  # directories cannot be synced there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
