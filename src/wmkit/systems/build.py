"""From a page to a system: check against the environment, instantiate."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torchrl.data import Composite, TensorSpec

from wmkit.arguments import check_page, check_range
from wmkit.errors import ConfigError
from wmkit.heads import ActorChoice
from wmkit.places import made, placed
from wmkit.systems.overrides import origin
from wmkit.systems.pages import compose, published
from wmkit.systems.spaces import Spaces, read_spaces
from wmkit.systems.system import System

BLOCKS = (
    *("observations", "batch", "objectives"),
    *("world_model", "world_model.encoder", "world_model.decoder", "world_model.heads"),
)
OPTIONAL = (
    "observations.frames",
    "actor",
    "critic",
    "controller",
    "exploration",
    "policy",
)  # parts without which a system has its usual ones
ABSENT = ("world_model.decoder",)  # blocks that may be null
KINDS = ("discrete", "continuous")  # of actions


def build(
    system: str,
    *,
    observation_spec: Composite,
    action_spec: TensorSpec,
    overrides: Sequence[str] = (),
) -> System:
    """A ready system for an environment, with the published numbers.

    They are those of the page's choices under ``published``, unless ``overrides`` choose a size or a preset
    (:func:`~wmkit.systems.pages.published`). `wmkit train` begins with the page's small size and
    ``preset=quick``, whose batch, discount and learning rates suit a few thousand updates.

    Args:
        system: one of ``wmkit.available()``.
        observation_spec: of the environment.
        action_spec: of the environment: one-hot or, where the page's actor chooses numbers, bounded floats.
        overrides: Hydra strings.

    Raises:
        ConfigError: see :func:`compose <wmkit.systems.pages.compose>`.
        SpecError: the system cannot see or act in this environment.

    >>> import torch
    >>> from torchrl.data import Composite, OneHot, UnboundedDiscrete
    >>> spec = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))
    >>> with torch.device("meta"):  # its published size, without memory
    ...     system = build("dreamer_v3", observation_spec=spec, action_spec=OneHot(4))
    >>> system.batch_shape, sum(p.numel() for p in system.actor.parameters())
    ((16, 65), 12593156)
    >>> small = build("dreamer_v3", observation_spec=spec, action_spec=OneHot(4), overrides=["size=tiny"])
    """
    return build_from(compose(system, published(system, overrides)), observation_spec, action_spec)


def build_from(config: DictConfig, observation_spec: Composite, action_spec: TensorSpec) -> System:
    """A ready system from a configuration of :func:`compose`."""
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, False)
    page: Any = OmegaConf.to_container(config)
    OmegaConf.resolve(config)
    _check_blocks(config)
    actor = _make(config, "actor", page)
    if actor is None and config.get("controller") is not None:
        raise ConfigError(
            "actor is null: wanted a mapping with _target_, since the controller teaches one; correct "
            "actor, or set controller=null as well"
        )
    spaces = read_spaces(
        observation_spec,
        action_spec,
        images=_plain(config.observations.images),
        vectors=_plain(config.observations.vectors),
        classes=_plain(config.observations.get("classes")),
        system=config.system,
        actions=KINDS if actor is None else getattr(getattr(actor, "func", actor), "actions", KINDS[:1]),
    )
    _expand_auto(config, spaces)
    _drop_absent(config)
    parts = ("world_model", "critic", "controller", "schedule", "exploration", "policy")
    return System(
        config.system,
        spaces,
        objectives={name: _make(config, f"objectives.{name}", page) for name in config.objectives},
        actor=actor.of(spaces.actions) if isinstance(actor, ActorChoice) else actor,
        batch=dict(config.batch),
        frames=_make(config, "observations.frames", page),
        **{part: one for part in parts if (one := _make(config, part, page)) is not None},
    )


def _check_blocks(config: DictConfig) -> None:
    """Check what is read here, before there are parts that check their own.

    Raises:
        ConfigError: a page of an older version, a size that is no width or depth, a block without keys,
            observations that are no list.
    """
    if older := [name for name in ("world_model_loss", "behaviour") if name in config]:
        raise ConfigError(
            f"the page of {config.get('system')} is one of an older wmkit: found {' and '.join(older)}, "
            "wanted objectives and controller; build the system anew, its load_state_dict takes the older "
            "weights"
        )
    for name, value in (config.get("size") or {}).items():
        if isinstance(value, (int, float)):
            check_range(f"size.{name}", value, 0 if name == "layers" else 1)
    for block in BLOCKS:
        found = OmegaConf.select(config, block)
        if found is None and block in ABSENT:
            continue
        if not OmegaConf.is_dict(found):
            raise ConfigError(f"{block} is {found!r}: wanted a mapping; override keys of it instead")
    for name in ("images", "vectors"):
        keys = config.observations.get(name)
        if keys != "auto" and not OmegaConf.is_list(keys):
            raise ConfigError(
                f"observations.{name} is {keys!r}: wanted auto or a list of keys; write "
                f"observations.{name}=[KEY]"
            )
    classes = config.observations.get("classes")  # not on pages of older runs
    if not (classes is None or OmegaConf.is_list(classes) or (type(classes) is int and classes >= 0)):
        raise ConfigError(
            f"observations.classes is {classes!r}: wanted a whole number of at least 0 or a list of keys; "
            "write observations.classes=255 or observations.classes=[KEY]"
        )


def _make(config: DictConfig, name: str, page: Mapping[str, Any]) -> Any:
    """A part that the configuration describes; what it objects to, now or later, comes out with its place.

    ``page`` is the configuration with its interpolations, to say which key has a value from which.
    """
    node = OmegaConf.select(config, name)
    if node is None and name in OPTIONAL:
        return None
    if not OmegaConf.is_config(node):
        raise ConfigError(f"{name} is {node!r}: wanted a mapping with _target_; correct {name}")
    source = partial(origin, page)
    check_page(OmegaConf.to_container(node), name, source)
    with made(name, InstantiationException, origin=source):
        return placed(instantiate(node, _convert_="all"), name, source)


def _expand_auto(config: DictConfig, spaces: Spaces) -> None:
    """Write the observation keys that were found where the page says ``auto``, and which hold classes."""
    for codec in filter(None, (config.world_model.encoder, config.world_model.decoder)):
        if codec.images == "auto":
            codec.images = list(spaces.images)
        if codec.vectors == "auto":
            codec.vectors = list(spaces.vectors)
        discrete = {key: count for key, count in spaces.classes.items() if key in codec.vectors}
        if discrete:  # a codec without classes need not know the word
            codec.setdefault("discrete", discrete)


def _drop_absent(config: DictConfig) -> None:
    """Leave out heads, and objectives, that a group has set to null."""
    for block in (config.world_model.heads, config.objectives):
        for name in [name for name, value in block.items() if value is None]:
            del block[name]


def _plain(value: Any) -> Any:
    return list(value) if OmegaConf.is_config(value) else value
