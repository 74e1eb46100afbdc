"""What ``wmkit list KIND`` prints: parts by name, environments as ``env=`` takes them, choices by system."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wmkit.errors import ConfigError
from wmkit.registry import KINDS, available

BY_SYSTEM = ("preset", "size", "domain", "backbone")


def listing(kind: str) -> Iterator[str]:
    """Lines of one kind of part or choice.

    Raises:
        ConfigError: there is no such kind.

    >>> next(line for line in listing("env") if line.startswith("gymnasium"))
    'gymnasium                 env=gymnasium env.name=CartPole-v1'
    >>> next(line for line in listing("domain") if line.startswith("dreamer_v2"))[:36]
    'dreamer_v2         v1_atari v2_atari'
    """
    if kind in BY_SYSTEM:
        return (f"{system:<18} {' '.join(names)}" for system, names in _by_system(kind))
    if kind == "env":
        return (f"{name:<25} {override}" for name, override in _environments())
    if kind not in KINDS:
        wanted = ", ".join(dict.fromkeys((*KINDS, *BY_SYSTEM)))
        raise ConfigError(f"kind {kind!r} is unknown: wanted one of {wanted}; run `wmkit list KIND` with it")
    return iter(available(kind))


def _by_system(group: str) -> Iterator[tuple[str, list[str]]]:
    """Systems whose page has the group, and its choices; a system's own stands for all of that name."""
    from wmkit.systems.build import choices

    for system in available("system"):
        if group in _groups(system):
            yield system, sorted({name.rpartition("/")[2] for name in choices(group, system)})


def _groups(page: str) -> set[str]:
    """Groups in the defaults of a page and of the pages it builds on; none where there is no such page."""
    from wmkit.systems.build import CONF

    path, found = CONF / f"{page}.yaml", set[str]()
    for entry in _read(path)["defaults"] if path.is_file() else ():
        found |= set(entry) if isinstance(entry, dict) else _groups(entry)
    return found


def _environments() -> Iterator[tuple[str, str]]:
    """Pages, with what has to be chosen on them, then what has a name only, for ``env=gym``."""
    from wmkit.systems.build import CONF

    reached = set()
    for path in sorted((CONF / "env").glob("*.yaml")):
        page = _whole(path)
        reached |= {path.stem, page["name"]}
        chosen = next((key for key in ("game", "task") if key in page), "name")
        more = "" if page["name"] in available("env") else f" env.{chosen}={page[chosen]}"
        yield path.stem, f"env={path.stem}{more}"
    for name in available("env"):
        if name not in reached:
            yield name, f"env=gym env.name={name}"


def _whole(path: Any) -> dict[str, Any]:
    """A page over those it builds on."""
    page = _read(path)
    bases = [entry for entry in page.get("defaults", ()) if isinstance(entry, str) and entry != "_self_"]
    return {
        key: value for base in bases for key, value in _whole(path.with_name(f"{base}.yaml")).items()
    } | page


def _read(path: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
