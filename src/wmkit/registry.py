"""Names for parts and folders of pages, open to other packages.

A kind of part is one of :data:`KINDS`. wmkit's own parts are listed as ``"module:attribute"`` strings, so
that listing names imports nothing heavy. A page writes a registered name wherever it would write the full
name of a class: ``heads: {reward: {_target_: reward, ...}}``; which kind is meant follows from the block.

Systems, sizes, presets and the other choices of a run are *pages*: YAML files in folders that are laid out
like ``wmkit/systems/conf``. Another package adds its own with :func:`add_pages`.

Both are done in an entry point of the group ``wmkit.plugins``, whose target is a module or a function.

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
import importlib.util
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from wmkit.errors import ConfigError

KINDS = ("backbone", "codec", "controller", "dynamics", "env", "head", "objective", "sampler", "scorer")
"""Kinds of parts that a page can name."""

GROUPS = ("affordance", "backbone", "compat", "domain", "env", "objectives", "preset", "size", "training")
"""Folders of a folder of pages: what can be chosen by ``group=name``."""

_targets: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
_folders = [Path(__file__).parent / "systems" / "conf"]
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
    if kind == "system":
        raise ConfigError(
            f"system {name!r} cannot be registered: a system is a page, wanted a folder with {name}.yaml; "
            "call wmkit.registry.add_pages(FOLDER)"
        )
    names = _names(kind)
    if names.setdefault(name, target) != target:
        raise ConfigError(
            f"{kind} {name!r} is registered twice: found {names[name]!r} and {target!r}, "
            "wanted one target per name; choose another name"
        )
    return None


def add_pages(where: str | Path) -> None:
    """Let pages be chosen that another package brings.

    Args:
        where: a folder, or the dotted name of a package that is one. It is laid out like
            ``wmkit/systems/conf``: ``SYSTEM.yaml``, and folders among :data:`GROUPS` with ``NAME.yaml`` for
            every system or ``SYSTEM/NAME.yaml`` for one.

    Raises:
        ConfigError: there is no such folder, it holds something else, or a page that is there already.

    >>> add_pages("wmkit.registry")
    Traceback (most recent call last):
    wmkit.errors.ConfigError: pages 'wmkit.registry' cannot be added: found no folder of that name, wanted ...
    """
    folder = _folder_of(where)
    if folder in _folders:
        return
    what = f"pages {str(where)!r} cannot be added: "
    if not folder.is_dir():
        raise ConfigError(
            f"{what}found no folder of that name, wanted one with SYSTEM.yaml or {', '.join(GROUPS)} in it; "
            "correct the path"
        )
    pages = {path.relative_to(folder) for path in folder.rglob("*.yaml")}
    if strange := sorted(str(page) for page in pages if len(page.parts) > 1 and page.parts[0] not in GROUPS):
        raise ConfigError(
            f"{what}found {strange[0]}, wanted pages of systems and folders among {', '.join(GROUPS)}; "
            "move it"
        )
    if not pages:
        raise ConfigError(f"{what}found no page in it, wanted SYSTEM.yaml or GROUP/NAME.yaml; add one")
    if twice := sorted(str(page) for page in pages if any((other / page).exists() for other in _folders)):
        raise ConfigError(f"{what}found {twice[0]}, which is there already; choose another name for it")
    _folders.append(folder)


def page_folders() -> tuple[Path, ...]:
    """Folders that hold pages: wmkit's own folder, then those of plug-ins."""
    _load_plugins()
    return tuple(_folders)


def available(kind: str = "system") -> list[str]:
    """Sorted names of every part of ``kind``, or of every system, plug-ins included.

    >>> "dreamer_v3" in available()
    True
    """
    if kind == "system":
        return sorted(page.stem for folder in page_folders() for page in folder.glob("*.yaml"))
    _load_plugins()
    return sorted(_names(kind))


def resolve(kind: str, name: str) -> Any:
    """The class or function registered under ``name``.

    Raises:
        ConfigError: no such name; the message lists what there is and the nearest match.
    """
    target = _find(kind, name)
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
        target = getattr(importlib.import_module(module), attribute)
    return target


def full_name(kind: str, name: str) -> str:
    """The dotted name by which a registered part is imported, as ``_target_`` takes it.

    Raises:
        ConfigError: no such name.

    >>> full_name("backbone", "gru")
    'wmkit.backbones.gru.GRU'
    """
    target = _find(kind, name)
    if isinstance(target, str):
        return target.replace(":", ".")
    return f"{target.__module__}.{target.__qualname__}"


def unknown(kind: str, found: str, wanted: list[str], hint: str, what: str = "unknown") -> ConfigError:
    """The error for a name that is not among those wanted, with the nearest of them.

    >>> print(unknown("size", "tinny", ["small", "tiny"], "pick one with size=NAME"))
    size 'tinny' is unknown: wanted one of small, tiny; did you mean 'tiny'?
    """
    near = difflib.get_close_matches(found, wanted, 1)
    hint = f"did you mean {near[0]!r}?" if near and what == "unknown" else hint
    return ConfigError(f"{kind} {found!r} is {what}: wanted one of {', '.join(wanted) or 'none'}; {hint}")


def _find(kind: str, name: str) -> Any:
    _load_plugins()
    names = _names(kind)
    if name not in names:
        raise unknown(kind, name, sorted(names), f"run `wmkit list {kind}`")
    return names[name]


def _names(kind: str) -> dict[str, Any]:
    if kind not in _targets:
        raise ConfigError(
            f"kind {kind!r} is unknown: wanted one of system, {', '.join(KINDS)}; run `wmkit list`"
        )
    return _targets[kind]


def _folder_of(where: str | Path) -> Path:
    """A folder by its path, or by the name of the package that it is."""
    if isinstance(where, Path) or Path(where).is_dir():
        return Path(where).resolve()
    try:
        spec = importlib.util.find_spec(where)
    except (ImportError, ValueError):
        spec = None
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0] if locations else where).resolve()


def _load_plugins() -> None:
    """Import every entry point of ``wmkit.plugins`` once."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    importlib.import_module("wmkit._builtins")
    for point in entry_points(group="wmkit.plugins"):
        try:
            loaded = point.load()
            if callable(loaded):
                loaded()
        except Exception as error:
            text = " ".join(str(error).split())
            raise ConfigError(
                f"plug-in {point.name!r} cannot be loaded: found {type(error).__name__}: {text}; wanted "
                f"{point.value} to register parts and pages; correct that package, or uninstall it"
            ) from error
