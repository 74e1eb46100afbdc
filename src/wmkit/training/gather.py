"""Episodes played in an environment and written as a data set: ``wmkit data collect``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import TensorDictBase
from torchrl.data import Bounded, OneHot, TensorSpec
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from wmkit.data.layout import LOG
from wmkit.data.recorded import Episode
from wmkit.data.recorded.minari_writer import MinariWriter, Recording, Space
from wmkit.envs import make_env
from wmkit.errors import ConfigError
from wmkit.systems.observations import SIDE, TAKEN
from wmkit.training.collect import closing
from wmkit.training.progress import Stages
from wmkit.training.reopen import load_run

Act = Callable[[TensorDictBase], TensorDictBase]


def gather(
    name: str,
    out: Path,
    *,
    policy: str = "random",
    episodes: int = 100,
    seed: int = 0,
    limit: int = 30_000,
    options: Mapping[str, Any] | None = None,
    trust: bool = False,
    stages: Stages | None = None,
) -> MinariWriter:
    """Play whole episodes and write them.

    Args:
        name: of the environment, see :func:`~wmkit.envs.make_env`.
        out: folder that the data set becomes.
        policy: ``random``; ``scripted``, what the environment itself would do (its ``scripted_action``); or
            the folder of a run that was trained in it.
        episodes: how many.
        seed: of the environment and of chance.
        limit: steps after which an episode is cut.
        options: of the environment.
        trust: of the run's configuration, see :func:`~wmkit.training.reopen.load_run`.
        stages: draws the progress bar.

    Returns:
        The writer, closed, with its counts; interrupted, the whole episodes are written.

    Raises:
        ConfigError: an unknown environment or policy, or one that does not fit the other.
    """
    torch.manual_seed(seed)
    given = dict(options or {})
    with closing(make_env(name, seed=seed, **given)) as base:
        env, act, sampled, unit = _acting(base, name, policy, trust)
        spaces, infos = _spaces(base)
        action = base.full_action_spec["action"]
        about = {"wmkit": {"env": name, "policy": policy, "seed": seed, "options": given}}
        writer = MinariWriter(out, spaces, _action_space(action, name), about)
        kind = ExplorationType.RANDOM if sampled else ExplorationType.DETERMINISTIC
        played = _play(env, act, partial(_taken, spec=action, unit=unit), list(spaces), infos, limit)
        try:
            bars = (stages or Stages()).stage("collect", episodes, "episodes")
            with torch.no_grad(), set_exploration_type(kind), bars as bar:
                for recording in islice(played, episodes):
                    writer.write(recording)
                    bar.advance(1)
        finally:
            writer.close()
    return writer


def _acting(base: EnvBase, name: str, policy: str, trust: bool) -> tuple[EnvBase, Act, bool, bool]:
    """The environment as the policy needs it, what acts, whether it samples, and in units of [-1, 1]."""
    if policy == "random":
        return base, lambda here: here.set("action", base.action_spec.rand()), True, False
    if policy == "scripted":
        inner: Any = base
        while isinstance(inner, TransformedEnv):
            inner = inner.base_env
        script = getattr(inner, "scripted_action", None)
        if script is None:
            raise ConfigError(
                f"env {name!r} has no scripted policy: found no scripted_action in it, wanted one; use "
                "--policy random, or a run"
            )
        return base, lambda here: here.set("action", script()), True, False
    if not (Path(policy) / "config.yaml").is_file():
        raise ConfigError(
            f"policy {policy!r} is unknown: wanted random, scripted or the folder of a run; correct --policy"
        )
    opened = load_run(policy, trust=trust)
    sampled = bool(OmegaConf.select(opened.run.config, "training.evaluate_sampled", default=False))
    known, needed = base.observation_spec.keys(), opened.system.policy.observations
    if missing := [key for key in needed if key not in known and key != "reward"]:
        raise ConfigError(
            f"run {policy!r} cannot play {name!r}: found no observation {missing[0]!r} in it, wanted the "
            "environment that the run was trained in; name it, with its options"
        )
    wrapped = opened.parts.carry(base, opened.system)
    return wrapped, opened.system.policy, sampled, bool(getattr(opened.system.policy, "continuous", False))


def _play(
    env: EnvBase, act: Act, taken: Callable[..., np.ndarray], keys: list[str], infos: list[str], limit: int
) -> Iterator[Recording]:
    """Whole episodes, without end."""
    here = env.reset()
    while True:
        seen = {key: [_array(here[key])] for key in (*keys, *infos)}
        actions, rewards = list[np.ndarray](), list[float]()
        done = False
        while not done and len(actions) < limit:
            stepped, here = env.step_and_maybe_reset(act(here))
            after = stepped["next"]
            actions.append(taken(stepped["action"]))
            rewards.append(float(after["reward"]))
            for key, values in seen.items():
                values.append(_array(after[key]))
            done = bool(after["done"])
        ended = bool(after["terminated"])
        whole = {key: np.stack(values) for key, values in seen.items()}
        shown = {key: whole[key] for key in keys}
        episode = Episode(shown, np.stack(actions), np.asarray(rewards, np.float32), ended)
        yield Recording(episode, not ended, infos={key.removeprefix(LOG): whole[key] for key in infos})
        if not done:
            here = env.reset()


def _array(value: torch.Tensor) -> np.ndarray:
    """A value as data sets have it: pictures with their channels last."""
    array = value.numpy(force=True)
    return np.ascontiguousarray(np.moveaxis(array, 0, -1)) if array.ndim == 3 else array.copy()


def _taken(drawn: torch.Tensor, *, spec: TensorSpec, unit: bool) -> np.ndarray:
    """What the environment was told, in its own units."""
    if isinstance(spec, OneHot):
        return np.asarray(int(drawn.argmax()), np.int64)
    if unit:
        low, high = spec.space.low, spec.space.high
        drawn = low + (drawn.float().clamp(-1.0, 1.0) + 1.0) / 2.0 * (high - low)
    return drawn.float().numpy(force=True).copy()


def _spaces(env: EnvBase) -> tuple[dict[str, Space], list[str]]:
    """Spaces of what is learned from, and keys of what is kept beside."""
    spaces, infos = {}, []
    for key, spec in env.observation_spec.items():
        if not isinstance(key, str) or not isinstance(getattr(spec, "shape", None), torch.Size):
            continue
        if key.startswith(LOG) or key == "success":
            infos.append(key)
        elif key not in TAKEN and key not in SIDE and spec.dtype is not None and hasattr(spec, "rand"):
            spaces[key] = _space(spec)
    return spaces, infos


def _space(spec: TensorSpec) -> Space:
    shape = tuple(spec.shape)
    shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape
    dtype = str(spec.dtype).removeprefix("torch.")
    if spec.dtype == torch.bool:
        return Space(shape, "bool", False, True)
    if isinstance(spec, OneHot):
        return Space(shape, dtype, 0, 1)
    if len(shape) == 3:
        return Space(shape, dtype, 0, 255 if dtype == "uint8" else 1.0)
    if isinstance(spec, Bounded):
        return Space(shape, dtype, spec.space.low.numpy(), spec.space.high.numpy())
    if spec.dtype is not None and spec.dtype.is_floating_point:
        return Space(shape, dtype, -np.inf, np.inf)
    info = torch.iinfo(spec.dtype)
    return Space(shape, dtype, info.min, info.max)


def _action_space(spec: TensorSpec, name: str) -> Space:
    if isinstance(spec, OneHot):
        return Space((), "int64", classes=int(spec.space.n))
    if isinstance(spec, Bounded):
        return Space(tuple(spec.shape), "float32", spec.space.low.numpy(), spec.space.high.numpy())
    raise ConfigError(
        f"env {name!r} cannot be collected: found actions {type(spec).__name__} {list(spec.shape)}, wanted "
        "one choice or numbers between bounds; wrap it"
    )
