"""Any gymnasium environment by its id, through TorchRL's wrapper; from its observations or from pictures.

Ends are the environment's own: what it calls terminated and truncated stays that, and its time limit is
the one it was registered with. Rewards are as given.
"""

from __future__ import annotations

import os
from contextlib import closing, suppress
from typing import Any

import numpy as np
import torch
from torchrl.envs import DoubleToFloat, EnvBase, GymEnv, GymWrapper, TransformedEnv

from wmkit.envs.adapters import channels_first, fit_image
from wmkit.envs.names import register_ids
from wmkit.errors import ConfigError


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
        env = GymWrapper(_drawn(env_id, image_size, options)) if pixels else GymEnv(env_id, **options)
        env.set_seed(seed)  # which resets
    except Exception as error:
        if space := _unreadable(env_id, options):
            raise ConfigError(
                f"env 'gym/{env_id}' does not fit: found {space}, wanted arrays, classes or a Dict of them; "
                "register it with a wrapper that has such"
                + ", or set env.pixels=true to see what it draws"
                * space.startswith("observations")
            ) from error
        text = " ".join(str(error).split()).rstrip(".")
        hint = "install the package that registers it, or check the id and its options"
        if isinstance(error, TypeError):
            hint = f"check its options, and that its page was chosen (env=gymnasium env.name={env_id})"
        raise ConfigError(f"env 'gym/{env_id}' could not be made: {text}; {hint}") from error
    if any(spec.dtype == torch.float64 for spec in env.specs.values(True, True)):
        return TransformedEnv(env, DoubleToFloat())
    return env


def _drawn(env_id: str, side: int, options: dict[str, Any]) -> Any:
    """The environment with ``pixels`` ``[3, side, side]`` for an observation."""
    import gymnasium
    from gymnasium.spaces import Box, Dict
    from gymnasium.wrappers import AddRenderObservation, TransformObservation

    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame looks for a screen even to draw an array
    env = gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True, **options)
    return TransformObservation(
        AddRenderObservation(env, render_only=True),
        lambda image: {"pixels": channels_first(fit_image(image, side))},
        Dict(pixels=Box(0, 255, (3, side, side), np.uint8)),
    )


def _unreadable(env_id: str, options: dict[str, Any]) -> str:
    """What an environment shows or takes that no tensor can hold, in words; empty where there is no such."""
    import gymnasium
    from gymnasium.spaces import Dict, Graph, OneOf, Sequence, Space, Tuple

    def mixed(space: Space) -> bool:
        if isinstance(space, Dict):
            return any(map(mixed, space.values()))
        return isinstance(space, (Graph, OneOf, Sequence, Tuple))

    with suppress(Exception), closing(gymnasium.make(env_id, disable_env_checker=True, **options)) as env:
        for name, space in (("observations", env.observation_space), ("actions", env.action_space)):
            if mixed(space):
                return f"{name} {space}"
    return ""
