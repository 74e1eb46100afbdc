"""A world that shows the action that reached it."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    Unbounded,
)
from torchrl.envs import EnvBase

SIX, LOW, HIGH = Bounded(-1, 1, (6,)), [-2.0, 0.0], [2.0, 10.0]


class Steer(EnvBase):
    """Shows the action that reached it; its phase counts 0, 1, 2; ten steps an episode."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        low, high = torch.tensor([LOW, HIGH], dtype=dtype)
        self.action_spec = Bounded(low, high, (2,), dtype=dtype)
        self.observation_spec = Composite(applied=Unbounded((2,), dtype=dtype), phase=Categorical(3))
        self.reward_spec = Unbounded((1,))
        self.done_spec = Composite(
            {key: Binary(1, dtype=torch.bool) for key in ("done", "terminated", "truncated")}
        )
        self.count, self.type = 0, dtype

    def _show(self, applied: torch.Tensor) -> dict[str, torch.Tensor]:
        over = torch.tensor([self.count >= 10])
        ends = {"done": over, "truncated": over.clone(), "terminated": torch.zeros_like(over)}
        return {"applied": applied, "phase": torch.tensor(self.count % 3), **ends}

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDict:
        self.count = 0
        return TensorDict(self._show(torch.zeros(2, dtype=self.type)))

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        self.count += 1
        applied = tensordict["action"].clone()
        assert applied.dtype == self.type
        return TensorDict({**self._show(applied), "reward": -applied[:1].float().abs()})

    def _set_seed(self, seed: int | None) -> None:
        return None


def rescaled(action: torch.Tensor) -> torch.Tensor:
    low, high = torch.tensor([LOW, HIGH])
    return low + (action.clamp(-1, 1) + 1) / 2 * (high - low)
