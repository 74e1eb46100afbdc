"""From a page to a system: compose with Hydra, check against the environment, instantiate."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from torchrl.data import Composite, TensorSpec

from wmkit.arguments import check_page, made
from wmkit.errors import ConfigError
from wmkit.heads import ActorChoice
from wmkit.registry import available
from wmkit.systems.spaces import Spaces, read_spaces
from wmkit.systems.system import System

CONF = Path(__file__).parent / "conf"
GROUPS = ("size", "env", "preset", "affordance", "training", "compat", "backbone", "domain")


def compose(system: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The resolved configuration of a system.

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
    overrides = [_own(system, override) for override in overrides]
    for override in overrides:
        _check_override(override, system)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra_compose(system, overrides=list(overrides))
        _drop_unread_rates(config, system, overrides)
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, overrides)) from error
    return config


def build(
    system: str,
    *,
    observation_spec: Composite,
    action_spec: TensorSpec,
    overrides: Sequence[str] = (),
) -> System:
    """A ready system for an environment, with the published numbers.

    `wmkit train` asks for ``preset=quick``, whose batch, discount and learning rates suit a few thousand
    updates; here the preset is ``paper``, which leaves those of the page, unless ``overrides`` name one.

    Args:
        system: one of ``wmkit.available()``.
        observation_spec: of the environment.
        action_spec: of the environment: one-hot or, where the page's actor chooses numbers, bounded floats.
        overrides: Hydra strings.

    Raises:
        ConfigError: see :func:`compose`.
        SpecError: the system cannot see or act in this environment.

    >>> from torchrl.data import Composite, OneHot, UnboundedDiscrete
    >>> spec = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))
    >>> system = build("dreamer_v3_2023", observation_spec=spec, action_spec=OneHot(4))
    >>> system.batch_shape
    (16, 64)
    """
    if not any(override.startswith("preset=") for override in overrides):
        overrides = ["preset=paper", *overrides]
    return build_from(compose(system, overrides), observation_spec, action_spec)


def build_from(config: DictConfig, observation_spec: Composite, action_spec: TensorSpec) -> System:
    """A ready system from a configuration of :func:`compose`."""
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, False)
    OmegaConf.resolve(config)
    actor = _make(config.actor)
    spaces = read_spaces(
        observation_spec,
        action_spec,
        images=_plain(config.observations.images),
        vectors=_plain(config.observations.vectors),
        system=config.system,
        actions=getattr(getattr(actor, "func", actor), "actions", ("discrete",)),
    )
    _expand_auto(config, spaces)
    _drop_absent(config)
    heads = config.world_model.heads
    for name, head in heads.items():
        if name in ("intrinsic_reward", "jump"):
            spaces.optional[head.target] = torch.bool if name == "jump" else torch.float32
    if config.world_model_loss.get("long_branch"):
        spaces.zoomed = True
        spaces.optional |= {"is_zoomed": torch.bool, "jump_resolved": torch.bool}
        spaces.optional |= {"jump_steps": torch.float32, "jump_return": torch.float32}
    parts = ("world_model", "critic", "world_model_loss", "behaviour", "schedule", "exploration", "policy")
    return System(
        config.system,
        spaces,
        actor=actor.of(spaces.actions) if isinstance(actor, ActorChoice) else actor,
        batch=dict(config.batch),
        frames=instantiate(config.observations.get("frames")),
        **{part: _make(config[part]) for part in parts if part in config},
    )


def _make(node: DictConfig) -> Any:
    """The part that a node of the page describes; what the part objects to comes out as it said it."""
    if node is None:
        return None
    if not OmegaConf.is_config(node):
        raise ConfigError(
            f"a part of the page is {node!r}: wanted a mapping with _target_; "
            "correct the override that sets it"
        )
    path = str(node._get_full_key(None))
    check_page(OmegaConf.to_container(node), path)
    with made(path, InstantiationException):
        return instantiate(node, _convert_="all")


def _expand_auto(config: DictConfig, spaces: Spaces) -> None:
    """Write the observation keys that were found where the page says ``auto``, and which hold classes."""
    for codec in (config.world_model.encoder, config.world_model.decoder):
        if codec.images == "auto":
            codec.images = list(spaces.images)
        if codec.vectors == "auto":
            codec.vectors = list(spaces.vectors)
        discrete = {key: count for key, count in spaces.classes.items() if key in codec.vectors}
        if discrete:  # a codec without classes need not know the word
            codec.setdefault("discrete", discrete)
    weights = config.world_model_loss.weights
    if "observations" in weights:
        weight = weights.pop("observations")
        for key in (*config.world_model.decoder.images, *config.world_model.decoder.vectors):
            weights[key] = weight


def _drop_absent(config: DictConfig) -> None:
    """Leave out heads, and loss weights, that a group has set to null."""
    for block in (config.world_model.heads, config.world_model_loss.weights):
        for name in [name for name, value in block.items() if value is None]:
            del block[name]


def _plain(value: Any) -> Any:
    return list(value) if OmegaConf.is_config(value) else value


@cache
def choices(group: str, system: str) -> tuple[str, ...]:
    """Names of a configuration group, those that are the system's own among them."""
    names = {path.stem for path in (CONF / group).glob("*.yaml")}
    names |= {f"{system}/{path.stem}" for path in (CONF / group / system).glob("*.yaml")}
    return tuple(sorted(names | set(available("backbone") if group == "backbone" else ())))


def _own(system: str, override: str) -> str:
    """``size=paper`` as the system's own choice of that name (``size=twm/paper``), where it has one."""
    key, _, value = override.partition("=")
    return f"{key}={system}/{value}" if (CONF / key / system / f"{value}.yaml").is_file() else override


def _check_override(override: str, system: str) -> None:
    key, separator, value = override.partition("=")
    if not separator:
        raise ConfigError(f"override {override!r} has no value: wanted key=value; write it like size=small")
    if key in GROUPS and value not in choices(key, system):
        raise _unknown(key, value, choices(key, system), f"pick one with {key}=NAME")


def _drop_unread_rates(config: DictConfig, system: str, overrides: Sequence[str]) -> None:
    """Leave out the learning rates that presets bring for other systems.

    Raises:
        ConfigError: an override gives one that this system does not read.
    """
    read = set(re.findall(r"\$\{learning_rate\.(\w+)\}", OmegaConf.to_yaml(config)))
    for name in set(config.get("learning_rate", {})) - read:
        given = re.compile(rf"\+*learning_rate(\.{name}=|=.*\b{name}\b)")
        if any(map(given.match, overrides)):
            raise ConfigError(
                f"learning_rate.{name} is not read by {system}: wanted one of {', '.join(sorted(read))}; "
                "correct the name, or leave it out"
            )
        with open_dict(config):
            del config.learning_rate[name]


def _unknown(kind: str, found: str, wanted: Sequence[str], hint: str) -> ConfigError:
    near = difflib.get_close_matches(found, wanted, 1)
    hint = f"did you mean {near[0]!r}?" if near else hint
    return ConfigError(f"{kind} {found!r} is unknown: wanted one of {', '.join(wanted)}; {hint}")


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """One sentence for what Hydra has to say."""
    text = " ".join(str(error.__cause__ or error).split())
    return (
        f"the configuration does not fit: {text} (overrides: {', '.join(overrides) or 'none'}); wanted keys "
        "of the system's page; correct the key, or prefix a new one with +"
    )
