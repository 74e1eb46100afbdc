"""Overrides of a page: what may be written, what it means, and the sentence for what has no place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from wmkit.errors import ConfigError
from wmkit.registry import GROUPS, unknown
from wmkit.systems.page_files import choices, defaults, find_pages

PATHS = ("run_dir", "resume", "data", "data.path", "affordance.model", "affordance.scorer.path")
UNREAD = ("_", "published")  # what begins so is the page's own shorthand, or speaks of the page


def read_value(override: str) -> Any:
    """The value behind the first ``=`` of an override as Hydra reads it; of a path, the text as it stands.

    Raises:
        ConfigError: it does not parse, or is a list or mapping in place of a path.

    >>> read_value("training.replay={capacity: 1000}")
    {'capacity': 1000}
    >>> read_value("run_dir=runs/größer(2)"), read_value("run_dir=1e3")
    ('runs/größer(2)', '1e3')
    """
    key, _, text = override.partition("=")
    is_path = key.lstrip("+") in PATHS
    try:
        value = OverridesParser.create().parse_overrides([override])[0].value()
        if not is_path or value is None or isinstance(value, str):
            return value
        if isinstance(value, (list, dict)):
            raise ConfigError(
                f"{key.lstrip('+')} is {value!r}: wanted the path of a folder; put quotes of its own around "
                "one with brackets or braces"
            )
        return text
    except HydraException as error:
        if is_path:
            return text[1:-1] if len(text) > 1 and text[0] == text[-1] in "'\"" else text
        text = str(error).splitlines()[0]
        raise ConfigError(
            f"override {override!r} cannot be read: found {text}, wanted key=value in Hydra's grammar; put "
            "quotes around a value with = or brackets in it"
        ) from error


_KEY = re.compile(r"(\+{0,2}|~)[A-Za-z_][\w-]*(\.[^.\s@:]+)*")


def check_key(override: str) -> None:
    """An override of a new run or a resumed one names a key, another one than ``system``, and no empty path.

    Raises:
        ConfigError: it does not.

    >>> check_key("system=twm")
    Traceback (most recent call last):
    wmkit.errors.ConfigError: override 'system=twm' would only rename the system: wanted it as the first
    argument; write wmkit train twm
    """
    key, equals, value = override.partition("=")
    if not _KEY.fullmatch(key) or key.lstrip("+~").partition(".")[0] in ("hydra", "defaults"):
        raise ConfigError(
            f"override {override!r} names no key of a page: found {key!r}, wanted words with dots between "
            "them; write it like training.steps=5000"
        )
    if equals and not value.strip() and key.lstrip("+") in PATHS:
        raise ConfigError(
            f"override {override!r} has no value: found nothing behind =, wanted a path; write {key}=PATH, "
            "or leave it out"
        )
    if key.lstrip("+~") == "system":
        raise ConfigError(
            f"override {override!r} would only rename the system: wanted it as the first argument; write "
            f"wmkit train {value or 'SYSTEM'}"
        )


def origin(page: Mapping[str, Any], path: str) -> str:
    """The key from which a page, interpolations in it, has what stands at ``path``.

    >>> page = {"size": {"units": 8}, "trunk": {"units": "${size.units}"}, "critic": "${trunk}"}
    >>> origin(page, "critic.units")
    'size.units'
    """
    node: Any = page
    parts = path.split(".")
    for i, part in enumerate(parts):
        node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, str) and (read := re.fullmatch(r"\$\{(\w[\w.]*)\}", node)):
            return origin(page, ".".join([read[1], *parts[i + 1 :]]))
    return path


def misplaced(page: DictConfig, key: str, system: str) -> str:
    """Why an override's key has no place on a page; empty where it has one, or makes one (+) or none (~)."""
    node: Any = page
    parts = key.split(".")
    for i, part in enumerate(parts):
        here, rest = ".".join(parts[:i]), ".".join(parts[i + 1 :])
        if not part.isidentifier():
            return ""
        if not OmegaConf.is_dict(node):
            return (
                f"{key} is not on the page of {system}: found {node!r} at {here}, wanted a block; correct it"
            )
        if part not in node:
            wanted = [name for name in map(str, node) if not name.startswith("_")]
            near = [
                ".".join(filter(None, (here, name, rest))) for name in difflib.get_close_matches(part, wanted)
            ]
            near = [name for name in near if not misplaced(page, name, system)]
            hint = f"did you mean {near[0]}?" if near else "correct it"
            if here and not near:
                hint += f", or write +{key} for an argument that the page leaves at its default"
            return (
                f"{key} is not on the page of {system}: found no {part} {here and 'in '}{here or 'there'}, "
                f"wanted one of {', '.join(wanted)}; {hint}"
            )
        if rest and OmegaConf.is_interpolation(node, part) and OmegaConf.is_dict(node[part]):
            written: Any = OmegaConf.to_container(node)
            source = written[part][2:-1]
            return (
                f"{key} cannot be overridden: found that all of {here}.{part} is read from {source}, wanted "
                f"{source}.{rest}; override that, or {here}.{part} as a whole"
            )
        node = node[part]
    return ""


def checked(system: str, override: str) -> str:
    """An override as Hydra takes it, a choice by the name of its page, a path in quotes."""
    check_key(override)
    key, separator, value = override.partition("=")
    if (name := key.removeprefix("~")) != key:
        if name in GROUPS:
            raise ConfigError(
                f"override {override!r} does not fit: found ~, which leaves out, before a choice of "
                f"{system}, wanted another choice; write {name}=NAME"
            )
        if not separator:
            raise ConfigError(
                f"override {override!r} has no value: found ~, which leaves out, wanted also the value that "
                f"the page has; write it like {key}=VALUE"
            )
    if not separator:
        raise ConfigError(f"override {override!r} has no value: wanted key=value; write it like size=small")
    if key.lstrip("+").startswith(UNREAD):
        raise ConfigError(
            f"override {override!r} would change nothing: found what only the page itself reads, wanted a "
            "key of a part; override that one"
        )
    if key not in GROUPS:
        read = read_value(override)
        if key.lstrip("+") in PATHS and read is not None:
            return f"{key}={QuotedString(read, Quote.single).with_quotes()}"
        return override
    if key not in (groups := defaults(system)):
        raise ConfigError(
            f"override {override!r} does not fit {system}: found no {key} on its page, wanted one of "
            f"{', '.join(groups)}; leave it out, or choose another system"
        )
    names = choices(key, system)
    if value in names.values():
        return override
    if value not in names:
        if key == "env" and (meant := _find_env(value)):
            raise ConfigError(
                f"env {value!r} is no page: wanted one that brings it; write {' or '.join(meant.values())}"
            )
        hint = f"pick one with {key}=NAME"
        if find_pages(f"{key}/**/{value}"):  # another system's
            raise unknown(key, value, list(names), hint, f"not for {system}")
        raise unknown(key, value, list(names), hint)
    return f"{key}={names[value]}"


def _find_env(name: str) -> dict[str, str]:
    from wmkit.envs.names import find_meant  # which a page can do without

    return find_meant(name)
