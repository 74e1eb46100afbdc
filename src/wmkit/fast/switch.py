"""The switch in front of every short cut.

A short cut computes what plain PyTorch computes, to rounding, in less time on the machine it was made for.
Each one asks :func:`enabled` and nothing else, so that :func:`disabled` leaves plain code alone, e.g. to see
whether a number that looks wrong comes from one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

_on = True


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Plain code only, in every thread, until the block ends.

    >>> with disabled():
    ...     enabled(torch.zeros(1))
    False
    >>> enabled(torch.zeros(1))
    True
    """
    global _on
    before, _on = _on, False
    try:
        yield
    finally:
        _on = before


def enabled(x: Tensor, *, autocast: bool = False, everywhere: bool = False, compiled: bool = False) -> bool:
    """Whether a short cut may be taken for ``x``: by default on a CPU, in the precision of its tensors.

    Compilers, tracers and transforms such as ``vmap`` know PyTorch alone and get the plain code.

    Args:
        x: any tensor of the computation; only its device is read.
        autocast: the short cut is right under autocast, too.
        everywhere: it helps on every device.
        compiled: it is itself made of what compilers, tracers and transforms know.
    """
    return _on and suits(x, autocast=autocast, everywhere=everywhere, compiled=compiled)


def suits(x: Tensor, *, autocast: bool = False, everywhere: bool = False, compiled: bool = False) -> bool:
    """:func:`enabled`, whatever the switch says."""
    device = x.device.type
    return (
        (compiled or not _is_watched())
        and (everywhere or device == "cpu")
        and (autocast or not _is_lowered(device))
    )


def rows_are_free(x: Tensor) -> bool:
    """Whether a number of rows that depends on data costs nothing: on a CPU, where PyTorch alone looks on.

    Elsewhere shapes stay fixed and masks do the choosing. Not for the switch to say, where the number of rows
    decides how many random numbers are drawn.

    >>> rows_are_free(torch.zeros(1))
    True
    """
    return suits(x, autocast=True)


def _is_watched() -> bool:
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def _is_lowered(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def learns(*tensors: Tensor | None) -> bool:
    """Whether a gradient of one of them is recorded.

    >>> learns(torch.zeros(1)), learns(torch.zeros(1, requires_grad=True), None)
    (False, True)
    """
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
