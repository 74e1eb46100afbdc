"""Storage of a replay's records: one column per field, and the counters that say what is valid.

Both are NumPy arrays, in memory or mapped to files: at one record per call, NumPy's slice
assignment and ``take`` cost a fifth of torch's. Files are TensorDict's raw memory maps,
readable with :meth:`tensordict.MemoryMappedTensor.from_filename`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tensordict import MemoryMappedTensor
from torch import Tensor

from wmkit.data.schema import Field
from wmkit.errors import CheckpointError


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
        if directory is None:
            tensor = torch.empty(full, dtype=dtype)
        else:
            tensor = _mapped(directory / f"{field.name}.memmap", full, dtype, create)
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
            tensor = _mapped(path, torch.Size((cells,)), torch.int64, create)
            memory = tensor.numpy()
            if create:
                memory[:] = 0
        self._chosen, self._copies = memory[:1], memory[1:].reshape(2, size)
        self.live = np.array(self._copies[int(self._chosen[0])])

    def commit(self) -> None:
        """Make :attr:`live` what the next process will find."""
        other = 1 - int(self._chosen[0])
        self._copies[other] = self.live
        self._chosen[0] = other


def _mapped(path: Path, shape: torch.Size, dtype: torch.dtype, create: bool) -> Tensor:
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return MemoryMappedTensor.empty(shape, dtype=dtype, filename=str(path)).as_subclass(torch.Tensor)
    wanted = shape.numel() * dtype.itemsize
    found = path.stat().st_size if path.exists() else 0
    if found < wanted:
        raise CheckpointError(
            f"replay file {path} is incomplete: found {found} bytes, wanted {wanted}; "
            "restore it or start the run in another directory"
        )
    return MemoryMappedTensor.from_filename(str(path), dtype=dtype, shape=shape).as_subclass(torch.Tensor)


def _as_numpy(tensor: Tensor) -> np.ndarray:
    """The same memory where that is on the CPU; NumPy has no bfloat16, so that passes as int16."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy(force=True)
