"""The files of one checkpoint, no pickles among them.

    tensors.safetensors   every tensor by its path: ``system/world_model.encoder.0.weight``
    state.json            the dictionaries, lists, numbers and words around them
    meta.json             step, score, versions
    sha256sums            a checksum of each of these, which ``sha256sum -c`` reads too

Checkpoints made before there were checksums hold ``state.pt`` (read with ``weights_only=True``) instead of
the first two; that is a zip archive, which has checksums of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from wmkit.data.files import brief, parse_json
from wmkit.errors import CheckpointError

TENSORS, STATE, META, SUMS, OLD = (
    *("tensors.safetensors", "state.json", "meta.json", "sha256sums"),
    "state.pt",
)
_MARKS = ("$tensor", "$tuple", "$items", "$number")


# ------------------------------------------------------------------------------------------ writing


def write(folder: Path, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write a state and what is said of it, and sync every file.

    Args:
        folder: an empty one.
        state: nested dictionaries, lists, tuples, numbers, words and tensors (on any device, of any strides).
        meta: plain values.

    Raises:
        TypeError: anything else in ``state``; the message says where.
        OSError, SafetensorError: the disk takes no more.
    """
    tensors: dict[str, Tensor] = {}
    plain = _encode(state, "", tensors, set())
    save_file(tensors, str(folder / TENSORS))
    for name, value in ((STATE, plain), (META, meta)):
        (folder / name).write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
    sums = [f"{_checksum(folder / name)}  {name}\n" for name in (TENSORS, STATE, META)]
    (folder / SUMS).write_text("".join(sums), encoding="utf-8")
    for name in (TENSORS, STATE, META, SUMS):
        with (folder / name).open("r+b") as file:
            os.fsync(file.fileno())


def _encode(value: Any, path: str, tensors: dict[str, Tensor], storages: set[int]) -> Any:
    if isinstance(value, Tensor):
        return _encode_tensor(value.detach(), path, tensors, storages)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        items = [
            (k, _encode(v, f"{path}/{k}" if path else str(k), tensors, storages)) for k, v in value.items()
        ]
        if all(isinstance(key, str) and key not in _MARKS for key in value):
            return dict(items)
        return {"$items": [[_encode(key, path, tensors, storages), one] for key, one in items]}
    if isinstance(value, (list, tuple)):
        found = [_encode(one, f"{path}/{i}", tensors, storages) for i, one in enumerate(value)]
        return {"$tuple": found} if isinstance(value, tuple) else found
    if isinstance(value, float) and not math.isfinite(value):
        return {"$number": str(value)}
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"{path!r} of a checkpoint is a {type(value).__name__}: wanted tensors and plain values")


def _encode_tensor(
    value: Tensor, path: str, tensors: dict[str, Tensor], storages: set[int]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if not value.is_contiguous():  # moments go on in the order of memory that their weights have
        if _dense(tuple(value.shape), value.stride()):
            found["strides"] = list(value.stride())
        value = value.contiguous()
    value = value.cpu()
    storage = value.untyped_storage()
    if value.numel() and (storage.data_ptr() in storages or storage.nbytes() != value.nbytes):
        value = value.clone()  # safetensors keeps no tensors that share memory
    elif value.numel():
        storages.add(storage.data_ptr())
    name, n = path, 1
    while name in tensors:  # a key with a slash in it
        name, n = f"{path}~{n}", n + 1
    tensors[name] = value
    return {"$tensor": name, **found}


def _dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether these strides are those of a permuted contiguous tensor."""
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


def _checksum(path: Path) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            digest.update(buffer[:n])
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------ reading


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, in words; None where every checksum agrees."""
    try:
        if (folder / OLD).exists() and not (folder / SUMS).exists():
            return _old_damage(folder)
        lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
        sums = dict(line.split("  ", 1)[::-1] for line in lines)
        if sums.keys() != {TENSORS, STATE, META}:
            return f"a {SUMS} that names {brief(sorted(sums))}"
        for name, wanted in sums.items():
            if _checksum(folder / name) != wanted:
                return f"a checksum of {name} that is not the one in {SUMS}"
    except OSError as error:
        return f"{Path(str(error.filename)).name if error.filename else 'a file'}: {error.strerror}"
    except ValueError:
        return f"a {SUMS} that is none"
    return None


def _old_damage(folder: Path) -> str | None:
    try:
        with zipfile.ZipFile(folder / OLD) as archive:
            torn = archive.testzip()
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError):
        return f"a {OLD} that is no archive"
    if torn is not None:
        return f"a checksum in {OLD} that is not the one of {brief(torn)}"
    if not (folder / META).is_file():
        return f"no {META}"
    return None


