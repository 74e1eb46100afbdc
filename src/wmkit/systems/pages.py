"""Pages: how a system's page, what was chosen for it and what was overridden become one configuration."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from wmkit.errors import ConfigError
from wmkit.registry import GROUPS, available, full_name, page_folders, unknown
from wmkit.systems import recorded
from wmkit.systems.checks import check_numbers
from wmkit.systems.overrides import UNREAD, checked, misplaced, origin
from wmkit.systems.page_files import defaults, find_page, load_whole

BLOCKS = {
    **{"encoder": "codec", "decoder": "codec", "dynamics": "dynamics", "backbone": "backbone"},
    **{"heads": "head", "actor": "head", "critic": "head"},
    **{"objectives": "objective", "estimator": "objective", "controller": "controller"},
}
"""A ``_target_`` without a dot names a part of the kind that the nearest of these blocks holds."""

SHARED = ("learning_rate", "size", "budget", "labelling")
"""Blocks of pages that many systems share; each reads what it needs of them."""


def compose(system: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of a system: its page, what was chosen and what was overridden.

    Interpolations (``${size.units}``) stay in it, and all of them resolve. Parts that the page calls by a
    registered name have their full one.

    Args:
        system: one of ``wmkit.available()``.
        overrides: Hydra strings, e.g. ``["size=small", "controller.hooks.gate.prob=0"]``.

    Raises:
        ConfigError: unknown system, group choice, part or key, or a value that does not parse.

    >>> compose("ls_imagine", ["size=small"]).size.deter
    512
    """
    if system not in (systems := available("system")):
        raise unknown("system", system, systems, "run `wmkit list system`")
    for name in available("backbone"):
        if find_page(f"backbone/{name}") is None:  # a part without a page of its own
            node = {"_target_": name, "_partial_": True}
            ConfigStore.instance().store(name=name, node=node, group="backbone")
    overrides = [checked(system, recorded.as_block(override)) for override in overrides]
    try:
        config = _read(system, overrides)
        name_targets(config)
        recorded.settle(config, system, overrides)
        check_values(config, system, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, system, overrides)) from error
    return config


def published(system: str, overrides: Sequence[str] = ()) -> list[str]:
    """Overrides, and before them the choices with which a system has its published numbers.

    These are what its page says under ``published``. A preset that is chosen brings its own, and a domain
    or a size its own size.

    >>> published("twm"), published("twm", ["size=tiny"]), published("twm", ["preset=smoke"])
    (['size=paper', 'preset=paper'], ['preset=paper', 'size=tiny'], ['preset=smoke'])
    """
    chosen = {override.partition("=")[0] for override in overrides}
    page = find_page(system)
    choices = load_whole(page).get("published", {}) if page and "preset" not in chosen else {}
    if "domain" in chosen:
        choices.pop("size", None)
    return [f"{group}={name}" for group, name in choices.items() if group not in chosen] + list(overrides)


