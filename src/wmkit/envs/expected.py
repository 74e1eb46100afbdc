"""What an environment's specs promise, what it gave, and what stands in for a transition that never came."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase

from wmkit.errors import ConfigError, SpecError


class Expected:
    """Keys, shapes and dtypes that an environment's specs promise.

    Args:
        env: unbatched.

    Raises:
        ConfigError: it has a batch of its own.

    >>> from wmkit.envs.counting import CountingEnv
    >>> env = CountingEnv()
    >>> Expected(env).check(env.reset(), step=False)
    []
    """

    def __init__(self, env: EnvBase, name: str = "") -> None:
        if env.batch_size:
            raise ConfigError(
                f"env {name!r} has a batch of its own: found batch size {list(env.batch_size)}, wanted [], "
                "one environment; make it without and set env.num_envs"
            )
        self.observations, self.rewards, self.done = (
            [(key, spec.shape, spec.dtype) for key, spec in specs.items(True, True) if spec.dtype is not None]
            for specs in (env.full_observation_spec, env.full_reward_spec, env.full_done_spec)
        )

    def check(self, out: TensorDictBase, *, step: bool) -> list[str]:
        """Names of the keys that hold NaN or infinity.

        Args:
            out: what a step (its ``next``) or a reset gave.
            step: whether rewards are wanted as well.

        Raises:
            SpecError: a key is missing or has another shape or dtype.
        """
        found = []
        for key, shape, dtype in (*self.observations, *(self.rewards if step else ())):
            value = out.get(key, None)
            if not isinstance(value, torch.Tensor):
                raise SpecError(f"{_name(key)} is missing: wanted {_described(shape, dtype)}")
            if value.shape != shape or value.dtype != dtype:
                found_one = _described(value.shape, value.dtype)
                raise SpecError(f"{_name(key)} is {found_one}: wanted {_described(shape, dtype)}")
            if value.is_floating_point() and not math.isfinite(value.sum().item()):
                # Minus infinity is how an observation says that a number is missing.
                missing = 0.0 if (key, shape, dtype) in self.rewards else -math.inf
                if not bool((value.isfinite() | (value == missing)).all()):
                    found.append(_name(key))
        if step and (out.get("done", None) is None and not any(key in out for key, _, _ in self.done)):
            raise SpecError("'done' is missing: wanted whether the episode ended")
        return found

    def stand_in(self, last: TensorDictBase) -> TensorDict:
        """The transition that never came: the ``last`` observation, a reward of NaN, truncated."""
        out = TensorDict({}, [])
        for key, _, _ in self.observations:
            out.set(key, last.get(key).clone())
        for key, shape, dtype in self.rewards:
            out.set(key, torch.full(shape, math.nan, dtype=dtype))
        for key, shape, _ in self.done:
            out.set(key, torch.full(shape, _ends(key), dtype=torch.bool))
        return out


def _name(key: Any) -> str:
    return key if isinstance(key, str) else "/".join(key)


def _ends(key: Any) -> bool:
    return (key if isinstance(key, str) else key[-1]) != "terminated"


def _described(shape: Any, dtype: Any) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
