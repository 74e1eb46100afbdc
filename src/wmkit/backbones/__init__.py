"""Sequence models, one file each, one contract (:class:`~wmkit.backbones.base.SequenceModel`)."""

from __future__ import annotations

import inspect
from typing import Any

from wmkit.backbones.base import Loop, RecurrentCell, SequenceModel
from wmkit.backbones.carries import Carry, carry_width, flatten_carry, unflatten_carry
from wmkit.errors import ConfigError
from wmkit.registry import available, resolve

__all__ = [
    "Carry",
    "Loop",
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
        **options: those of the class; ``in_keys`` and ``out_keys`` are among them.

    Raises:
        ConfigError: no backbone of that name, an option that it does not have, or no
            :class:`~wmkit.backbones.base.SequenceModel` under that name.

    >>> build("gru", 4, 16).out_dim
    16
    """
    make = resolve("backbone", name)
    try:
        inspect.signature(make).bind(in_dim, out_dim, **options)
    except TypeError as error:
        known = [key for key in inspect.signature(make).parameters if key not in ("in_dim", "out_dim")]
        raise ConfigError(
            f"backbone {name!r} {error}: wanted options among {', '.join(known) or 'none'}; correct them"
        ) from error
    model = make(in_dim, out_dim, **options)
    if not isinstance(model, SequenceModel):
        raise ConfigError(
            f"backbone {name!r} is a {type(model).__name__}: wanted a wmkit.backbones.SequenceModel; inherit "
            "from it"
        )
    return model
