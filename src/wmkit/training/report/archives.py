"""Evidence files, read: what they hold is checked, and nothing in them is unpickled."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from wmkit.data.files import brief, need
from wmkit.errors import CheckpointError

MOST_BYTES, ADVICE = 1 << 30, "delete it; wmkit eval draws it anew"
# By file and array: kinds of dtype, and axes by letter, of which equal ones are equally long.
KINDS: dict[str, dict[str, tuple[str, str]]] = {
    "affordance": {
        "frames": ("u", "KHWC"),
        "maps": ("f", "KHW"),
        "masks": ("b", "KHW"),
        "labels": ("f", "KHW"),
    },
    "imagination": {
        **{"real": ("u", "RTHWC"), "imagined": ("u", "RTHWC"), "context": ("iu", ""), "images": ("U", "I")},
        **{"curves": ("U", "L"), "curves_real": ("f", "LT"), "curves_imagined": ("f", "LT")},
        **{"jump": ("b", "RT"), "jump_steps": ("f", "RT")},
    },
    "spans": {
        **{"goal_predicted": ("f", "M"), "goal_real": ("f", "M")},
        **{"pair_predicted": ("f", "N"), "pair_real": ("f", "N")},
    },
}
NEEDED = {"affordance": {"frames", "maps"}, "imagination": {"context"}, "spans": set[str]()}


def _beside(file: str, name: str) -> set[str]:
    """Arrays without which this one cannot be drawn."""
    if file == "spans":
        swapped = {"predicted": "real", "real": "predicted"}
        first, _, last = name.rpartition("_")
        return {f"{first}_{swapped[last]}"} if last in swapped else set()
    if name.startswith("curves"):
        return {"curves", "curves_real", "curves_imagined"}
    if name.startswith(("real", "imagined")):
        number = name.removeprefix("real").removeprefix("imagined")
        return {f"real{number}", f"imagined{number}"}
    return {"jump", "jump_steps"} if file == "imagination" and name.startswith("jump") else set()


def load_evidence(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of one evidence file, checked; None where there is none.

    Args:
        path: ``affordance.npz``, ``imagination.npz`` or ``spans.npz``.

    Raises:
        CheckpointError: it cannot be read, an array is missing, or one is of another kind or shape.
    """
    if not path.exists():
        return None
    thing = f"evidence {str(path)!r}"
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [_announced(archive, info) for info in archive.infolist()]
        if sum(sizes) > MOST_BYTES:
            raise ValueError(f"{sum(sizes):,} bytes")
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else brief(str(error))
        raise CheckpointError(
            f"{thing} cannot be read: found {why}, wanted arrays as wmkit saves them; {ADVICE}"
        ) from error
    lengths: dict[str, int] = {}
    wanted_too = {other for name in arrays for other in _beside(path.stem, name)} | NEEDED[path.stem]
    missing = sorted(wanted_too - arrays.keys())
    need(not missing, thing, sorted(arrays), f"{', '.join(missing)} too", ADVICE)
    for name, array in arrays.items():
        kind, axes = KINDS[path.stem].get(re.sub(r"_\d+$", "", name), ("", ""))
        if not kind:
            continue
        own = name[-1] if name[-1].isdigit() else ""  # each of several keys has its own size
        letters = [axis + own if axis in "HWC" else axis for axis in axes]
        fits = (
            array.dtype.kind in kind and array.ndim == len(letters) and (kind != "u" or array.itemsize == 1)
        )
        fits = fits and all(
            n == lengths.setdefault(axis, n) for axis, n in zip(letters, array.shape, strict=True)
        )
        wanted = " ".join(f"{axis}={lengths.get(axis, 'any')}" for axis in letters) or "a number"
        need(fits, f"{name!r} of {thing}", f"{array.dtype} {list(array.shape)}", f"{kind} [{wanted}]", ADVICE)
    return arrays


def _announced(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Bytes of one array, as its header says; ValueError where the file has others, or no plain numbers."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{info.filename} of version {version}")
        header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = header(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or size != info.file_size - file.tell():
            raise ValueError(f"{info.filename} of {dtype} {brief(shape)} in {info.file_size} bytes")
    return size