def read(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint whose checksums agree, on the CPU.

    Raises:
        CheckpointError: its contents are not those of a checkpoint.
    """
    try:
        if not (folder / SUMS).exists():
            found = torch.load(folder / OLD, map_location="cpu", weights_only=True)
        else:
            tensors = load_file(str(folder / TENSORS))
            found = _decode(parse_json((folder / STATE).read_bytes()), tensors)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__} at its root")
        return found
    except SafetensorError as error:
        raise unreadable(folder, f"{TENSORS}: {brief(str(error))}") from error
    except Exception as error:  # torch's own vary
        said = brief(str(error)) if isinstance(error, (ValueError, OSError)) else type(error).__name__
        raise unreadable(folder, said) from error


def unreadable(folder: Path, found: str) -> CheckpointError:
    """The refusal of a checkpoint."""
    return CheckpointError(
        f"checkpoint {str(folder)!r} cannot be read: found {found}, wanted the files that `wmkit train` "
        "wrote; move that folder away to take the one before it"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    mark = next((mark for mark in _MARKS if mark in value), None)
    if mark is None:
        return {key: _decode(one, tensors) for key, one in value.items()}
    inner = value[mark]
    if mark == "$tensor":
        return _decode_tensor(value, tensors)
    if mark == "$number":
        if inner not in ("nan", "inf", "-inf"):
            raise ValueError(f"{brief(inner)} for a number")
        return float(inner)
    if not isinstance(inner, list):
        raise ValueError(f"{brief(inner)} for a list")
    if mark == "$tuple":
        return tuple(_decode(one, tensors) for one in inner)
    pairs = [(_decode(pair[0], tensors), _decode(pair[1], tensors)) for pair in inner if _is_pair(pair)]
    return dict(pairs)


def _is_pair(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], (str, int)):
        raise ValueError(f"{brief(value)} for a key and a value")
    return True


def _decode_tensor(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    name = value["$tensor"]
    if not isinstance(name, str) or name not in tensors:
        raise ValueError(f"no tensor {brief(name)} in {TENSORS}")
    found, strides = tensors[name], value.get("strides")
    if strides is None:
        return found.clone()  # of its own: what is read is mapped to the file
    whole = isinstance(strides, list) and all(isinstance(n, int) for n in strides)
    if not whole or len(strides) != found.ndim or not _dense(tuple(found.shape), tuple(strides)):
        raise ValueError(f"strides {brief(strides)} of {brief(name)}")
    return torch.empty_strided(found.shape, strides, dtype=found.dtype).copy_(found)


# ------------------------------------------------------------------------------------------ contents


def not_finite(state: Any, path: str = "") -> str | None:
    """``NaN in tensor 'system/line/weight'`` for the first tensor that is not all finite; None without one.

    >>> not_finite({"system": {"weight": torch.tensor([1.0, float("inf")])}})
    "inf in tensor 'system/weight'"
    """
    for name, value in _tensors(state, path):
        if not value.is_floating_point() or math.isfinite(value.sum()):  # seven times as fast as isfinite
            continue
        if not bool(torch.isfinite(value).all()):
            return f"{'NaN' if bool(torch.isnan(value).any()) else 'inf'} in tensor {name!r}"
    return None


def _tensors(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _tensors(one, f"{path}/{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for i, one in enumerate(value):
            yield from _tensors(one, f"{path}/{i}")


def step_of(folder: Path) -> int | None:
    """The step in the name of a checkpoint's folder; None for any other folder.

    >>> step_of(Path("step-000000000012-000")), step_of(Path("step-mine"))
    (12, None)
    """
    found = re.fullmatch(r"step-(\d{12,18})-(\d{3,18})", folder.name)
    return None if found is None else int(found[1])
