"""How a configuration becomes environments, a system and a replay.

The trainer asks for these through one small object, so that tests can hand it stand-ins.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torchrl.envs import Compose, EnvBase, Transform, TransformedEnv

from wmkit.arguments import check_arguments, check_range, check_value
from wmkit.data import ReplayStreams, Sampler
from wmkit.data.pending_pairs import PendingPairs
from wmkit.data.schema import HALVES
from wmkit.envs.guarded import Guard
from wmkit.errors import ConfigError
from wmkit.places import made, placing
from wmkit.registry import resolve
from wmkit.training.affordance_stage import AffordanceTools, prepare_affordance
from wmkit.training.collect import ArrivalReward, with_carry
from wmkit.training.memory import ReplayMemory
from wmkit.training.protocol import evaluation_options
from wmkit.training.run import RunDirectory
from wmkit.training.settings import Settings, check_num_envs, find_device, to_device

LATENT_WAYS = ("raw", "compact", *HALVES)


@dataclass(frozen=True)
class Parts:
    """The makers a trainer uses; replace any of them in a test.

    Attributes:
        make_env: ``(config, affordance, *, seed, evaluation=False) -> EnvBase`` with ``batch_size [N]``.
        build: ``(config, env, device) -> System``.
        make_memory: ``(config, run, system, num_envs) -> ReplayMemory``.
        prepare_affordance: ``(config, run, stages) -> AffordanceTools | None``.
    """

    make_env: Callable[..., EnvBase]
    build: Callable[[DictConfig, EnvBase, torch.device], Any]
    make_memory: Callable[[DictConfig, RunDirectory, Any, int], ReplayMemory]
    prepare_affordance: Callable[..., AffordanceTools | None]

    def carry(self, env: EnvBase, system: Any, policy: Any = None) -> TransformedEnv:
        """Add ``is_init``, the policy's carried latents and what else it needs to an environment.

        ``policy`` is the system's own if not given.
        """
        from wmkit.envs import unit_actions

        policy = system.policy if policy is None else policy
        extra: list[Transform] = []
        if getattr(policy, "continuous", False):
            extra += unit_actions()
        if "reward" in getattr(policy, "observations", ()):
            extra.append(ArrivalReward())
        return with_carry(env, policy, *extra)

    def find_transform(self, env: EnvBase) -> Any:
        """An environment's AffordanceTransform, whose statistics a checkpoint keeps; None without one."""
        from wmkit.affordance import AffordanceTransform

        while isinstance(env, TransformedEnv):
            for transform in env.transform if isinstance(env.transform, Compose) else (env.transform,):
                if isinstance(transform, AffordanceTransform):
                    return transform
            env = env.base_env
        return None


def default_parts() -> Parts:
    """The makers that read the configuration."""
    return Parts(make_training_env, build_system, make_memory, prepare_affordance)


def make_training_env(
    config: DictConfig, affordance: AffordanceTools | None, *, seed: int, evaluation: bool = False
) -> EnvBase:
    """The environments of ``config.env``, with the affordance transform where the system reads maps.

    Args:
        config: reads ``env.name``, ``env.num_envs``, ``env.parallel``, ``env.timeout``, ``env.restarts``,
            ``env.options`` and
            ``affordance.transform``; in an evaluation ``env.evaluation``, which goes over the options.
        affordance: model and text features; None for systems without.
        seed: of the worlds.
        evaluation: maps without rewards, labels and thresholds; frames and masks stay, for the report.

    Returns:
        ``batch_size [N]``.
    """
    from wmkit.envs import make_env

    num_envs = check_num_envs(config)
    given = {name: config.env[name] for name in ("name", "parallel") if name in config.env}
    check_arguments(make_env, given, "env")
    for name in ("options", "evaluation"):
        if not isinstance(block := config.env.get(name), (DictConfig, NoneType)):
            raise ConfigError(f"env.{name} is {block!r}: wanted a mapping; override keys of it instead")
    options = evaluation_options(config) if evaluation else to_options(config.env.get("options"))
    if config.env.name.startswith("vizdoom/"):
        masks = evaluation or (affordance is not None and "goal_mask" in affordance.reads)
        options = {"frames": evaluation or affordance is not None, "masks": masks, **options}
    elif config.env.name.startswith(("minedojo/", "craftground/")):
        options = {"frames": evaluation or affordance is not None, **options}
    with placing("env"):
        env = make_env(
            config.env.name,
            num_envs=num_envs,
            parallel=config.env.get("parallel", False),
            seed=seed,
            guard=make_guard(config),
            **options,
        )
    if affordance is None:
        return env
    return TransformedEnv(env, affordance.transform(config, evaluation=evaluation))


def make_guard(config: DictConfig) -> Guard:
    """What is to be done when an environment fails: ``env.timeout`` and ``env.restarts``.

    Raises:
        ConfigError: one of them is of another type or out of range.
    """
    timeout, restarts = config.env.get("timeout", 120), config.env.get("restarts", 5)
    check_value("env.timeout", timeout, float | int | None, "a run")
    check_value("env.restarts", restarts, int, "a run")
    check_range("env.restarts", restarts, 0)
    if timeout is not None and not 0 < timeout < math.inf:
        raise ConfigError(
            f"env.timeout is {timeout!r}: wanted seconds above zero, or null for any time; correct it"
        )
    return Guard(str(config.env.name), timeout=timeout, restarts=restarts)


