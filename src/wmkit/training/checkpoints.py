"""Checkpoints that are either there and whole, or not there.

One checkpoint is a folder ``step-000000012000-000/`` (step, and a serial number for a step saved twice) with

    state.pt     torch.save of plain containers and tensors, read with ``weights_only=True``
    meta.json    step, score (success rate, or return without flags, of the last evaluation), versions

It is written to a hidden folder, synced to disk and renamed, so a kill at any moment
leaves the earlier checkpoints untouched. The newest two and the best-scored one stay.
(TorchRL's ``CheckpointRotation`` neither syncs nor allows checkpoints without a score.)
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmkit.errors import CheckpointError


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where the ``step-*`` folders lie; made on the first save.
        keep: how many of the newest stay besides the best one.

    >>> import tempfile
    >>> store = CheckpointStore(tempfile.mkdtemp())
    >>> _ = store.save(100, {"system": {"weight": torch.ones(2)}}, score=0.5)
    >>> store.load(store.latest())["system"]["weight"]
    tensor([1., 1.])
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def save(self, step: int, state: Mapping[str, Any], score: float | None = None) -> Path:
        """Write ``state`` (nested dicts, lists, numbers, strings, tensors); drop what is no longer kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self._free_name(step)
        stage = self.folder / f".{target.name}-{uuid.uuid4().hex}"
        stage.mkdir()
        try:
            with (stage / "state.pt").open("wb") as file:
                try:
                    torch.save(dict(state), file)
                except RuntimeError as error:  # PyTorch's word for a disk that takes no more
                    raise CheckpointError(
                        f"checkpoint {str(target)!r} cannot be written: found {str(error).splitlines()[0]!r} "
                        f"with {shutil.disk_usage(self.folder).free:,} bytes free, wanted room for it; make "
                        "room and resume from the checkpoint before"
                    ) from error
                _sync(file)
            meta = {"step": step, "score": score, "torch": torch.__version__}
            with (stage / "meta.json").open("w", encoding="utf-8") as text:
                json.dump(meta, text)
                _sync(text)
            _sync_folder(stage)
            stage.rename(target)
            _sync_folder(self.folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        self._prune()
        return target

    def load(self, path: Path | None) -> dict[str, Any]:
        """Read one checkpoint onto the CPU.

        Raises:
            CheckpointError: there is none, or the file cannot be read.
        """
        if path is None:
            raise CheckpointError(
                f"no checkpoint in {str(self.folder)!r}: found none, wanted at least one step-* folder; "
                "the run was stopped before its first save, so start it anew"
            )
        try:
            return torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {str(path)!r} cannot be read: found {type(error).__name__}, wanted a file that "
                "`wmkit train` wrote; delete that folder and resume from the one before it"
            ) from error

    def steps(self) -> dict[int, Path]:
        """Every whole checkpoint, by step, oldest first."""
        found = (path for path in self._folders() if (path / "meta.json").is_file())
        return {int(path.name.split("-")[1]): path for path in sorted(found)}  # a later write of a step wins

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        return next(reversed(self.steps().values()), None)

    def best(self) -> Path | None:
        """The checkpoint with the highest score (the newest of equals), or None where none has a score."""
        scored = []
        for step, path in self.steps().items():
            with suppress(FileNotFoundError, ValueError, KeyError):  # dropped since by a run that goes on
                if (score := self.meta(path)["score"]) is not None:
                    scored.append((score, step, path))
        return max(scored)[2] if scored else None

    def meta(self, path: Path) -> dict[str, Any]:
        """The contents of ``meta.json`` of one checkpoint."""
        return json.loads((path / "meta.json").read_text(encoding="utf-8"))

    def _folders(self) -> list[Path]:
        """Those that :meth:`save` named; a user's own stay out of it."""
        named = re.compile(r"step-\d{12,}-\d{3,}")
        return [path for path in self.folder.glob("step-*") if named.fullmatch(path.name)]

    def _free_name(self, step: int) -> Path:
        name = f"step-{step:012d}"
        # Above all that are there: a number that was pruned, used again, would count as older.
        taken = [int(path.name.split("-")[2]) for path in self.folder.glob(f"{name}-*")]
        return self.folder / f"{name}-{max(taken, default=-1) + 1:03d}"

    def _prune(self) -> None:
        kept = {*list(self.steps().values())[-self.keep :], self.best()}
        for path in self._folders():
            if path not in kept:
                hidden = self.folder / f".{path.name}-{uuid.uuid4().hex}"
                path.rename(hidden)
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)


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
    """Undo :func:`rng_state`; generators of devices that are not here are left alone."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def _describe(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name == "nt":
        return  # directories cannot be synced there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
