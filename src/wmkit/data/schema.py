"""The schema of a replay's records: fields, their encodings, the owner's options, the schema file.

A :class:`Field` is one leaf key of a record with its shape, dtype and encoding:

=============  ==========================================  =======================================
encoding       stored as                                   read back
=============  ==========================================  =======================================
``raw``        the tensor's own dtype                      identical
``one_hot:C``  class index per group, uint8 or int16       identical for exact one-hot (or all-zero)
                                                           groups; others snap to their arg-max
``float16``    half precision                              relative error 2**-11; magnitudes
                                                           above 65504 are clamped
``bfloat16``   the same with float32's range               relative error 2**-8; identical where the
                                                           value was carried in bfloat16
=============  ==========================================  =======================================
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from wmkit.data.files import LARGEST, brief, is_count, need, read_json
from wmkit.errors import CheckpointError, SpecError

Key = tuple[str, ...]
VERSION = 1
HALVES = ("float16", "bfloat16")
MOST_CLASSES = 8192  # of a one-hot group: a table of that many rows is kept
ADVICE = "restore it or start the run in another directory"
_TAKEN = ("counters", "_slots", "_owners")  # files of replay's own
_DTYPES = {
    name: getattr(torch, name)
    for name in (
        *("bool", "uint8", "int8", "int16", "int32", "int64"),
        *("uint16", "uint32", "uint64", "float16", "bfloat16", "float32", "float64"),
    )
}


def as_key(key: str | Key) -> Key:
    """A nested key as a tuple of strings; ``"zoomed/pixels"`` is accepted too."""
    return tuple(key.split("/")) if isinstance(key, str) else tuple(key)


_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # torch makes no table of them


def check_key(key: Key) -> str | None:
    """Why a key cannot be a file's path in replay's folder, in words; None for one that can.

    >>> check_key(("zoomed", "pixels")), check_key(("..", "x"))
    (None, "a part '..'")
    """
    if not 1 <= len(key) <= 16:
        return f"{len(key)} parts"
    for part in key:
        if part in ("", ".", "..") or re.search(r'[\x00-\x1f\ud800-\udfff/\\:*?"<>|]', part):
            return f"a part {brief(part)}"
        if len(part.encode()) > 200:
            return f"a part of {len(part)} letters"
    return f"the name of replay's own {key[0]!r}" if key[0] in _TAKEN else None


@dataclass(frozen=True)
class Field:
    """One leaf of a record.

    Attributes:
        key: nested key, for example ``("zoomed", "pixels")``.
        shape: shape of one record's value, without batch dimensions.
        dtype: dtype that callers pass in and get back.
        encoding: see the module's table.

    >>> Field(("state",), (1024,), torch.float32, "one_hot:32").stored
    ((32,), torch.uint8)
    """

    key: Key
    shape: tuple[int, ...]
    dtype: torch.dtype
    encoding: str = "raw"

    @property
    def name(self) -> str:
        """The key joined by slashes: its file's path and its name in messages."""
        return "/".join(self.key)

    @property
    def classes(self) -> int:
        """Classes per group of a one-hot encoding; 0 for the other encodings."""
        return int(self.encoding.partition(":")[2] or 0)

    @property
    def stored(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of one stored value."""
        if self.encoding in HALVES:
            return self.shape, getattr(torch, self.encoding)
        if self.encoding.startswith("one_hot"):
            # Code C means "no class" (an all-zero group), so C + 1 codes are needed.
            dtype = torch.uint8 if self.classes < 256 else torch.int16
            return (*self.shape[:-1], self.shape[-1] // self.classes), dtype
        return self.shape, self.dtype

    @property
    def stored_bytes(self) -> int:
        """Bytes of one stored value.

        >>> Field(("state",), (1024,), torch.float32, "one_hot:32").stored_bytes
        32
        """
        shape, dtype = self.stored
        return math.prod(shape) * dtype.itemsize

    def describe(self) -> str:
        """``float32 [3, 64, 64] raw``, for messages and the schema file."""
        return f"{plain(self.dtype)} {list(self.shape)} {self.encoding}"


@dataclass(frozen=True)
class Options:
    """Options of a replay's owner; kept in the schema so that reopening is exact.

    Attributes:
        num_streams: number of streams S.
        capacity: records per stream C.
        sparse: group name to number of slots.
        one_hot: key to classes per group.
        half: key to the half precision it is stored in, ``"float16"`` or ``"bfloat16"``.
    """

    num_streams: int
    capacity: int
    sparse: Mapping[str, int]
    one_hot: Mapping[str, int]
    half: Mapping[str, str]

    def fields(self, records: TensorDictBase) -> dict[Key, Field]:
        """The fields of records ``[n]``, in a fixed order."""
        found = {}
        for key, value in records.items(include_nested=True, leaves_only=True):
            key = as_key(key)
            name = "/".join(key)
            encoding = f"one_hot:{self.one_hot[name]}" if name in self.one_hot else "raw"
            encoding = self.half.get(name, encoding)
            if wrong := check_key(key):
                raise SpecError(
                    f"replay key {brief(name)} cannot be the name of a file: found {wrong}, wanted parts of "
                    "at most 200 letters without signs that paths use; rename it in the environment"
                )
            field = Field(key, tuple(value.shape[1:]), value.dtype, encoding)
            if field.classes and not _is_one_hot(field):
                raise SpecError(
                    f"replay key {name!r} is not made of one-hot groups: found shape {list(field.shape)}, "
                    f"wanted a last dimension divisible by {field.classes}, at most {MOST_CLASSES}; correct "
                    f"one_hot={{{name!r}: ...}}"
                )
            found[key] = field
        return dict(sorted(found.items()))

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "num_streams": self.num_streams,
            "capacity": self.capacity,
            "sparse": dict(sorted(self.sparse.items())),
            "one_hot": dict(sorted(self.one_hot.items())),
            "half": dict(sorted(self.half.items())),
        }

    def bytes_by_key(self, fields: Mapping[Key, Field]) -> dict[str, int]:
        """Bytes that replay takes in all, by key; ``"(bookkeeping)"`` is what finds sparse entries and
        says which records are valid.

        Args:
            fields: of the records, as :meth:`fields` gives them.

        >>> from tensordict import TensorDict
        >>> options = Options(num_streams=2, capacity=100, sparse={}, one_hot={"state": 4}, half={})
        >>> records = TensorDict({"state": torch.zeros(1, 128), "belief": torch.zeros(1, 512)}, [1])
        >>> options.bytes_by_key(options.fields(records))
        {'belief': 409600, 'state': 6400, '(bookkeeping)': 104}
        """
        rows = self.num_streams * self.capacity
        groups = {name for name in self.sparse if any(len(key) > 1 and key[0] == name for key in fields)}
        sizes = {}
        for key, field in fields.items():
            count = self.sparse[key[0]] + 1 if key[0] in groups else rows  # one more: the row of zeros
            sizes[field.name] = count * field.stored_bytes
        found = sum(8 * (rows + self.sparse[name] + 1) for name in groups)  # slots and owners
        cells = 1 + 2 * (3 * self.num_streams + len(self.sparse))
        return {**sizes, "(bookkeeping)": found + 8 * cells}


def as_half(half: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """Key to half precision; keys alone mean float16.

    Raises:
        SpecError: another precision.

    >>> as_half(["belief"])
    {'belief': 'float16'}
    """
    chosen = dict(half) if isinstance(half, Mapping) else dict.fromkeys(half, "float16")
    for name, precision in chosen.items():
        if precision not in HALVES:
            raise SpecError(
                f"replay cannot store {name!r} in {precision!r}: wanted {' or '.join(HALVES)}; "
                "leave the key out to keep its own dtype"
            )
    return chosen


def save_schema(directory: Path, options: Options, fields: Mapping[Key, Field]) -> None:
    """Write ``schema.json`` at once: a directory without it holds no replay."""
    described = [
        {"key": f.name, "dtype": plain(f.dtype), "shape": f.shape, "encoding": f.encoding}
        for f in fields.values()
    ]
    text = json.dumps({"version": VERSION, "options": options.as_json(), "fields": described}, indent=2)
    temporary = directory / "schema.json.new"
    temporary.write_text(text + "\n")
    os.replace(temporary, directory / "schema.json")


def load_schema(directory: Path) -> tuple[Options, dict[Key, Field]] | None:
    """Read ``schema.json``, or None where there is none.

    Raises:
        CheckpointError: the file is not a schema that this version of wmkit reads.
    """
    path = directory / "schema.json"
    if not os.path.lexists(path):
        return None
    raw, thing = read_json(path, ADVICE), repr(str(path))
    need(isinstance(raw, dict), f"replay schema {thing}", raw, "a mapping", ADVICE)
    if raw.get("version") != VERSION:
        raise CheckpointError(
            f"replay schema {thing} is of another version: found {brief(raw.get('version'))}, wanted "
            f"{VERSION}; open it with the wmkit that wrote it"
        )
    options = _read_options(raw.get("options"), f"of replay schema {thing}")
    given = raw.get("fields")
    need(isinstance(given, list), f"'fields' of replay schema {thing}", given, "a list", ADVICE)
    fields = [_read_field(one, f"{i} of 'fields' of replay schema {thing}") for i, one in enumerate(given)]
    found = {field.key: field for field in fields}
    need(
        len(found) == len(fields),
        f"'fields' of replay schema {thing}",
        sorted(found),
        "every key once",
        ADVICE,
    )
    flags = [
        ("is_init",),
        ("done",),
        *((f"is_{key[0]}",) for key in found if key[0] in options.sparse and key[1:]),
    ]
    for flag in flags:
        field = found.get(flag)
        fits = field == Field(flag, (1,), torch.bool)
        said = "nothing" if field is None else field.describe()
        need(fits, f"{flag[0]!r} of 'fields' of replay schema {thing}", said, "bool [1] raw", ADVICE)
    return options, found


def _read_options(raw: Any, where: str) -> Options:
    names = ("num_streams", "capacity", "sparse", "one_hot", "half")
    fits = isinstance(raw, dict) and raw.keys() == set(names)
    need(fits, f"'options' {where}", raw, f"a mapping with {', '.join(names)}", ADVICE)
    for name, least, most in (("num_streams", 1, 2**20), ("capacity", 2, 2**40)):
        wanted = f"a whole number from {least} to {most}"
        need(is_count(raw[name], least, most), f"{name!r} {where}", raw[name], wanted, ADVICE)
    for name, most in (("sparse", 2**40), ("one_hot", MOST_CLASSES)):
        fits = isinstance(raw[name], dict) and all(is_count(n, 1, most) for n in raw[name].values())
        need(fits, f"{name!r} {where}", raw[name], f"a mapping to whole numbers from 1 to {most}", ADVICE)
    half = raw["half"]
    fits = isinstance(half, dict) and all(precision in HALVES for precision in half.values())
    need(fits, f"'half' {where}", half, f"a mapping to {' or '.join(HALVES)}", ADVICE)
    return Options(**raw)


def _read_field(raw: Any, where: str) -> Field:
    names = ("key", "dtype", "shape", "encoding")
    fits = isinstance(raw, dict) and raw.keys() == set(names)
    need(fits, where, raw, f"a mapping with {', '.join(names)}", ADVICE)
    name, dtype, shape, encoding = (raw[name] for name in names)
    wrong = check_key(as_key(name)) if isinstance(name, str) else "no words"
    need(wrong is None, f"'key' of {where}", name, "names that stay in its folder", ADVICE)
    need(
        isinstance(dtype, str) and dtype in _DTYPES,
        f"'dtype' of {where}",
        dtype,
        "a dtype of numbers",
        ADVICE,
    )
    fits = isinstance(shape, list) and len(shape) <= 16 and all(map(is_count, shape))
    fits = fits and math.prod(max(n, 1) for n in shape) < LARGEST // 2**20
    need(fits, f"'shape' of {where}", shape, "a list of whole numbers", ADVICE)
    known = isinstance(encoding, str) and re.fullmatch(r"raw|float16|bfloat16|one_hot:[1-9]\d{0,5}", encoding)
    need(bool(known), f"'encoding' of {where}", encoding, "raw, one_hot:CLASSES or a half precision", ADVICE)
    field = Field(as_key(name), tuple(shape), _DTYPES[dtype], encoding)
    halved = encoding in HALVES and not field.dtype.is_floating_point
    need(not halved, f"'encoding' of {where}", f"{encoding} of {dtype}", "a float's", ADVICE)
    groups = f"a last dimension of 'shape' divisible by at most {MOST_CLASSES}"
    need(not field.classes or _is_one_hot(field), f"'encoding' of {where}", encoding, groups, ADVICE)
    return field


def _is_one_hot(field: Field) -> bool:
    fits = bool(field.shape) and field.classes <= MOST_CLASSES and field.dtype not in _UNSIGNED
    return fits and not field.shape[-1] % field.classes


def check_nothing_written(directory: Path) -> None:
    """Raise CheckpointError where records lie without the schema that tells how to read them."""
    counters = directory / "counters.memmap"
    if counters.is_file() and any(counters.read_bytes()):
        raise CheckpointError(
            f"replay {directory} cannot be read: found records without schema.json, wanted both; restore it, "
            "or move the folder away to begin an empty replay"
        )


def check_options(directory: Path, found: Options, wanted: Options) -> None:
    """Raise CheckpointError where a reopened replay was made with other options."""
    old, new = found.as_json(), wanted.as_json()
    for name, value in old.items():
        if value != new[name]:
            raise CheckpointError(
                f"replay {directory} has another {name}: found {value}, wanted {new[name]}; "
                "resume with the options of the run that wrote it, or choose another directory"
            )


def first_difference(found: Mapping[Key, Field], wanted: Mapping[Key, Field]) -> str | None:
    """``key 'pixels' differs: found ..., wanted ...`` for the first field that differs."""
    for key in sorted({*found, *wanted}):
        old, new = found.get(key), wanted.get(key)
        if old != new:
            described = [f.describe() if f else "nothing" for f in (old, new)]
            return f"key {'/'.join(key)!r} differs: found {described[0]}, wanted {described[1]}"
    return None


def plain(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
