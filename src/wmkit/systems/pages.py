"""Pages: what a system lets be chosen, and how its page, choices and overrides become one configuration."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from wmkit.errors import ConfigError
from wmkit.registry import available

CONF = Path(__file__).parent / "conf"
GROUPS = tuple(sorted(path.name for path in CONF.iterdir() if path.is_dir()))
PATHS = ("run_dir", "resume", "affordance.model", "affordance.scorer.path")


def compose(system: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of a system: its page, what was chosen and what was overridden.

    Interpolations (``${size.units}``) stay in it, and all of them resolve.

    Args:
        system: one of ``wmkit.available()``.
        overrides: Hydra strings, e.g. ``["size=small", "behaviour.gate.prob=0"]``.

    Raises:
        ConfigError: unknown system, group choice or key, or a value that does not parse.

    >>> compose("ls_imagine", ["size=small"]).size.deter
    512
    """
    if system not in available("system"):
        raise _unknown("system", system, available("system"), "run `wmkit list system`")
    for name in available("backbone"):
        if not (CONF / "backbone" / f"{name}.yaml").exists():  # another package's
            node = {"_target_": "wmkit.backbones.build", "_partial_": True, "name": name}
            ConfigStore.instance().store(name=name, node=node, group="backbone")
    overrides = [_checked(system, override) for override in overrides]
    try:
        config = _read(system, overrides)
        _drop_unread_rates(config, system, overrides)
        OmegaConf.resolve(config.copy())
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, system, overrides)) from error
    return config


@cache
def choices(group: str, system: str) -> dict[str, str]:
    """What a system takes of a group: names, and the pages they stand for.

    Its own go before shared ones of the same name, and of those only what fits is offered: a size that has
    every number which the system reads, and classes to choose among; a preset that brings such a size or
    none, and all that is left to it.

    >>> list(choices("size", "twm"))
    ['micro', 'paper', 'tiny']
    """
    names = {path.stem: path.stem for path in (CONF / group).glob("*.yaml") if _fits(group, path, system)}
    if group == "backbone":
        names |= {name: name for name in available("backbone")}
    names |= {path.stem: f"{system}/{path.stem}" for path in (CONF / group / system).glob("*.yaml")}
    return dict(sorted(names.items()))


@cache
def defaults(system: str) -> dict[str, Any]:
    """The groups of a system's page and what it chooses of them; empty where there is no such page.

    >>> defaults("dreamer_v3_2024")["backbone"]
    'block_gru'
    """
    path, found = CONF / f"{system}.yaml", dict[str, Any]()
    for entry in load(path)["defaults"] if path.is_file() else ():
        found |= entry if isinstance(entry, dict) else defaults(entry)
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
    bases = [base for base in page.get("defaults", ()) if isinstance(base, str) and base != "_self_"]
    whole = OmegaConf.merge(*(_load_whole(path.with_name(f"{base}.yaml")) for base in bases), page)
    merged: Any = OmegaConf.to_container(whole, resolve=False)
    return merged


def read_value(override: str) -> Any:
    """What stands behind the first ``=`` of an override, as Hydra reads it; a path also as it stands.

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


def check_system(override: str) -> None:
    """No run, new or resumed, is made another system's by an override.

    Raises:
        ConfigError: it would.

    >>> check_system("system=twm")
    Traceback (most recent call last):
    wmkit.errors.ConfigError: override 'system=twm' would only rename the system: wanted it as the first
    argument; write wmkit train twm
    """
    key, _, value = override.partition("=")
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


def _read(system: str, overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes, without the page's own shorthands (YAML's anchors), which nothing reads."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra_compose(system, overrides=list(overrides))
    with open_dict(config):
        for name in [name for name in config if str(name).startswith("_")]:
            del config[name]
    return config


def _fits(group: str, path: Path, system: str) -> bool:
    """Whether a shared page has what the system's page reads from a page of this group."""
    if group == "size":
        read, size = _reads(system).get("size", set()), load(path)
        return read <= size.keys() and ("classes" not in read or size["classes"] > 1)  # one says nothing
    if group == "preset":
        preset, given = load_whole(path), load_whole(CONF / f"{system}.yaml").keys() | defaults(system).keys()
        sizes = [entry["override /size"] for entry in preset.get("defaults", ()) if "override /size" in entry]
        left = {block: names for block, names in _reads(system).items() if block not in given}
        return all(size in choices("size", system) for size in sizes) and all(
            names <= preset.get(block, {}).keys() for block, names in left.items()
        )
    return True