def name_targets(node: DictConfig, path: str = "", kind: str = "") -> None:
    """Give every part that a page calls by its registered name the full one; see :data:`BLOCKS`.

    Raises:
        ConfigError: no part of that name, or the block holds none that are registered.

    >>> page = OmegaConf.create({"heads": {"reward": {"_target_": "reward", "target": "reward"}}})
    >>> name_targets(page)
    >>> page.heads.reward["_target_"]
    'wmkit.heads.RewardHead'
    """
    for key in map(str, node):
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        value, here = node[key], f"{path}.{key}".lstrip(".")
        if OmegaConf.is_dict(value):
            name_targets(value, here, BLOCKS.get(key, kind))
        elif key == "_target_" and isinstance(value, str) and "." not in value:
            names = available(kind) if kind else []
            if value not in names:
                wanted = f"a full name, or one of {', '.join(names)}" if names else "the full name of a part"
                near = difflib.get_close_matches(value, names, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"correct {here}"
                raise ConfigError(f"{here} is {value!r}: wanted {wanted}; {hint}")
            node[key] = full_name(kind, value)


def _read(system: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration that Hydra composes, without keys of the page alone (anchors, ``published``)."""
    page = find_page(system)
    assert page is not None
    others = [folder for folder in page_folders() if folder != page.parent]
    paths = [QuotedString(f"file://{folder}", Quote.single).with_quotes() for folder in others]
    overrides = [*overrides, *[f"hydra.searchpath=[{','.join(paths)}]"] * bool(paths)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(page.parent), version_base="1.3"):
        config = hydra_compose(system, overrides=overrides)
    with open_dict(config):
        for name in [name for name in config if str(name).startswith(UNREAD)]:
            del config[name]
    return config


READ = {
    "": (
        *("seed", "device", "threads", "run_dir", "resume", "system", "discount", "batch", "env", "training"),
        *("observations", "world_model", "actor", "critic", "objectives", "controller", "schedule"),
        *("exploration", "policy", "affordance", "backbone", "data", *SHARED),
    ),
    "batch": ("size", "length", "context"),
    "data": recorded.KEYS,
    "env": ("name", "num_envs", "parallel", "timeout", "restarts", "options", "evaluation"),
    "observations": ("images", "vectors", "frames"),
    "affordance": (
        *("model", "prompt", "scorer", "scorer_fit", "exploration", "unet", "frames", "save_every", "fit"),
        *("video_score", "transform"),
    ),
}
"""What is read of a page, and of its blocks that are no parts: of others, what the page itself refers to."""

GIVEN = tuple(
    f"affordance.fit.{name}"
    for name in ("model", "frames", "labels", "text", "masks", "seed", "checkpoint", "progress")
)
"""Arguments that a run gives itself."""


def check_values(config: DictConfig, system: str, overrides: Sequence[str]) -> None:
    """What a page and its overrides say, before anything is made of it.

    Raises:
        ConfigError: an override of a key that nobody reads, or a number out of range.
        OmegaConfBaseException: a reference to a key that is not there.
    """
    _drop_unread(config, system, overrides)
    page: Any = OmegaConf.to_container(config)
    text = str(page)
    for override in overrides:
        key, equals, _ = override.partition("=")
        block, _, name = ".".join(key.lstrip("+").split(".")[:2]).rpartition(".")
        if not block or block not in READ:
            block, name = "", key.lstrip("+").partition(".")[0]
        if not equals or key.startswith("~") or key in GROUPS:
            continue
        if key.lstrip("+") in GIVEN:
            raise ConfigError(
                f"{key.lstrip('+')} is given by the run itself: wanted other options of the fit; leave it out"
            )
        has_block = "affordance" not in (block, name) or "affordance" in defaults(system)
        if name in READ[block] and has_block:
            continue
        if not has_block or not re.search(rf"\$\{{[^}}]*\b{re.escape(name)}\b", text):
            raise ConfigError(
                f"{'.'.join(filter(None, (block, name)))} is not read by {system}: wanted one of "
                f"{', '.join(READ[block])}; correct the name, or leave it out"
            )
    check_numbers(OmegaConf.to_container(config, resolve=True), partial(origin, page))


def _drop_unread(config: DictConfig, system: str, overrides: Sequence[str]) -> None:
    """Leave out the numbers that presets bring for other systems.

    Raises:
        ConfigError: an override gives one that this system does not read, or one for all.
    """
    text = str(OmegaConf.to_container(config))
    for block in [block for block in SHARED if block in config]:
        read = set(re.findall(rf"\$\{{{block}\.(\w+)\}}", text))
        found = config[block]
        wanted = ", ".join(sorted(read)) or "none"
        if not OmegaConf.is_dict(found):
            raise ConfigError(
                f"{block} is {found!r}: wanted a mapping from {wanted}; set "
                f"{' '.join(f'{block}.{name}=NUMBER' for name in sorted(read))}"
            )
        for name in set(found) - read:
            given = re.compile(rf"\+*{block}(\.{name}=|=.*\b{name}\b)")
            if any(map(given.match, overrides)):
                raise ConfigError(
                    f"{block}.{name} is not read by {system}: wanted "
                    f"{'one of ' * bool(read)}{wanted}; correct the name, or leave it out"
                )
            with open_dict(config):
                del config[block][name]
        if not config[block]:
            with open_dict(config):
                del config[block]


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
