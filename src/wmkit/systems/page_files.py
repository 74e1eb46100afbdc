"""The folders of pages: what can be chosen in them for a system, and a page as it is written.

A page is a YAML file: ``SYSTEM.yaml``, or ``GROUP/NAME.yaml`` for all systems and ``GROUP/SYSTEM/NAME.yaml``
for one. wmkit's own are in ``systems/conf``; plug-ins add folders of the same layout.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from wmkit.errors import ConfigError
from wmkit.registry import available, page_folders


def find_page(name: str) -> Path | None:
    """The file of a page, by its name without ``.yaml``; None where no folder has it.

    >>> find_page("size/twm/tiny").parts[-3:]
    ('size', 'twm', 'tiny.yaml')
    """
    return next((path for folder in page_folders() if (path := folder / f"{name}.yaml").is_file()), None)


def find_pages(pattern: str) -> list[Path]:
    """Pages of all folders whose names fit, sorted; ``size/*`` are the sizes that are there for all systems.

    >>> [path.stem for path in find_pages("size/storm/*")]
    ['micro', 'paper', 'tiny']
    """
    paths = [path for folder in page_folders() for path in folder.glob(f"{pattern}.yaml")]
    return sorted(paths, key=lambda path: path.stem)


def choices(group: str, system: str) -> dict[str, str]:
    """The choices of a group for a system: names, and the pages they stand for.

    Its own go before shared ones of the same name, and of those only what fits is offered: a size that has
    every number which the system reads; a preset that brings such a size or none, and all that is left to it.

    >>> list(choices("size", "twm"))
    ['micro', 'paper', 'tiny']
    """
    names = {path.stem: path.stem for path in find_pages(f"{group}/*") if _fits(group, path, system)}
    if group == "backbone":
        names |= {name: name for name in available("backbone")}
    if group == "env":  # families have folders: minedojo/harvest_sand
        names |= {name: name for path in find_pages("env/*/*") if (name := f"{path.parent.name}/{path.stem}")}
    names |= {path.stem: f"{system}/{path.stem}" for path in find_pages(f"{group}/{system}/*")}
    return dict(sorted(names.items()))


def defaults(system: str) -> dict[str, Any]:
    """The groups of a system's page and what it chooses of them; empty where there is no such page.

    >>> defaults("dreamer_v3_2024")["backbone"]
    'block_gru'
    """
    path, found = find_page(system), dict[str, Any]()
    for entry in _load(path)["defaults"] if path else ():
        chosen = entry if isinstance(entry, dict) else defaults(entry)
        found |= {group.removeprefix("override ").lstrip("/"): name for group, name in chosen.items()}
    return found


def load(path: Path) -> dict[str, Any]:
    """One page as it is written."""
    return copy.deepcopy(_load(path))


@cache
def _load(path: Path) -> dict[str, Any]:
    page: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return page


def load_whole(path: Path) -> dict[str, Any]:
    """A page over those it builds on, key by key."""
    return copy.deepcopy(_load_whole(path))


@cache
def _load_whole(path: Path) -> dict[str, Any]:
    page = _load(path)
    names = [base for base in page.get("defaults", ()) if isinstance(base, str) and base != "_self_"]
    bases = [_base(path, name) for name in names]
    merged: Any = OmegaConf.to_container(OmegaConf.merge(*map(_load_whole, bases), page), resolve=False)
    return merged


def _base(path: Path, name: str) -> Path:
    """The page that another one builds on: of the same group unless its name begins with a slash."""
    folder = next(folder for folder in page_folders() if path.is_relative_to(folder))
    group = path.relative_to(folder).parts[:-1][:1]
    name = name.partition("@")[0]
    wanted = name[1:] if name.startswith("/") else "/".join((*group, name))
    if (found := find_page(wanted)) is None:
        raise ConfigError(
            f"page {path.name} builds on {name!r}, which is not there: wanted the name of a page beside it; "
            "correct its defaults"
        )
    return found


def _fits(group: str, path: Path, system: str) -> bool:
    """Whether a shared page has what the system's page reads from a page of this group."""
    if group == "size":
        return _reads(system, page_folders()).get("size", set()) <= _load(path).keys()
    if group == "preset":
        page, preset = find_page(system), _load_whole(path)
        whole = _load_whole(page) if page else {}
        if "controller" in preset and whole.get("controller") is None:
            return False  # numbers of a controller, for a system that has none
        given = whole.keys() | defaults(system).keys()
        sizes = [entry["override /size"] for entry in preset.get("defaults", ()) if "override /size" in entry]
        left = {block: names for block, names in _reads(system, page_folders()).items() if block not in given}
        return all(size in choices("size", system) for size in sizes) and all(
            names <= preset.get(block, {}).keys() for block, names in left.items()
        )
    return True


@cache
def _reads(system: str, folders: tuple[Path, ...]) -> dict[str, set[str]]:
    """Blocks that a system's page and the parts it chooses refer to, and the names in them."""
    chosen = {group: name for group, name in defaults(system).items() if group in ("backbone", "affordance")}
    paths = map(find_page, (system, *map("/".join, chosen.items())))
    pages = [_load_whole(path) for path in paths if path]
    found = dict[str, set[str]]()
    for block, name in re.findall(r"\$\{(\w+)\.(\w+)\}", str(pages)):
        found.setdefault(block, set()).add(name)
    return found
