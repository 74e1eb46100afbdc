"""Zarr folders, of version 2 and 3, in the layouts of :mod:`wmkit.data.recorded.tree`.

What an array says of its codecs is read before Zarr is: some of them run code (pickle), so that only those
which compress numbers are let through.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wmkit.data.files import parse_json
from wmkit.data.recorded.contract import NUMBERS, library, reading, refused
from wmkit.data.recorded.tree import Group, Leaf, TreeSource

META = (".zarray", ".zgroup", "zarr.json")
CODECS = {
    *("blosc", "bz2", "gzip", "zlib", "lzma", "zstd", "lz4", "crc32c", "crc32", "adler32", "fletcher32"),
    *("bytes", "transpose", "sharding_indexed", "shuffle", "delta", "bitround", "packbits", "default", "v2"),
}


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr group."""
    return path.is_dir() and any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def open_zarr(path: Path) -> TreeSource:
    """The episodes of a folder.

    Raises:
        DataError: torn, of no known layout, or coded in a way that is not read.
        ConfigError: Zarr is not installed.
    """
    for file in sorted(one for name in META for one in path.rglob(name)):
        _check_codecs(file, path)
    zarr = library("zarr", "Zarr folders")
    with reading(str(path), "the whole"):
        root = zarr.open_group(str(path), mode="r", use_consolidated=False)
        return TreeSource(str(path), "Zarr", [_group(zarr, root, str(path), "/")])


def _check_codecs(file: Path, path: Path) -> None:
    key = str(file.parent.relative_to(path))
    with reading(str(path), f"key {key!r}"):
        said = parse_json(file.read_bytes())
    strange = [name for name in _codecs(said) if name.removeprefix("numcodecs.") not in CODECS]
    if strange:
        wanted = f"one that compresses numbers ({', '.join(sorted(CODECS)[:6])}, ...)"
        raise refused(str(path), f"key {key!r}", f"the codec {strange[0]!r}", wanted, "write it anew without")


def _codecs(said: Any) -> Iterator[str]:
    """Names of all codecs that an array's metadata hold, those inside others too."""
    if isinstance(said, list):
        for one in said:
            yield from _codecs(one)
    elif isinstance(said, dict):
        for key, value in said.items():
            parts = value if isinstance(value, list) else [value]
            if key in ("filters", "compressor", "codecs", "index_codecs"):
                yield from (str(p.get("id", p.get("name"))) for p in parts if isinstance(p, dict))
            yield from _codecs(value)


def _group(zarr: Any, node: Any, path: str, name: str) -> Group:
    group = Group(path, name)
    for key, part in node.members():
        here = f"{name.rstrip('/')}/{key}"
        if isinstance(part, zarr.Group):
            group.parts[key] = _group(zarr, part, path, here)
        elif part.shape and np.dtype(part.dtype).kind in NUMBERS:
            group.parts[key] = _leaf(part)
    return group


def _leaf(array: Any) -> Leaf:
    return Leaf(tuple(array.shape), np.dtype(array.dtype), lambda start, stop: np.asarray(array[start:stop]))