@cache
def _reads(system: str) -> dict[str, set[str]]:
    """Blocks that a system's page and the parts it chooses refer to, and the names in them."""
    chosen = {group: name for group, name in defaults(system).items() if group in ("backbone", "affordance")}
    pages = [load_whole(CONF / f"{page}.yaml") for page in (system, *map("/".join, chosen.items()))]
    found = dict[str, set[str]]()
    for block, name in re.findall(r"\$\{(\w+)\.(\w+)\}", str(pages)):
        found.setdefault(block, set()).add(name)
    return found


def _checked(system: str, override: str) -> str:
    """An override as Hydra takes it, a choice by the name of its page, a path in quotes."""
    check_system(override)
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
    if key.lstrip("+").startswith("_"):
        raise ConfigError(
            f"override {override!r} would change nothing: found a shorthand of the page, wanted a key of a "
            "part that it is written out in; override that one"
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
        theirs = any((CONF / key).rglob(f"{value}.yaml"))  # another system's
        raise _unknown(key, value, list(names), f"pick one with {key}=NAME", f"not for {system}" * theirs)
    return f"{key}={names[value]}"


def _drop_unread_rates(config: DictConfig, system: str, overrides: Sequence[str]) -> None:
    """Leave out the learning rates that presets bring for other systems.

    Raises:
        ConfigError: an override gives one that this system does not read, or one for all.
    """
    read = set(re.findall(r"\$\{learning_rate\.(\w+)\}", str(OmegaConf.to_container(config))))
    rates = config.get("learning_rate", {})
    if not OmegaConf.is_dict(rates):
        raise ConfigError(
            f"learning_rate is {rates!r}: wanted a mapping from {', '.join(sorted(read))}; set "
            f"{' '.join(f'learning_rate.{name}=NUMBER' for name in sorted(read))}"
        )
    for name in set(rates) - read:
        given = re.compile(rf"\+*learning_rate(\.{name}=|=.*\b{name}\b)")
        if any(map(given.match, overrides)):
            raise ConfigError(
                f"learning_rate.{name} is not read by {system}: wanted one of {', '.join(sorted(read))}; "
                "correct the name, or leave it out"
            )
        with open_dict(config):
            del config.learning_rate[name]


def _find_env(name: str) -> dict[str, str]:
    from wmkit.envs.names import find_meant  # which a page can do without

    return find_meant(name)


def _unknown(kind: str, found: str, wanted: Sequence[str], hint: str, what: str = "") -> ConfigError:
    near = difflib.get_close_matches(found, wanted, 1)
    hint = f"did you mean {near[0]!r}?" if near and not what else hint
    return ConfigError(f"{kind} {found!r} is {what or 'unknown'}: wanted one of {', '.join(wanted)}; {hint}")


def _explain(error: Exception, system: str, overrides: Sequence[str]) -> str:
    """One sentence for what Hydra has to say."""
    chosen = [override for override in overrides if override.partition("=")[0] in GROUPS]
    with suppress(HydraException, OmegaConfBaseException):
        page = _read(system, chosen)
        for key in (override.partition("=")[0] for override in overrides if override not in chosen):
            if sentence := misplaced(page, key, system):
                return sentence
    text = " ".join(str(error.__cause__ or error).split())
    return (
        f"the page of {system} does not fit its overrides ({', '.join(overrides) or 'none'}): found {text}, "
        "wanted keys and values that it can take; correct them"
    )
