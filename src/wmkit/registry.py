"""Names for parts: one registry per kind, open to other packages.

A kind is one of :data:`KINDS`. wmkit's own parts are listed as ``"module:attribute"``
strings, so that listing names imports nothing heavy. Another package adds its parts
through an entry point of the group ``wmkit.plugins`` whose target is a module or a
function that calls :func:`register`.

>>> from wmkit.registry import available, register, resolve
>>> register("head", "doctest_head", "math:sqrt")
>>> "doctest_head" in available("head")
True
>>> resolve("head", "doctest_head")(4.0)
2.0
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from wmkit.errors import ConfigError

KINDS = ("system", "backbone", "codec", "head", "objective", "sampler", "env", "scorer")

_targets: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
_plugins_loaded = False


def register(kind: str, name: str, target: Any = None) -> Any:
    """Give ``target`` a name among the parts of ``kind``.

    Args:
        kind: one of :data:`KINDS`.
        name: what users write in a configuration.
        target: the class or function, or ``"module:attribute"`` to import it on first use.
            Without it, ``register`` is a decorator.

    Raises:
        ConfigError: the kind is unknown, or the name belongs to another target already.
    """
    if target is None:

        def decorate(target: Callable) -> Callable:
            register(kind, name, target)
            return target

        return decorate
    names = _names(kind)
    if names.setdefault(name, target) != target:
        raise ConfigError(
            f"{kind} {name!r} is registered twice: found {names[name]!r} and {target!r}, "
            "wanted one target per name; choose another name"
        )
    return None


def available(kind: str = "system") -> list[str]:
    """Sorted names of every part of ``kind``, plug-ins included."""
    _load_plugins()
    return sorted(_names(kind))


def resolve(kind: str, name: str) -> Any:
    """The class or function registered under ``name``.

    Raises:
        ConfigError: no such name; the message lists what there is and the nearest match.
    """
    _load_plugins()
    names = _names(kind)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"run `wmkit list {kind}`"
        raise ConfigError(
            f"{kind} {name!r} is unknown: wanted one of {', '.join(sorted(names)) or 'none'}; {hint}"
        )
    target = names[name]
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
        target = getattr(importlib.import_module(module), attribute)
    return target


def _names(kind: str) -> dict[str, Any]:
    if kind not in _targets:
        raise ConfigError(f"kind {kind!r} is unknown: wanted one of {', '.join(KINDS)}; run `wmkit list`")
    return _targets[kind]


def _load_plugins() -> None:
    """Import every entry point of ``wmkit.plugins`` once."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    importlib.import_module("wmkit._builtins")
    for point in entry_points(group="wmkit.plugins"):
        loaded = point.load()
        if callable(loaded):
            loaded()
