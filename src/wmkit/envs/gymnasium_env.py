"""Any gymnasium environment by its id, through TorchRL's wrapper; from its observations or from pictures.

Ends are the environment's own: what it calls terminated and truncated stays that, and its time limit is
the one it was registered with. Rewards are as given.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Dict, Discrete, Graph, MultiDiscrete, OneOf, Sequence, Space, Tuple
from torchrl.envs import DoubleToFloat, EnvBase, GymEnv, GymWrapper, TransformedEnv

from wmkit.envs.adapters import channels_first, fit_image
from wmkit.envs.names import register_ids
from wmkit.errors import ConfigError

# Keys that TorchRL's specs and tensors have themselves.
TAKEN = (
    *("reward", "done", "terminated", "truncated", "next", "_reset"),
    *("self", "shape", "batch_size", "device", "data_cls", "step_mdp_static"),
)


def gymnasium_env(
    env_id: str, *, seed: int = 0, pixels: bool = False, image_size: int = 64, **options: Any
) -> EnvBase:
    """A registered environment; keys as TorchRL names them.

    Args:
        env_id: such as ``CartPole-v1``.
        seed: of its stream of episodes.
        pixels: replace the observation by ``pixels`` uint8 ``[3, side, side]``: what the environment
            draws, by a bilinear filter.
        image_size: side of the picture; without ``pixels``, nothing.
        **options: of the environment.

    Raises:
        ConfigError: no such id, its package is missing, it does not take the options, or its spaces are not
            arrays, classes or a Dict of them.

    >>> gymnasium_env("CartPole-v1", pixels=True).rollout(3)["pixels"].shape
    torch.Size([3, 3, 64, 64])
    """
    import gymnasium

    if env_id not in gymnasium.registry:
        register_ids()
    try:
        env = GymWrapper(_drawn(env_id, image_size, options)) if pixels else _Registered(env_id, **options)
        env.set_seed(seed)  # which resets
    except ConfigError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()).rstrip(".")
        hint = "install the package that registers it, or check the id and its options"
        if isinstance(error, TypeError):
            hint = f"check its options, and that its page was chosen (env=gymnasium env.name={env_id})"
        raise ConfigError(f"env 'gym/{env_id}' could not be made: {text}; {hint}") from error
    if any(spec.dtype == torch.float64 for spec in env.specs.values(True, True)):
        return TransformedEnv(env, DoubleToFloat())
    return env


class _Registered(GymEnv):
    """TorchRL's wrapper of what it can hold, with all classes counted from 0."""

    def _build_env(self, env_name: str, **options: Any) -> Any:
        env = super()._build_env(env_name, **options)
        _check_spaces(env_name, observations=env.observation_space, actions=env.action_space)
        return _from_zero(env)


def _drawn(env_id: str, side: int, options: dict[str, Any]) -> Any:
    """The environment with ``pixels`` ``[3, side, side]`` for an observation."""
    import gymnasium
    from gymnasium.spaces import Box
    from gymnasium.wrappers import AddRenderObservation, TransformObservation

    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame looks for a screen even to draw an array
    env = gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True, **options)
    _check_spaces(env_id, actions=env.action_space)
    return TransformObservation(
        AddRenderObservation(_from_zero(env), render_only=True),
        lambda image: {"pixels": channels_first(fit_image(image, side))},
        Dict(pixels=Box(0, 255, (3, side, side), np.uint8)),
    )


def _check_spaces(env_id: str, **spaces: Space) -> None:
    """Refuse what an environment shows or takes that no tensor can hold, or not under such a name."""
    for name, space in spaces.items():
        seen = name == "observations"
        wanted = "arrays, classes or a Dict of them" if seen else "an array or classes"
        pixels = ", or set pixels=true to see what it draws" * seen
        if any(isinstance(part, (Graph, OneOf, Sequence, Tuple)) for _, part in _walk(space)):
            raise ConfigError(
                f"env 'gym/{env_id}' does not fit: found {name} {space}, wanted {wanted}; register it "
                f"with a wrapper that has such{pixels}"
            )
        if taken := sorted({key for key, _ in _walk(space) if key in TAKEN}):
            raise ConfigError(
                f"env 'gym/{env_id}' does not fit: found {name} with the key {taken[0]!r}, wanted others "
                f"than {', '.join(TAKEN)}, which TorchRL uses itself; register it with a wrapper that "
                f"renames it{pixels}"
            )


def _walk(space: Space, key: str = "") -> Iterator[tuple[str, Space]]:
    """A space and all inside it, with their keys."""
    yield key, space
    if isinstance(space, Dict):
        for name, part in space.items():
            yield from _walk(part, name)


def _from_zero(env: Any) -> Any:
    """An environment whose classes, shown and taken, count from 0, as those of tensors do."""
    from gymnasium.wrappers import TransformAction, TransformObservation

    for wrapper, space in (
        (TransformObservation, env.observation_space),
        (TransformAction, env.action_space),
    ):
        if any(np.any(getattr(part, "start", 0)) for _, part in _walk(space)):
            sign = 1 if wrapper is TransformAction else -1
            env = wrapper(env, partial(_moved, space, sign), _counted(space))
    return env


def _counted(space: Space) -> Space:
    """A space without starts."""
    if isinstance(space, Dict):
        return Dict({key: _counted(part) for key, part in space.items()})
    if isinstance(space, Discrete):
        return Discrete(space.n)
    return MultiDiscrete(space.nvec, space.dtype) if isinstance(space, MultiDiscrete) else space


def _moved(space: Space, sign: int, value: Any) -> Any:
    """A value of a space with its starts added, or (``sign`` -1) taken off."""
    if isinstance(space, Dict):
        return {key: _moved(part, sign, value[key]) for key, part in space.items()}
    return value + sign * space.start if isinstance(space, (Discrete, MultiDiscrete)) else value
