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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from wmkit.errors import CheckpointError, SpecError

Key = tuple[str, ...]
VERSION = 1
HALVES = ("float16", "bfloat16")


def as_key(key: str | Key) -> Key:
    """A nested key as a tuple of strings; ``"zoomed/pixels"`` is accepted too."""
    return tuple(key.split("/")) if isinstance(key, str) else tuple(key)


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
            field = Field(key, tuple(value.shape[1:]), value.dtype, encoding)
            if field.classes and (not field.shape or field.shape[-1] % field.classes):
                raise SpecError(
                    f"replay key {name!r} is not made of one-hot groups: found shape {list(field.shape)}, "
                    f"wanted a last dimension divisible by {field.classes}; correct one_hot={{{name!r}: ...}}"
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
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text())
        if raw["version"] != VERSION:
            raise CheckpointError(
                f"replay schema {path} is of another version: found {raw['version']}, wanted {VERSION}; "
                "open it with the wmkit that wrote it"
            )
        options = Options(**{**raw["options"], "half": as_half(raw["options"]["half"])})
        fields = [
            Field(as_key(f["key"]), tuple(f["shape"]), getattr(torch, f["dtype"]), f["encoding"])
            for f in raw["fields"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"replay schema {path} cannot be read: found {error!r}, wanted the JSON that wmkit writes; "
            "restore it or start the run in another directory"
        ) from error
    return options, {f.key: f for f in fields}


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
