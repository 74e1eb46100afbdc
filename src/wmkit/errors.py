"""Errors that wmkit raises when something a user gave it does not fit.

Every message is one sentence with four parts: the thing, what was found, what was
wanted, and what to do. The command line prints it without a traceback and exits with
code 2.

>>> from wmkit.errors import ConfigError
>>> raise ConfigError("size 'huge' is unknown: wanted one of small, tiny; pick one with size=tiny")
Traceback (most recent call last):
wmkit.errors.ConfigError: size 'huge' is unknown: wanted one of small, tiny; pick one with size=tiny
"""

from __future__ import annotations


class WmkitError(Exception):
    """Base of everything wmkit raises on purpose."""


class ConfigError(WmkitError, ValueError):
    """An unknown system, override, size, part or option.

    Attributes:
        path: where on a page the part stands that objected; empty as long as only the part speaks.
    """

    path: str = ""


class SpecError(WmkitError, ValueError):
    """An observation or action space that a system cannot take, or a tensor that breaks its spec."""


class CheckpointError(WmkitError, ValueError):
    """A checkpoint, run directory or weight file of another shape or version."""


class DataError(WmkitError, ValueError):
    """A data set that cannot be read, or does not fit what is to learn from it."""


class MissingWeightsError(WmkitError, FileNotFoundError):
    """A part that needs weights was asked for without them."""


class EnvironmentCrashError(WmkitError, RuntimeError):
    """A simulator died; the message names its world."""


class NonFiniteLossError(WmkitError, ArithmeticError):
    """A loss term became NaN or infinite; the message names the term."""
