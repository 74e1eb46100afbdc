"""Sequence models, one file each, one contract (:class:`~wmkit.backbones.base.SequenceModel`)."""

from __future__ import annotations

from typing import Any

from wmkit.backbones.base import Carry, RecurrentCell, SequenceModel
from wmkit.backbones.carries import carry_width, flatten_carry, unflatten_carry
from wmkit.registry import available, resolve

__all__ = [
    "Carry",
    "RecurrentCell",
    "SequenceModel",
    "available_backbones",
    "build",
    "carry_width",
    "flatten_carry",
    "unflatten_carry",
]


def available_backbones() -> list[str]:
    """Names that :func:`build` takes."""
    return available("backbone")


def build(name: str, in_dim: int, out_dim: int, **options: Any) -> SequenceModel:
    """Make a sequence model by name.

    Args:
        name: one of ``wmkit.available("backbone")``.
        in_dim: width D of an input.
        out_dim: width U of an output.
        **options: those of the class.

    Raises:
        ConfigError: no backbone of that name.

    >>> build("gru", 4, 16).out_dim
    16
    """
    return resolve("backbone", name)(in_dim, out_dim, **options)
