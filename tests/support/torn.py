"""Files of a run, torn and falsified one at a time: what a reader has to survive, as (name, tear) pairs.

    for tear in tears(run):          # of a run folder that is whole
        tear(copy)                   # the same file of a copy of it

Everything is made from the files that are there: each JSON value replaced by values of other kinds, every
file cut, emptied, a bit turned, a folder in its place, arrays of other kinds; checkpoints with checksums that
agree all the same.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

VALUES = (None, "x", [], {}, [[1]], True, -1, 0.5, 10**30, 1e308, float("nan"))
KEYS = ("../x", "/x", "", ".", "a/../../x", "a\0b", "x" * 5000, "counters", "a//b", "\ud800", "C:\\x")
CELLS = (-1, 2, 2**40, 2**62, -(2**63))


@dataclass(frozen=True)
class Tear:
    """One file of a run, changed: ``tear(folder)`` changes that file of the run in ``folder``."""

    file: str
    how: str
    change: Callable[[Path], None]

    def __call__(self, folder: Path) -> None:
        self.change(folder / self.file)
        if (sums := (folder / self.file).parent / "sha256sums").is_file() and self.how.startswith("content"):
            names = [line.split()[1] for line in sums.read_text().splitlines()]
            found = [(hashlib.sha256((sums.parent / name).read_bytes()).hexdigest(), name) for name in names]
            sums.write_text("".join(f"{digest}  {name}\n" for digest, name in found))

    def __str__(self) -> str:
        return f"{self.file}: {self.how}"


def tears(run: Path, skip: tuple[str, ...] = ("tensorboard", "config.yaml", "report.html")) -> Iterator[Tear]:
    """Every tear of every file of a run, the newest checkpoint standing for all."""
    newest = max((run / "checkpoints").glob("step-*"), default=None)
    for path in sorted(run.rglob("*")):
        file = path.relative_to(run).as_posix()
        if not path.is_file() or file.startswith(skip) or path.name == ".lock":
            continue
        if "checkpoints" in file and path.parent != newest:
            continue
        yield from torn(path, file)
        yield from contents(path, file)


def torn(path: Path, file: str) -> Iterator[Tear]:
    """What disks and kills do to any file."""
    size = path.stat().st_size
    for place in sorted({0, 1, size // 3, size // 2, max(size - 1, 0)}):
        yield Tear(file, f"cut at {place}", lambda path, n=place: path.write_bytes(path.read_bytes()[:n]))
    for place in sorted({0, size // 5, size // 2, size - 2} & set(range(size))):
        yield Tear(file, f"bit of byte {place}", lambda path, n=place: flip(path, n))
    yield Tear(file, "gone", lambda path: path.unlink())
    yield Tear(file, "a folder", lambda path: (path.unlink(), path.mkdir()))
    yield Tear(file, "a link to nothing", lambda path: (path.unlink(), path.symlink_to("nothing")))
    yield Tear(file, "unreadable", lambda path: path.chmod(0))


def flip(path: Path, place: int) -> None:
    """Turn one bit of a file round."""
    with path.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0] ^ 1 << place % 8
        stream.seek(place)
        stream.write(bytes([byte]))


def contents(path: Path, file: str) -> Iterator[Tear]:
    """What somebody who knows the file would write into it."""
    if path.suffix in (".json", ".owed"):
        for how, document in falsified(json.loads(path.read_text())):
            yield _written(file, how, json.dumps(document).encode())
        yield _written(file, "nested deeply", b"[" * 10**6)
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        kinds = {json.loads(line)["stage"]: number for number, line in enumerate(lines)}
        for number in kinds.values():
            for how, line in falsified(json.loads(lines[number])):
                text = "\n".join([*lines[:number], json.dumps(line), *lines[number + 1 :], ""])
                yield _written(file, f"line {number + 1}, {how}", text.encode())
    if path.name == "schema.json":
        yield from _schemas(path, file)
    if path.suffix == ".npz":
        yield from _archives(path, file)
    if path.name in ("counters.memmap", "zoomed.memmap") or (path.suffix == ".memmap" and "_slots" in file):
        yield from _cells(path, file)
    if path.suffix == ".safetensors":
        yield from _weights(path, file)


def falsified(document: Any, most: int = 400) -> Iterator[tuple[str, Any]]:
    """A document with one value replaced by each of VALUES, or one key left out; lists by their ends."""
    places = list(_places(document))
    for place in places[:: -(-len(places) // most)]:
        for value in VALUES:
            yield f"{'/'.join(map(str, place)) or 'all'} = {value!r}", _put(document, place, value)
        if place:
            yield f"{'/'.join(map(str, place))} left out", _put(document, place, None, leave_out=True)


def _places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _places(value, (*path, key))
    elif isinstance(node, list):
        for i in sorted({0, len(node) - 1} & set(range(len(node)))):
            yield from _places(node[i], (*path, i))


def _put(document: Any, place: tuple, value: Any, leave_out: bool = False) -> Any:
    if not place:
        return value
    document = copy.deepcopy(document)
    node = document
    for part in place[:-1]:
        node = node[part]
    if leave_out:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return document


def _written(file: str, how: str, data: bytes) -> Tear:
    return Tear(file, f"content: {how}", lambda path: path.write_bytes(data))


def _schemas(path: Path, file: str) -> Iterator[Tear]:
    schema = json.loads(path.read_text())
    for key in KEYS:
        changed = copy.deepcopy(schema)
        changed["fields"][0]["key"] = key
        yield _written(file, f"key {key[:12]!r}", json.dumps(changed).encode())
    for shape in ([2**40], [0], [2**62, 2**62], [1] * 100):
        changed = copy.deepcopy(schema)
        changed["fields"][0]["shape"] = shape
        yield _written(file, f"shape {shape[:3]}", json.dumps(changed).encode())
    for encoding in ("one_hot:0", "one_hot:999999", "one_hot:-3", "float16", "float8", "one_hot:1"):
        changed = copy.deepcopy(schema)
        changed["fields"][0]["encoding"] = encoding
        yield _written(file, f"encoding {encoding}", json.dumps(changed).encode())


def _archives(path: Path, file: str) -> Iterator[Tear]:
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    others: dict[str, Callable[[np.ndarray], Any]] = {
        "objects": lambda array: np.array([{"a": 1}], dtype=object),
        "words": lambda array: np.array(["x"] * 3),
        "an axis more": lambda array: array[None],
        "complex": lambda array: array.astype(np.complex64),
        "empty": lambda array: array.reshape(-1)[:0],
        "one": lambda array: np.float64(3.0),
        "fewer": lambda array: array[:-1] if array.ndim else array - 100,
    }
    for name, array in arrays.items():
        for how, change in others.items():
            yield _written(file, f"{name}: {how}", _packed({**arrays, name: change(array)}))
        yield _written(file, f"{name}: left out", _packed({k: v for k, v in arrays.items() if k != name}))
    bomb = io.BytesIO()
    np.lib.format.write_array_header_1_0(bomb, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
    yield Tear(
        file, "content: a terabyte announced", lambda path: _zip(path, {"frames.npy": bomb.getvalue()})
    )
    yield Tear(file, "content: no array", lambda path: _zip(path, {"frames.npy": b"x"}))


def _packed(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _zip(path: Path, members: dict[str, bytes]) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _cells(path: Path, file: str) -> Iterator[Tear]:
    cells = np.fromfile(path, np.int64)[:24]
    for place in range(len(cells)):
        for value in CELLS:

            def change(path: Path, place: int = place, value: int = value) -> None:
                np.memmap(path, np.int64, "r+")[place] = value

            yield Tear(file, f"cell {place} = {value}", change)


def _weights(path: Path, file: str) -> Iterator[Tear]:
    tensors = load_file(str(path))
    names = list(tensors)
    for name in names[:: -(-len(names) // 12)]:
        value = tensors[name]
        others = {
            "left out": None,
            "another shape": torch.ones(3, 1),
            "another kind": torch.ones(value.shape, dtype=torch.int16),
            "NaN": torch.full(value.shape, float("nan")),
            "empty": torch.ones(0),
        }
        for how, other in others.items():
            changed = {key: one for key, one in tensors.items() if key != name}
            if other is not None:
                changed[name] = other
            yield Tear(
                file, f"content: {name} {how}", lambda path, found=changed: save_file(found, str(path))
            )


def replica(run: Path, to: Path) -> Path:
    """A copy of a run, without what no reader looks at."""
    return Path(shutil.copytree(run, to, ignore=shutil.ignore_patterns("tensorboard", "report.html")))