def build_system(config: DictConfig, env: EnvBase, device: torch.device) -> Any:
    """The system of ``config`` for one environment of the batch, computing as ``training.precision`` says."""
    from wmkit import systems

    observation_spec, action_spec = env.observation_spec[0], env.full_action_spec[0]
    precision = str(OmegaConf.select(config, "training.precision", default="float32"))
    return systems.build_from(config, observation_spec, action_spec).to(device).compute_in(precision)


def make_memory(config: DictConfig, run: RunDirectory, system: Any, num_envs: int) -> ReplayMemory:
    """The replay of a run: ``training.replay`` and, for systems with jumps, ``training.pairs``.

    Besides what :class:`~wmkit.data.ReplayStreams` takes, ``training.replay`` has

    * ``sampler``: a name from ``wmkit list sampler``, or ``{name: ..., options}``; one that can draw on a
      device does so on the run's, if that is CUDA, unless its ``device`` says another;
    * ``latents``: how ``state`` and ``belief`` are stored, see :func:`latent_options`.

    Raises:
        ConfigError: an unknown sampler or way of storing latents, or an option that a sampler does not take.
    """
    settings = Settings.read(config)
    options = dict(settings.replay)
    options["sampler"] = make_sampler(options.pop("sampler", "uniform"), find_device(config))
    context = int(getattr(system, "context", 0))
    how = options.pop("latents", "raw")
    if taken := [name for name in ("directory", "num_streams", "seed") if name in options]:
        raise ConfigError(
            f"training.replay.{taken[0]} is {options[taken[0]]!r}: wanted no such option, since the run "
            "gives it itself; leave it out"
        )
    check_arguments(ReplayStreams, options, "training.replay")
    options = {**latent_options(system, how), **options}
    pairs = None
    if config.get("affordance") is not None:
        limit = OmegaConf.select(config, "env.options.max_steps", default=1000)
        gamma = OmegaConf.select(config, "controller.returns.estimator.gamma", default=0.997)
        check_arguments(PendingPairs, settings.pairs, "training.pairs")
        pairs = {"max_steps": int(limit), "gamma": float(gamma), **settings.pairs}
    return ReplayMemory(
        run.folder("replay"),
        num_envs=num_envs,
        batch_shape=system.batch_shape,
        context=context,
        keep_latents=context > 0 or how == "raw",
        capacity=options.pop("capacity", 100_000),
        options=options,
        pairs=pairs,
        dream_windows=getattr(system, "dream_windows", None),
        own_windows=getattr(system, "own_windows", None),
        seed=int(config.get("seed", 0)),
    )


def make_sampler(chosen: Any, device: torch.device | None = None) -> Sampler:
    """A sampler from its name, or from a mapping of its name and options.

    Args:
        chosen: either.
        device: of the run; on CUDA the default of a sampler that takes a ``device``.

    Raises:
        ConfigError: an unknown name or option, or an option of another type or out of range.

    >>> make_sampler({"name": "online", "stride": 64}).stride
    64
    >>> make_sampler({"name": "uniform", "stride": 64})
    Traceback (most recent call last):
    wmkit.errors.ConfigError: training.replay.sampler cannot be made: found TypeError: Uniform() takes no ...
    """
    arguments = dict(chosen) if isinstance(chosen, Mapping) else {"name": chosen}
    name = str(arguments.pop("name", None))
    key = "training.replay.sampler"
    make = resolve("sampler", name)
    check_arguments(make, arguments, key)
    if arguments.get("device") is not None:
        arguments["device"] = to_device(f"{key}.device", str(arguments["device"]))
    elif device is not None and device.type == "cuda" and "device" in inspect.signature(make).parameters:
        arguments["device"] = device
    with made(key):
        return make(**arguments)


def latent_options(system: Any, how: str) -> dict[str, Any]:
    """Encodings of the latents that a system's replay stores.

    ============  ====================================  ==============================================
    how           ``state``                             ``belief``
    ============  ====================================  ==============================================
    ``raw``       as the policy writes it               as the policy writes it
    ``compact``   class indices, lossless               in ``system.carry_dtype``, lossless
    ``bfloat16``  class indices, lossless               rounded, relative error 2**-8
    ``float16``   class indices, lossless               rounded, relative error 2**-11, below 65504
    ============  ====================================  ==============================================

    A system without context steps never reads them and, unless ``raw``, stores none.

    Args:
        system: what it carries, and how many classes a categorical of its state has.
        how: see above.

    Raises:
        ConfigError: another way.

    >>> latent_options(None, "float16")
    {'half': {'belief': 'float16'}}
    """
    if how not in LATENT_WAYS:
        raise ConfigError(
            f"training.replay.latents is {how!r}: wanted one of {', '.join(LATENT_WAYS)}; "
            "compact loses nothing"
        )
    if how == "raw":
        return {}
    options: dict[str, Any] = {}
    dynamics = getattr(getattr(system, "world_model", None), "dynamics", None)
    latent = getattr(dynamics, "latent", dynamics)
    if classes := int(getattr(latent, "classes", 0)):
        options["one_hot"] = {"state": classes}
    carried = str(getattr(system, "carry_dtype", torch.float32)).removeprefix("torch.")
    if (half := carried if how == "compact" else how) in HALVES:
        options["half"] = {"belief": half}
    return options


def to_options(block: Any) -> dict[str, Any]:
    """A configuration block as keyword arguments; an absent one is empty."""
    if block is None:
        return {}
    options: Any = OmegaConf.to_container(block, resolve=True)
    return options
