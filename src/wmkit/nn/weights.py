"""Weights from elsewhere: a file is read without executing anything and compared before anything changes.

:func:`read_weights` gives what lies in a file, :func:`compare` says in what names and shapes two sets of
weights differ, :func:`as_float32` checks one array, and :func:`fill` does all of it for a module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wmkit.errors import CheckpointError, MissingWeightsError

NAMED = 10  # names of each kind in a message, before the rest is counted
Shapes = Mapping[str, tuple[int, ...]]
Troubles = Mapping[str, list[str]]


def read_weights(path: str | PathLike, what: str, advice: str) -> Any:
    """What lies in a file of ``torch.save`` or in a safetensors file, on the CPU.

    Only tensors and plain containers are read, of whatever else a pickle asks nothing is called. Tensors of a
    file in PyTorch's present format stay on the disk until they are read: copy those that are kept.

    Args:
        path: of the file; one that ends in ``.safetensors`` is read as that.
        what: begins the sentence.
        advice: where to get the file.

    Raises:
        MissingWeightsError: there is no such file.
        CheckpointError: it is torn, of another kind, or holds more than tensors and containers.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingWeightsError(f"{what} {str(path)!r} does not exist: wanted a file; {advice}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused below anyway
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # of PyTorch before 1.6
    except Exception as error:  # many kinds, for what is no checkpoint
        why = "more than weights" if "Unsupported" in str(error) else type(error).__name__
        raise CheckpointError(
            f"{what} {str(path)!r} cannot be read: found {why}, wanted tensors written by torch.save and "
            f"nothing that executes; {advice}"
        ) from error


def compare(wanted: Shapes, found: Shapes) -> dict[str, list[str]]:
    """What is missing, unknown and of another shape, each sorted.

    >>> compare({"a": (2,), "b": (1,)}, {"a": (3,), "c": ()})
    {'missing': ['b'], 'unknown': ['c'], '': ['a of shape [3] instead of [2]']}
    """
    wrong = [
        f"{name} of shape {list(found[name])} instead of {list(shape)}"
        for name, shape in sorted(wanted.items())
        if name in found and found[name] != shape
    ]
    return {"missing": sorted(wanted.keys() - found), "unknown": sorted(found.keys() - wanted), "": wrong}


def said(troubles: Troubles) -> str:
    """The troubles in words, at most ten names of each; empty where there are none.

    >>> said({"missing": ["a", "b"], "unknown": [], "": ["c of shape [1] instead of [2]"]})
    'missing a, b, c of shape [1] instead of [2]'
    """
    return ", ".join(f"{what} {_listed(names)}".strip() for what, names in troubles.items() if names)


def as_float32(name: str, value: Any, owner: str) -> Tensor:
    """Any array as a tensor: bfloat16 of PyTorch is unknown to NumPy, that of JAX to PyTorch.

    Raises:
        CheckpointError: it holds anything but finite real numbers, or holds them in no plain way.
    """
    if isinstance(value, Tensor) and (why := strange(value)):
        raise no_numbers(name, why, owner)
    if torch.is_complex(value) if isinstance(value, Tensor) else np.iscomplexobj(value):
        raise no_numbers(name, "complex numbers", owner)
    try:
        if isinstance(value, Tensor):
            array = value.detach().float()
        else:
            with np.errstate(over="ignore"):  # said below
                array = torch.from_numpy(np.array(value, np.float32, order="C"))
    except (TypeError, ValueError) as error:
        raise no_numbers(name, type(value).__name__, owner) from error
    if not array.isfinite().all():
        raise no_numbers(name, "numbers that are NaN or infinite in float32", owner)
    return array


def shape_of(name: str, value: Any, owner: str) -> tuple[int, ...]:
    """The shape of an array.

    Raises:
        CheckpointError: it is a ragged list.
    """
    try:
        return tuple(np.shape(value))
    except (TypeError, ValueError) as error:
        raise no_numbers(name, type(value).__name__, owner) from error


def no_numbers(name: str, found: str, owner: str) -> CheckpointError:
    """The error for a weight that is none."""
    return CheckpointError(
        f"weight {name!r} of {owner} is not an array of finite real numbers: found {found}, "
        "wanted a NumPy or JAX array or a tensor of them; convert or save it again"
    )


def strange(value: Tensor) -> str:
    """How a tensor holds its numbers, where that is not the plain way; empty where it is."""
    if value.is_meta:
        return "no memory"
    if value.is_quantized:
        return "quantized numbers"
    return "" if value.layout is torch.strided and not value.is_nested else "a sparse or nested tensor"


def fill(
    module: nn.Module,
    weights: Any,
    what: str,
    advice: str,
    cause: Callable[[Troubles], str] = lambda troubles: "",
) -> None:
    """``load_state_dict`` that fills everything, or says in one sentence why not and changes nothing.

    A module on the ``meta`` device gets its memory here, float32 as it was built.

    Args:
        module: its own state dict says what is wanted.
        weights: names to tensors, of any precision.
        what: begins the sentence.
        advice: what to do when they do not fit.
        cause: the likely reason, given what is missing, unknown and of another shape; empty for none.

    Raises:
        CheckpointError: ``weights`` is no mapping to tensors, an entry is missing, unknown or of another
            shape, or holds anything but finite numbers.

    >>> layer = nn.Linear(2, 1)
    >>> fill(layer, {"weight": torch.zeros(1, 2)}, "a file", "take another")
    Traceback (most recent call last):
    wmkit.errors.CheckpointError: a file does not fit Linear: missing bias, wanted exactly its names and ...
    """
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise CheckpointError(
            f"{what} holds a {type(weights).__name__}: wanted a mapping from names to tensors; {advice}"
        )
    own = module.state_dict()
    found = {name: shape_of(name, value, what) for name, value in weights.items()}
    troubles = compare({name: tuple(x.shape) for name, x in own.items()}, found)
    if text := said(troubles):
        raise CheckpointError(
            f"{what} does not fit {type(module).__name__}: {text}, wanted exactly its names and shapes; "
            f"{cause(troubles) or advice}"
        )
    ready = {}
    for name, x in own.items():
        array = as_float32(name, weights[name], what) if x.is_floating_point() else weights[name]
        if not isinstance(array, Tensor) or strange(array):
            raise no_numbers(name, type(array).__name__, what)
        ready[name] = array.to(x.dtype, copy=x.is_meta)  # a copy: what is read may lie on the disk
    module.load_state_dict(ready, assign=any(x.is_meta for x in own.values()))


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
