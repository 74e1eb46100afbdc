"""The lines of ``wmkit list KIND``: parts by name, environments as ``env=`` takes them, choices by system."""

from __future__ import annotations

from collections.abc import Iterator

from wmkit.errors import ConfigError
from wmkit.registry import KINDS, available

BY_SYSTEM = ("preset", "size", "domain", "backbone", "objectives")


def listing(kind: str) -> Iterator[str]:
    """Lines of one kind of part or choice.

    Raises:
        ConfigError: there is no such kind.

    >>> next(line for line in listing("env") if line.startswith("gymnasium"))
    'gymnasium                 env=gymnasium env.name=CartPole-v1'
    >>> next(line for line in listing("domain") if line.startswith("dreamer_v2"))
    'dreamer_v2         v2_atari v2_crafter v2_dmc'
    """
    if kind in BY_SYSTEM:
        return (f"{system:<18} {' '.join(names)}" for system, names in _by_system(kind))
    if kind == "env":
        return (f"{name:<25} {override}" for name, override in _environments())
    if kind not in ("system", *KINDS):
        wanted = ", ".join(dict.fromkeys(("system", *KINDS, *BY_SYSTEM)))
        raise ConfigError(f"kind {kind!r} is unknown: wanted one of {wanted}; run `wmkit list KIND` with it")
    return iter(available(kind))


def _by_system(group: str) -> Iterator[tuple[str, list[str]]]:
    """Systems whose page has the group, and its choices."""
    from wmkit.systems.page_files import choices, defaults

    for system in available("system"):
        if group in defaults(system):
            yield system, list(choices(group, system))


def _environments() -> Iterator[tuple[str, str]]:
    """Pages, with what has to be chosen on them, then what has a name only, for ``env=gym``."""
    from wmkit.systems.page_files import find_pages, load_whole

    reached = set()
    for path in find_pages("env/*"):
        page = load_whole(path)
        reached |= {path.stem, page["name"]}
        chosen = next((key for key in ("game", "task") if key in page), "name")
        more = "" if page["name"] in available("env") else f" env.{chosen}={page[chosen]}"
        yield path.stem, f"env={path.stem}{more}"
    for path in find_pages("env/*/*"):  # of a family, whole
        name = f"{path.parent.name}/{path.stem}"
        yield name, f"env={name}"
    for name in available("env"):
        if name not in reached:
            yield name, f"env=gym env.name={name}"
