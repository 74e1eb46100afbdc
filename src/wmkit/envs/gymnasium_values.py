"""What a gymnasium environment hands over, checked against its space and copied; how its actions are written.

    observation    environment ──▶ checked, copied, of its space's dtype ──▶ pictures turned ──▶ TorchRL
    action         TorchRL ──▶ shape, dtype and start of the environment's space ──▶ environment

An environment may fill one array again and again, or hand out lists and numbers where its space says arrays:
both are read. What cannot be read is a sentence that names environment, key, what was found and wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Text, Tuple

from wmkit.envs.gymnasium_images import fit_picture
from wmkit.errors import SpecError

CHOICES = 10_000  # values up to which a whole number between bounds is a choice
TORCH = {"u2": np.int32, "u4": np.int64, "u8": np.int64, "f8": np.float32, "b1": np.uint8}  # what it has for
Convert = Callable[[Any], Any]


def shown(space: Space, name: str, resize: int | None = None, key: str = "") -> tuple[Space, Convert]:
    """What TorchRL is to see of an observation, and how to make that of what is handed over.

    Args:
        space: as the environment states it.
        name: of the environment, for messages.
        resize: side of pictures; None leaves them as they are.
        key: of the observation, nested ones with ``/``.

    >>> space, read = shown(Dict(speed=Box(-1, 1, (2,))), "any")
    >>> read({"speed": [0.5, 1]})
    {'speed': array([0.5, 1. ], dtype=float32)}
    >>> read({"pace": [0.5, 1]})
    Traceback (most recent call last):
    wmkit.errors.SpecError: env 'any' showed no observation 'speed': found the keys pace, wanted speed; ...
    """
    if isinstance(space, Dict):
        parts = {k: shown(part, name, resize, f"{key}/{k}" if key else str(k)) for k, part in space.items()}
        reads = {k: read for k, (_, read) in parts.items()}
        return Dict({k: part for k, (part, _) in parts.items()}), _read_dict(reads, name, key)
    if isinstance(space, Discrete):
        classes = MultiDiscrete([space.n], start=[space.start])
        return Discrete(space.n), lambda value: int(_classes(classes, value, name, key).item())
    if isinstance(space, MultiDiscrete):
        flat = space.nvec if space.nvec.ndim == 1 else space.nvec.ravel()
        return MultiDiscrete(flat, space.dtype), lambda value: _classes(space, value, name, key).reshape(-1)
    if isinstance(space, (Box, MultiBinary)):
        return _numbers(space, name, resize, key)
    return Text(1), lambda value: value  # as TorchRL holds any object


def taken(space: Space) -> tuple[Space, Convert]:
    """The action space that TorchRL is to see, and how to write its actions for the environment.

    What is one choice, alone in a Dict or Tuple too, becomes ``Discrete``, counted from 0; numbers become
    one vector of those that are free (low < high). What is neither stays, and a system that cannot choose it
    says so.

    >>> space, write = taken(Box(np.array([-1, 0]), np.array([1, 0]), dtype=np.float64))
    >>> space, write(np.array([0.5]))
    (Box(-1.0, 1.0, (1,), float32), array([0.5, 0. ]))
    >>> space, write = taken(MultiDiscrete([4], start=[2]))
    >>> space, write(1)
    (Discrete(4), array([3]))
    """
    if isinstance(space, (Dict, Tuple)) and len(space) == 1:
        one, write = taken(next(iter(space.values() if isinstance(space, Dict) else space)))
        keys = list(space) if isinstance(space, Dict) else None
        return one, lambda value: {keys[0]: write(value)} if keys else (write(value),)
    if isinstance(space, Dict):
        parts = {key: taken(part) for key, part in space.items()}
        whole = Dict({key: part for key, (part, _) in parts.items()})
        return whole, lambda value: {key: write(value[key]) for key, (_, write) in parts.items()}
    if isinstance(space, Discrete):
        return Discrete(space.n), lambda value: int(value) + int(space.start)
    if isinstance(space, MultiDiscrete):
        if space.nvec.size == 1:
            return Discrete(int(space.nvec.item())), lambda value: np.asarray(
                value + space.start, space.dtype
            )
        flat = MultiDiscrete(space.nvec.ravel(), space.dtype)
        return flat, lambda value: (np.reshape(value, space.shape) + space.start).astype(space.dtype)
    if isinstance(space, MultiBinary):
        choice = Discrete(2) if np.prod(space.shape) == 1 else MultiBinary(int(np.prod(space.shape)))
        return choice, lambda value: np.reshape(value, space.shape).astype(space.dtype)
    return _vector(space) if isinstance(space, Box) and space.low.size else (space, lambda value: value)


def _vector(space: Box) -> tuple[Space, Convert]:
    """An array as one vector of floats, or as one choice."""
    low, high, free = space.low, space.high, space.low < space.high

    def write(value: Any) -> np.ndarray:
        whole = low.copy()
        whole[free] = np.reshape(value, -1)
        return np.asarray(np.clip(whole, low, high))  # float32 may round beyond bounds of float64

    if not free.any():
        return Discrete(1), lambda value: low.copy()
    if space.dtype.kind in "iub":
        if free.sum() > 1:
            return space, lambda value: value
        first, last = int(low[free].item()), int(high[free].item())
        if last - first >= CHOICES:
            return space, lambda value: value
        return Discrete(last - first + 1), lambda value: write(space.dtype.type(first + int(value)))
    return Box(low[free].astype(np.float32), high[free].astype(np.float32)), write


def _read_dict(reads: Mapping[str, Convert], name: str, key: str) -> Convert:
    inside = f" in {key!r}" if key else ""

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise SpecError(
                f"env {name!r} showed {_describe(value)}{inside}: wanted a dict with {', '.join(reads)}, "
                "as its observation space says; correct the environment"
            )
        for one in reads:
            if one not in value:
                whole = f"{key}/{one}" if key else one
                raise SpecError(
                    f"env {name!r} showed no observation {whole!r}: found the keys "
                    f"{', '.join(map(str, value)) or 'of an empty dict'}, wanted {', '.join(reads)}; correct "
                    "the environment"
                )
        return {one: read(value[one]) for one, read in reads.items()}

    return read


def _numbers(space: Box | MultiBinary, name: str, resize: int | None, key: str) -> tuple[Space, Convert]:
    if isinstance(space, MultiBinary):
        return MultiBinary(int(np.prod(space.shape))), lambda value: _array(space, value, name, key).reshape(
            -1
        )
    fitted, turn = fit_picture(space, resize) or (space, lambda array: array)
    dtype = np.dtype(TORCH.get(fitted.dtype.str[1:], fitted.dtype))
    if dtype == fitted.dtype and type(fitted) is Box:
        return fitted, lambda value: turn(_array(space, value, name, key))
    low, high = fitted.low, fitted.high
    if fitted.dtype == np.uint64:  # a limit that int64 has not
        low, high = (np.minimum(edge, np.iinfo(np.int64).max) for edge in (low, high))
    known = Box(low.astype(dtype), high.astype(dtype), fitted.shape, dtype.type)
    return known, lambda value: turn(_array(space, value, name, key)).astype(dtype)


def _classes(space: MultiDiscrete, value: Any, name: str, key: str) -> np.ndarray:
    """Classes that count from 0."""
    array = _array(space, value, name, key) - space.start
    if (array < 0).any() or (array >= space.nvec).any():
        raise SpecError(
            f"env {name!r} showed {np.asarray(value).tolist()!r} as {_named(key)}: wanted classes from "
            f"{_short(space.start)} to {_short(space.start + space.nvec - 1)}, as its space says; "
            "correct the environment"
        )
    return array


def _array(space: Space, value: Any, name: str, key: str) -> np.ndarray:
    """A copy of what was handed over, in the shape and dtype of its space."""
    shape, dtype = space.shape or (), space.dtype
    if type(value) is np.ndarray and value.dtype == dtype and value.shape == shape:
        return value.copy()
    try:
        found = np.asarray(value)
        with np.errstate(invalid="ignore"):  # a NaN as a whole number is found below
            copied = np.array(found, dtype)
        if copied.size == 1 == np.prod(shape):  # a number and an array of one
            copied = copied.reshape(shape)
        if found.dtype == dtype or copied.dtype.kind == "f":
            same = found.dtype.kind in "fiub"
        else:  # whole numbers may come as others, where none is changed
            same = bool(np.array_equal(copied.reshape(found.shape), found))
        if copied.shape == shape and same:
            return copied
    except (TypeError, ValueError, OverflowError):  # None, text, ragged lists
        pass
    raise SpecError(
        f"env {name!r} showed {_describe(value)} as {_named(key)}: wanted an array of shape {list(shape)} of "
        f"{dtype}, as its space says; correct the environment"
    )


def _named(key: str) -> str:
    return f"observation {key!r}" if key else "its observation"


def _short(numbers: np.ndarray) -> str:
    return str(numbers.item()) if numbers.size == 1 else str(numbers.tolist())


def _describe(value: Any) -> str:
    """What was handed over, in few words."""
    if value is None:
        return "None"
    if isinstance(value, np.ndarray) and value.size > 1:
        return f"an array of shape {list(value.shape)} of {value.dtype}"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(str, value)) or 'nothing'}"
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) < 40 else f"a {type(value).__name__}"
