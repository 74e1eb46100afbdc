"""Checks of shapes: of Python's numbers and of sizes alone, so that no device is waited for and a compiler
sees through them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wmkit.errors import SpecError


def check_shape(where: str, name: str, x: Tensor, wanted: Sequence[int], layout: str) -> None:
    """One tensor against the shape that others give it.

    Args:
        where: who was called.
        name: of the argument.
        x: the tensor.
        wanted: its shape.
        layout: the same in letters.

    Raises:
        SpecError: another shape; nothing is broadcast.

    >>> check_shape("scan", "reset", torch.zeros(1, 5), (2, 5), "[B, T]")
    Traceback (most recent call last):
    wmkit.errors.SpecError: scan got reset of shape [1, 5]: wanted [B, T], here [2, 5]; reshape or expand it
    """
    if x.shape != tuple(wanted):
        raise SpecError(
            f"{where} got {name} of shape {list(x.shape)}: wanted {layout}, here {list(wanted)}; "
            "reshape or expand it"
        )


def check_samples(where: str, name: str, x: Tensor, wanted: Sequence[int], layout: str) -> None:
    """As :func:`check_shape` of one sample, or of several that stand in front: ``[*N, *B, ...]``."""
    several = x.shape[: max(x.ndim - len(wanted), 0)]
    check_shape(where, name, x, (*several, *wanted), layout)


def check_equal(where: str, layout: str, **tensors: Tensor) -> None:
    """Several tensors of one shape, whose last dimension is as ``layout`` says where that is a number.

    Raises:
        SpecError: shapes differ, or are not that.

    >>> check_equal("kl", "[*B, T, 1]", p=torch.zeros(3, 1), q=torch.zeros(2, 3))
    Traceback (most recent call last):
    wmkit.errors.SpecError: kl got p [3, 1], q [2, 3]: wanted one shape [*B, T, 1]; reshape or expand them
    """
    shape = next(iter(tensors.values())).shape
    named = layout.strip("[]").split(", ")
    few = len(shape) < len(named) - (named[0][0] == "*")
    if few or any(x.shape != shape for x in tensors.values()) or (named[-1] == "1" and shape[-1] != 1):
        found = ", ".join(f"{name} {list(x.shape)}" for name, x in tensors.items())
        raise SpecError(f"{where} got {found}: wanted one shape {layout}; reshape or expand them")


def check_factor(
    where: str,
    name: str,
    value: float | Tensor,
    shape: Sequence[int],
    most: float = 1.0,
    open_end: bool = False,
) -> None:
    """A factor from 0 to ``most``: a number by its value, a tensor by whether ``shape`` takes it unchanged.

    Raises:
        SpecError: a number outside, or a tensor that would widen the result.

    >>> check_factor("gain", "gamma", 5, (3, 1))
    Traceback (most recent call last):
    wmkit.errors.SpecError: gain got gamma 5: wanted 0 to 1; correct gamma
    >>> check_factor("gain", "mix", torch.ones(3), (3, 1))
    Traceback (most recent call last):
    wmkit.errors.SpecError: gain got mix of shape [3]: wanted one number or what fits [3, 1]; add dimensions
    """
    if isinstance(value, Tensor):
        behind = tuple(shape)[len(shape) - value.ndim :] if value.ndim <= len(shape) else None
        if behind is None or any(n not in (1, m) for n, m in zip(value.shape, behind, strict=True)):
            raise SpecError(
                f"{where} got {name} of shape {list(value.shape)}: wanted one number or what fits "
                f"{list(shape)}; add dimensions"
            )
    elif not 0 <= value <= most or (open_end and value == most):
        end = f"less than {most:g}" if open_end else f"{most:g}"
        raise SpecError(f"{where} got {name} {value!r}: wanted 0 to {end}; correct {name}")


def check_least(where: str, name: str, x: Tensor, least: float) -> None:
    """Values of plain tensors on a CPU, where looking costs nothing; elsewhere they are trusted.

    Raises:
        SpecError: one is below ``least``.

    >>> check_least("gain", "steps", torch.tensor([2.0, 0.0]), 1)
    Traceback (most recent call last):
    wmkit.errors.SpecError: gain got steps of 0: wanted 1 or more; correct steps
    """
    if x.device.type != "cpu" or type(x) is not Tensor or torch.compiler.is_compiling():
        return
    if (x.detach() < least).any():
        raise SpecError(f"{where} got {name} of {x.min():g}: wanted {least:g} or more; correct {name}")
