"""Storage of a replay's records: one column per field, and the counters that say what is valid.

Both are NumPy arrays, in memory or mapped to files: at one record per call, NumPy's slice
assignment and ``take`` cost a fifth of torch's. Files are TensorDict's raw memory maps,
readable with :meth:`tensordict.MemoryMappedTensor.from_filename`. They are sparse, and a disk that is full
when a mapped page is first written kills the process: :class:`Room` has it set aside before.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tensordict import MemoryMappedTensor
from torch import Tensor

from wmkit.data.files import need
from wmkit.data.schema import Field
from wmkit.errors import CheckpointError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ADVICE = "restore it or start the run in another directory"
STEP = 1 << 20  # bytes that are set aside at a time, for each stream


class Column:
    """All values of one field, ``[rows, *stored shape]``, uninitialised at first.

    Args:
        field: what is stored, and how it is encoded.
        rows: how many values fit.
        directory: where the file lies; None keeps it in memory.
        create: make a new file, or open the old one.

    Raises:
        CheckpointError: the file is missing or too short.

    >>> column = Column(Field(("state",), (6,), torch.float32, "one_hot:3"), rows=4)
    >>> column[0:1] = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    >>> column.values[0], column.take(np.array([0, 0]), torch.empty(2, 6))[1]
    (array([1, 3], dtype=uint8), tensor([0., 1., 0., 0., 0., 0.]))
    """

    def __init__(self, field: Field, rows: int, directory: Path | None = None, *, create: bool = True):
        self.field = field
        shape, dtype = field.stored
        full = torch.Size((rows, *shape))
        self.path = None if directory is None else directory / f"{field.name}.memmap"
        if directory is None or self.path is None:
            tensor = torch.empty(full, dtype=dtype)
        else:
            tensor = _mapped(self.path, full, dtype, create, directory)
        self.values = _as_numpy(tensor)
        self._raw = field.encoding == "raw"
        self._table: Tensor | None = None
        if field.classes:  # row C is zero: the code of a group without a class
            self._table = torch.eye(field.classes + 1, field.classes, dtype=field.dtype)

    def __setitem__(self, rows: slice | np.ndarray, value: Tensor) -> None:
        """Encode and store ``[n, *shape]``."""
        if not self._raw or value.dtype != self.field.dtype:
            value = self._encode(value)
        self.values[rows] = _as_numpy(value)

    def _encode(self, value: Tensor) -> Tensor:
        if self._table is not None:
            top, code = value.unflatten(-1, (-1, self.field.classes)).max(-1)  # [n, ..., G]
            return code.masked_fill_(top < 0.5, self.field.classes)
        if self.field.encoding == "float16":
            return value.clamp(-65504.0, 65504.0).half()
        return value.to(self.field.stored[1])

    def take(self, rows: np.ndarray, out: Tensor) -> Tensor:
        """Read and decode ``rows`` (intp ``[n]``) into ``out``, contiguous ``[n, *shape]``."""
        # mode="clip" writes straight into out; the default would fill a buffer first.
        if self._raw:
            self.values.take(rows, 0, out=_as_numpy(out), mode="clip")
            return out
        stored = self.values.take(rows, 0, mode="clip")
        if self._table is None:
            return out.copy_(torch.from_numpy(stored).view(self.field.stored[1]))
        codes = stored.reshape(-1).astype(np.intp)
        _as_numpy(self._table).take(codes, 0, out=_as_numpy(out.view(-1, self.field.classes)), mode="clip")
        return out


class Room:
    """How far the rows of a ring have their place on the disk; it grows in steps, ahead of what is written.

    Args:
        columns: whose rows they are; those in memory need nothing.
        base: the ring's first row.
        rows: of the ring.
        first: position of the oldest record in it, which lies in row ``base + first % rows``.

    >>> Room([Column(Field(("reward",), (1,), torch.float32), rows=4)], 0, 4, 0).ensure(2)
    """

    def __init__(self, columns: Sequence[Column], base: int, rows: int, first: int) -> None:
        self._columns = [column for column in columns if column.path is not None]
        self._base, self._rows, self._last = base, rows, first + rows
        size = max(1, sum(column.field.stored_bytes for column in self._columns))
        self._step = min(rows, max(16, STEP // size))
        self._until: float = first if self._columns else float("inf")

    def ensure(self, end: int) -> None:
        """Set aside the place of all positions before ``end``.

        Raises:
            CheckpointError: the disk has no more; nothing that was written is lost.
        """
        if end <= self._until:
            return
        stop = min(end + self._step, self._last)
        try:
            self._reserve(stop)
        except CheckpointError:  # the last of the disk
            stop = min(end, self._last)
            self._reserve(stop)
        self._until = stop if stop < self._last else float("inf")

    def _reserve(self, stop: int) -> None:
        start = int(self._until)
        while start < stop:  # up to where the ring wraps, then from its first row
            row = start % self._rows
            count = min(stop - start, self._rows - row)
            for column in self._columns:
                reserve(column, self._base + row, count)
            start += count


def reserve(column: Column, row: int, count: int) -> None:
    """Have the disk set aside rows of a mapped column; what stands there stays.

    Raises:
        CheckpointError: the disk has no more.
    """
    if column.path is not None:
        size = column.field.stored_bytes
        _reserve(column.path, row * size, count * size)


def _reserve(path: Path, start: int, size: int) -> None:
    if size == 0:
        return
    try:
        handle = os.open(path, os.O_RDWR)
        try:
            os.posix_fallocate(handle, start, size)
            return
        finally:
            os.close(handle)
    except AttributeError:  # not on this system
        pass
    except OSError as error:
        if error.errno in FULL:
            raise _full(path, size, error) from error
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    if shutil.disk_usage(path.parent).free < size:  # the best that can be known here
        raise _full(path, size, None)


def _full(path: Path, size: int, error: Exception | None) -> CheckpointError:
    if getattr(error, "errno", None) == errno.EFBIG:
        return CheckpointError(
            f"replay file {str(path)!r} may not grow: found a limit on the size of files, wanted {size:,} "
            "bytes more; raise the limit (ulimit -f) and go on with resume=RUN, all that was written is there"
        )
    why = getattr(error, "strerror", None) or "too little room"
    return CheckpointError(
        f"replay file {str(path)!r} has no room on its disk: found {why} with "
        f"{shutil.disk_usage(path.parent).free:,} bytes free, wanted {size:,} more; make room and go on with "
        "resume=RUN, all that was written is there"
    )


class Counters:
    """Integers that change together: a killed process leaves either all old or all new.

    Two copies lie behind one cell that says which of them counts; :meth:`commit` fills the
    other one and then flips the cell, by one 8-byte store.

    Args:
        size: how many integers.
        path: their file; None keeps them in memory.
        create: make a new file of zeros, or open the old one.

    >>> counters = Counters(2)
    >>> counters.live[0] = 5
    >>> counters.commit()
    """

    def __init__(self, size: int, path: Path | None = None, *, create: bool = True):
        cells = 1 + 2 * size
        if path is None:
            memory = np.zeros(cells, dtype=np.int64)
        else:
            tensor = _mapped(path, torch.Size((cells,)), torch.int64, create, path.parent)
            memory = tensor.numpy()
            if create:
                _reserve(path, 0, memory.nbytes)
                memory[:] = 0
            chosen = int(memory[0])
            need(chosen in (0, 1), f"replay file {str(path)!r}", chosen, "0 or 1 in its first cell", ADVICE)
        self._chosen, self._copies = memory[:1], memory[1:].reshape(2, size)
        self.live = np.array(self._copies[int(self._chosen[0])])

    def commit(self) -> None:
        """Make :attr:`live` what the next process will find."""
        other = 1 - int(self._chosen[0])
        self._copies[other] = self.live
        self._chosen[0] = other


def _mapped(path: Path, shape: torch.Size, dtype: torch.dtype, create: bool, directory: Path) -> Tensor:
    if path.parent.resolve() != directory.resolve() / path.parent.relative_to(directory):
        raise CheckpointError(
            f"replay folder {str(path.parent)!r} lies elsewhere: found a link to "
            f"{str(path.parent.resolve())!r}, wanted a folder in {str(directory)!r}; move it there"
        )
    wanted = shape.numel() * dtype.itemsize
    if create:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            return MemoryMappedTensor.empty(shape, dtype=dtype, filename=str(path)).as_subclass(torch.Tensor)
        except (RuntimeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in FULL:
                raise
            raise _full(path, wanted, error) from error
    try:
        found = path.lstat()
        regular, size = stat.S_ISREG(found.st_mode), found.st_size
    except OSError:
        regular, size = True, 0
    if not regular:
        raise CheckpointError(
            f"replay file {str(path)!r} is no file: found a link, a folder or a device, wanted what wmkit "
            f"writes; {ADVICE}"
        )
    if size < wanted:
        raise CheckpointError(
            f"replay file {str(path)!r} is incomplete: found {size} bytes, wanted {wanted}; {ADVICE}"
        )
    return MemoryMappedTensor.from_filename(str(path), dtype=dtype, shape=shape).as_subclass(torch.Tensor)


def _as_numpy(tensor: Tensor) -> np.ndarray:
    """The same memory where that is on the CPU; NumPy has no bfloat16, so that passes as int16."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy(force=True)
