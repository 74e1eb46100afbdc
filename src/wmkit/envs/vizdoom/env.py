"""The embedded worlds as a TorchRL environment: a thin wrapper over the simulator."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase

from wmkit.envs.vizdoom.engine import HEIGHT, WIDTH
from wmkit.envs.vizdoom.simulator import ACTIONS, Observation, VizdoomSimulator
from wmkit.errors import ConfigError


class VizdoomEnv(EnvBase):
    """One of the five tasks in generated worlds; see :class:`~wmkit.envs.vizdoom.simulator.VizdoomSimulator`.

    Keys: ``pixels`` uint8 ``[3, 64, 64]``, ``frame`` uint8 ``[3, 160, 256]``, ``goal_mask`` bool
    ``[1, 160, 256]``, ``success`` bool ``[1]``, ``reward`` float32 ``[1]``, ``done``, ``terminated``,
    ``truncated`` bool ``[1]``; ``action`` one-hot int64 ``[12]``.

    Success terminates (with ``success_terminates=True``, the default); the time limit truncates. The
    same seed gives the same episodes.

    Args:
        task: a task's name, with or without ``vizdoom/``.
        seed: of the stream of episodes; :meth:`set_seed` restarts it.
        **options: of :class:`~wmkit.envs.vizdoom.simulator.VizdoomSimulator`.

    >>> env = VizdoomEnv("harvest_log_in_plains", world="small", max_steps=4)
    >>> env.rollout(4)["next", "frame"].shape
    torch.Size([4, 3, 160, 256])
    >>> env.close()
    """

    def __init__(self, task: str, *, seed: int = 0, **options: Any) -> None:
        known = [key for key in inspect.signature(VizdoomSimulator).parameters if key not in ("task", "seed")]
        for option in options:
            if option not in known:
                raise ConfigError(
                    f"option {option!r} of env {task!r} is unknown: wanted one of {', '.join(known)}; "
                    "remove it or correct its name"
                )
        super().__init__(device="cpu", batch_size=torch.Size([]))
        self.simulator = VizdoomSimulator(task, seed=seed, **options)
        spec = Composite(
            pixels=Bounded(0, 255, (3, 64, 64), dtype=torch.uint8), success=Binary(1, dtype=torch.bool)
        )
        if self.simulator.frames:
            spec["frame"] = Bounded(0, 255, (3, HEIGHT, WIDTH), dtype=torch.uint8)
        if self.simulator.masks:
            spec["goal_mask"] = Binary(shape=(1, HEIGHT, WIDTH), dtype=torch.bool)
        self.observation_spec = spec
        self.action_spec = OneHot(len(ACTIONS), dtype=torch.int64)
        self.reward_spec = Unbounded((1,))
        self.done_spec = Composite(
            {key: Binary(1, dtype=torch.bool) for key in ("done", "terminated", "truncated")}
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        out = _tensors(self.simulator.reset())
        for key in ("done", "terminated", "truncated"):
            out[key] = torch.zeros(1, dtype=torch.bool)
        return TensorDict._new_unsafe(out, batch_size=torch.Size([]))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        out = _tensors(self.simulator.step(int(tensordict.get("action").argmax())))
        out["done"] = out["terminated"] | out["truncated"]
        return TensorDict._new_unsafe(out, batch_size=torch.Size([]))

    def enter(self, episode: int) -> None:
        """The next reset begins this episode of the stream of its seed (:mod:`wmkit.envs.episodes`)."""
        self.simulator.episode = episode - 1

    def _set_seed(self, seed: int | None) -> None:
        self.simulator.seed(0 if seed is None else seed)

    def wait_at_most(self, seconds: float | None) -> None:
        """In which the engine must answer, or it is ended (Linux); None for any time."""
        self.simulator.wait_at_most(seconds)

    def close(self, **kwargs: Any) -> None:
        """Stop the engine and remove its files."""
        self.simulator.close()
        super().close(**kwargs)


def _tensors(observation: Observation) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in observation.items()}


# Constructors by name, for the registry.
harvest_log_in_plains = partial(VizdoomEnv, "harvest_log_in_plains")
harvest_water_with_bucket = partial(VizdoomEnv, "harvest_water_with_bucket")
harvest_sand = partial(VizdoomEnv, "harvest_sand")
shear_sheep = partial(VizdoomEnv, "shear_sheep")
mine_iron_ore = partial(VizdoomEnv, "mine_iron_ore")
