"""Checks of constructors' arguments, and the one sentence for those that do not fit.

A configuration can put anything anywhere. What it says is compared with the annotations of the
constructor that gets it; what annotations cannot say, the constructor checks itself.
"""

from __future__ import annotations

import inspect
import math
import pkgutil
import types
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from wmkit.errors import ConfigError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_FROM_TEXT = (PurePath, Enum, torch.device, torch.dtype)


def check_page(node: Any, path: str, origin: Callable[[str], str] = str) -> None:
    """Every part in ``node``, nested lists and mappings with ``_target_``, against its constructor.

    Args:
        node: plain values.
        path: where it stands on its page.
        origin: from a path to the key that its value comes from, where another's is read.

    Raises:
        ConfigError: a ``_target_`` that is not there, an argument that it does not have or of another type.

    >>> check_page({"_target_": "wmkit.nn.LayerStyle", "eps": "small"}, "style")
    Traceback (most recent call last):
    wmkit.errors.ConfigError: style.eps is 'small': wanted a number, as LayerStyle takes it; correct style.eps
    >>> check_page({"_target_": "wmkit.plug.as_keys", "keys": ["state", ["next", "state"]]}, "in_keys")
    """
    if isinstance(node, list):
        for i, value in enumerate(node):
            check_page(value, f"{path}[{i}]", origin)
    elif isinstance(node, dict):
        if "_target_" in node:
            arguments = {key: value for key, value in node.items() if not str(key).startswith("_")}
            check_arguments(_locate(node["_target_"], path), arguments, path, origin)
        for key, value in node.items():
            check_page(value, f"{path}.{key}", origin)


def check_arguments(
    target: Callable[..., Any],
    arguments: Mapping[str, Any],
    path: str,
    origin: Callable[[str], str] = str,
) -> None:
    """Keyword arguments of plain values, as a page writes them, against the annotations of ``target``.

    What is not annotated, or not in words that resolve, may be anything.

    Raises:
        ConfigError: an argument that ``target`` does not have or of another type.
    """
    called = getattr(target, "__init__") if isinstance(target, type) else target  # noqa: B009
    try:
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):  # written in C
        return
    try:
        hints = get_type_hints(called)
    except Exception:  # names that only a type checker imports
        hints = {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    name = getattr(target, "__name__", str(target))
    for key, value in arguments.items():
        if key not in parameters:
            if takes_any:
                continue
            known = ", ".join(p for p in parameters if p != "self")
            raise ConfigError(
                f"{origin(f'{path}.{key}')} is {value!r}, which {name} does not take: wanted one of {known}; "
                "correct the key"
            )
        if key in hints:
            _check(value, hints[key], f"{path}.{key}", name, origin)


def check_value(path: str, value: Any, wanted: Any, reader: str) -> None:
    """A plain value against an annotation.

    Raises:
        ConfigError: it is of another type.

    >>> check_value("seed", "zero", int, "a run")
    Traceback (most recent call last):
    wmkit.errors.ConfigError: seed is 'zero': wanted a whole number, as a run takes it; correct seed
    """
    _check(value, wanted, path, reader, str)


def check_range(
    name: str, value: float, least: float, most: float = math.inf, *, open_end: bool = False
) -> None:
    """A number between ``least`` and ``most``, which ``open_end`` leaves out (of no limit, infinity).

    Raises:
        ConfigError: it is outside, or not a number.

    >>> check_range("horizon", 0, 1)
    Traceback (most recent call last):
    wmkit.errors.ConfigError: horizon is 0: wanted 1 or more; correct horizon
    """
    if not least <= value <= most or (open_end and value == most):
        end = f" and less than {_plain(most)}" if open_end else f" and at most {_plain(most)}"
        if most == math.inf:
            end = " and finite" if open_end else ""
        raise ConfigError(f"{name} is {value!r}: wanted {_plain(least)} or more{end}; correct {name}")


def _plain(number: float) -> str:
    """A limit as one writes it: a whole number with all its digits."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def _locate(target: Any, path: str) -> Callable[..., Any]:
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}._target_ is {target!r}, which cannot be imported ({error}): wanted the full name of "
            f"a class or function; correct {path}._target_"
        ) from error
    if not callable(found):
        raise ConfigError(
            f"{path}._target_ is {target!r}, a {type(found).__name__}: wanted the full name of a class or "
            f"function; correct {path}._target_"
        )
    return found


def _check(value: Any, wanted: Any, path: str, name: str, origin: Callable[[str], str]) -> None:
    kind = get_origin(wanted)
    mapping = isinstance(kind, type) and issubclass(kind, Mapping)
    if mapping and isinstance(value, dict) and "_target_" not in value:
        for key, one in value.items():
            _check(one, get_args(wanted)[1], f"{path}.{key}", name, origin)
    elif not _fits(value, wanted):
        source = origin(path)
        read = "" if source == path else f", read from {source}"
        raise ConfigError(
            f"{path} is {value!r}{read}: wanted {_describe(wanted)}, as {name} takes it; correct {source}"
        )


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a plain value may stand for an annotation; of a part in its place nothing is known yet."""
    if wanted is Any or (isinstance(value, dict) and "_target_" in value):
        return True
    kind, inner = get_origin(wanted) or wanted, get_args(wanted)
    if _is_key(kind):  # a name, or names one inside the other
        return isinstance(value, str) or (isinstance(value, list) and all(_fits(one, kind) for one in value))
    if kind in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in inner)
    if kind is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if isinstance(value, str):  # a list of letters it is not
        return kind is object or issubclass(kind, (str, *_FROM_TEXT))
    if isinstance(value, list) and issubclass(kind, (tuple, set, frozenset, list)):
        kind = list  # a page has one word for them all
    if not isinstance(value, kind):
        return False
    if isinstance(value, list) and inner:
        each = (
            inner
            if kind is list and len(inner) == len(value) and ... not in inner
            else inner[:1] * len(value)
        )
        return all(map(_fits, value, each))
    if isinstance(value, dict) and len(inner) == 2:
        return all(_fits(one, inner[1]) for one in value.values())
    return True


def _is_key(kind: Any) -> bool:
    """Whether an annotation is TensorDict's NestedKey, which parts without TensorDict do not import."""
    return getattr(kind, "__name__", "") == "NestedKey"


def _describe(wanted: Any) -> str:
    """An annotation in words."""
    kind, inner = get_origin(wanted) or wanted, get_args(wanted)
    if _is_key(kind):
        return "a key"
    if kind in (Union, types.UnionType):
        return " or ".join(_describe(choice) for choice in inner)
    if kind is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if kind in _WORDS:
        return _WORDS[kind]
    if isinstance(kind, type) and issubclass(kind, Mapping):
        named = len(inner) == 2 and inner[1] is not Any
        return f"a mapping to {_describe(inner[1])}" if named else "a mapping"
    if kind in (tuple, set, frozenset) or (isinstance(kind, type) and issubclass(list, kind)):
        return f"a list of {_describe(inner[0])}" if inner else "a list"
    return f"a part ({getattr(kind, '__name__', kind)})"
