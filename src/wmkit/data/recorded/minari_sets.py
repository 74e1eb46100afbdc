"""Data sets of Minari: a folder, or an id that stands for one among those which Minari has downloaded.

Their HDF5 form is read as it lies on the disk (``data/main_data.hdf5``, ``data/metadata.json``), without
Minari itself: loading one through it may make the environment that the metadata name, which is code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wmkit.data.files import is_count, parse_json
from wmkit.data.recorded.contract import Column, reading, refused
from wmkit.data.recorded.hdf5 import open_hdf5
from wmkit.data.recorded.tree import TreeSource, known_as, looks_like_picture

MAIN, METADATA = "main_data.hdf5", "metadata.json"


def local_folder() -> Path:
    """Where Minari keeps data sets: ``MINARI_DATASETS_PATH``, or ``~/.minari/datasets``."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def find_minari(path: Path) -> Path | None:
    """The ``data`` folder of a data set, from its own path or one above it; None of another folder."""
    found = (one for one in (path, path / "data") if (one / METADATA).is_file())
    return next(found, None)


def open_minari(folder: Path) -> TreeSource:
    """The episodes of a data set.

    Args:
        folder: with ``metadata.json`` in it.

    Raises:
        DataError: torn, of Minari's Arrow form, or metadata that do not fit the arrays.
    """
    path = str(folder)
    with reading(path, METADATA):
        said = parse_json((folder / METADATA).read_bytes())
    if not isinstance(said, dict):
        raise refused(path, METADATA, said, "a mapping", "restore it")
    if not (folder / MAIN).is_file():
        form = said.get("data_format", "none")
        advice = "save it anew in Minari with data_format='hdf5'"
        raise refused(path, "the whole", f"data of the form {form!r}", f"{MAIN} in it", advice)
    spaces: dict[str, Column] = {}
    for name, key in (("observation_space", "observation"), ("action_space", "action")):
        if (text := said.get(name)) is None:
            continue
        with reading(path, f"{name!r} of {METADATA}"):
            space = json.loads(text) if isinstance(text, str) else text  # bounds may be infinite
            spaces |= {column.key: column for column in _columns(space, "" if key == "observation" else key)}
    return open_hdf5(folder / MAIN, spaces, "Minari")


def _columns(space: Any, name: str) -> Iterator[Column]:
    """The columns that a space of Minari's metadata speaks of; what it does not say is left to the arrays."""
    kind = space["type"]
    if kind == "Dict":
        for key, part in space["subspaces"].items():
            yield from _columns(part, f"{name}_{key}".lstrip("_"))
    elif kind == "Tuple":
        for index, part in enumerate(space["subspaces"]):
            yield from _columns(part, f"{name}__index_{index}".lstrip("_"))
    elif kind == "Discrete":
        if is_count(space["n"], 1) and not space.get("start", 0):
            yield Column(_key(name), (), np.dtype(np.int64), int(space["n"]))
    elif kind == "Box":
        shape, dtype = tuple(map(int, space["shape"])), np.dtype(space["dtype"])
        if looks_like_picture(shape, dtype):  # bounds of bytes are no news, and pictures may be coded
            return
        low, high = (
            np.broadcast_to(np.asarray(space[end], dtype=np.float64), shape) for end in ("low", "high")
        )
        yield Column(_key(name), shape, dtype, None, low, high)


def _key(name: str) -> str:
    return name if name == "action" else known_as(name or "observation")
