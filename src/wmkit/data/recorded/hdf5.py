"""HDF5 files: one, or a folder of them, in the layouts of :mod:`wmkit.data.recorded.tree`.

Links to other files, virtual data sets and external storage are refused: nothing else is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wmkit.data.recorded.contract import NUMBERS, Column, library, reading, refused
from wmkit.data.recorded.pictures import decode_all
from wmkit.data.recorded.tree import Group, Leaf, TreeSource, natural

ENDINGS = (".h5", ".hdf5", ".he5")
DEEPEST = 8  # groups in groups
MOST = 1_000_000  # names in a file
JPEG = b"\xff\xd8\xff"
ALONE = "copy it into one file with h5repack"


def files_of(path: Path) -> list[Path]:
    """The HDF5 files of a folder, in order of the numbers in their names; none of another path."""
    if path.is_file() and path.suffix in ENDINGS:
        return [path]
    found = (
        [one for one in path.iterdir() if one.suffix in ENDINGS and one.is_file()] if path.is_dir() else []
    )
    return sorted(found, key=lambda one: natural(one.name))


def open_hdf5(path: Path, spaces: Mapping[str, Column] | None = None, kind: str = "HDF5") -> TreeSource:
    """The episodes of a file or folder.

    Args:
        path: of it.
        spaces: what metadata beside it say of its columns.
        kind: of the format, in words.

    Raises:
        DataError: torn, of no known layout, or linked to other files.
        ConfigError: h5py is not installed.
    """
    h5py = library("h5py", "HDF5 files")
    roots = []
    for one in files_of(path):
        with reading(str(one), "the whole"):
            file = h5py.File(one, "r")
            roots.append(_Reader(str(one)).group(file, "/", ()))
    return TreeSource(str(path), kind, roots, spaces)


class _Reader:
    """Lists what lies in a file; links may lead in a circle, and name one thing a thousand times."""

    def __init__(self, path: str) -> None:
        self._path, self._count = path, 0
        self._h5py = library("h5py", "HDF5 files")

    def group(self, node: Any, name: str, above: tuple[int, ...]) -> Group:
        """A group and all in it."""
        here = int(self._h5py.h5o.get_info(node.id).addr)
        if here in above or len(above) > DEEPEST:
            found = "a link in a circle" if here in above else "groups that lie deeper"
            raise refused(self._path, f"group {name!r}", found, f"at most {DEEPEST} in each other", ALONE)
        group = Group(self._path, name)
        for key in node:
            self._count += 1
            if self._count > MOST:
                raise refused(self._path, "the whole", f"more than {MOST:,} names", "fewer", "split it")
            self._add(group, node, key, (*above, here))
        return group

    def _add(self, group: Group, node: Any, key: str, above: tuple[int, ...]) -> None:
        name = f"{group.name.rstrip('/')}/{key}"
        if isinstance(node.get(key, getlink=True), self._h5py.ExternalLink):
            raise refused(self._path, f"key {name!r}", "a link to another file", "data of its own", ALONE)
        part = node.get(key)
        if isinstance(part, self._h5py.Group):
            group.parts[key] = self.group(part, name, above)
        elif isinstance(part, self._h5py.Dataset):
            if part.is_virtual or part.external:
                found = "data that lie in another file"
                raise refused(self._path, f"key {name!r}", found, "data of its own", ALONE)
            if (leaf := _leaf(part, self._path, name)) is not None:
                group.parts[key] = leaf


def _leaf(data: Any, path: str, name: str) -> Leaf | None:
    """An array of numbers, or of coded pictures; None for what is neither."""
    h5py = library("h5py", "HDF5 files")
    rows = data.dtype == np.uint8 and len(data.shape) == 2 and data.shape[1] > 8  # pictures of one length
    if not (rows and data.shape[0] and bytes(data[0, :3]) == JPEG) and data.dtype.kind in NUMBERS:
        return (
            Leaf(tuple(data.shape), data.dtype, lambda start, stop: data[start:stop]) if data.shape else None
        )
    coded = rows or h5py.check_vlen_dtype(data.dtype) == np.uint8 or data.dtype.kind == "S"
    if not coded or not data.shape or not data.shape[0] or len(data.shape) != 1 + rows:
        return None
    if not bytes(data[0])[:4].startswith((JPEG, b"\x89PNG")):
        return None  # text

    def read(first: int, last: int) -> np.ndarray:
        return decode_all(list(data[first:last]), path, f"key {name!r}")

    return Leaf((data.shape[0], *read(0, 1).shape[1:]), np.dtype(np.uint8), read)
