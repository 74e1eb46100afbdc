"""What acts where nothing has learned to: a system without a controller plays at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase


class RandomPolicy(TensorDictModuleBase):
    """Uniform actions: one of ``action_dim`` choices, or numbers in [-1, 1]. It remembers nothing.

    Args:
        action_dim: width A of an action.
        observations: keys that the system's encoder reads, for records of them.
        continuous: whether actions are numbers rather than a choice.

    >>> from tensordict import TensorDict
    >>> root = TensorDict({"is_init": torch.ones(5, 1, dtype=torch.bool)}, [5])
    >>> RandomPolicy(3)(root)["action"].sum(-1)
    tensor([1., 1., 1., 1., 1.])
    """

    def __init__(self, action_dim: int, observations: Sequence[str] = (), continuous: bool = False) -> None:
        super().__init__()
        self.action_dim, self.observations, self.continuous = action_dim, tuple(observations), continuous
        self.precision = torch.float32
        self.in_keys = [*(key for key in self.observations if key != "reward"), "is_init"]
        self.out_keys = ["action"]

    def make_tensordict_primer(self) -> list[Any]:
        """There is nothing to carry."""
        return []

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act on root observations ``[*E]``."""
        lead, device = tensordict.batch_size, tensordict.get("is_init").device
        drawn = torch.rand(*lead, self.action_dim, device=device)
        action = 2 * drawn - 1
        if not self.continuous:
            action = torch.nn.functional.one_hot(drawn.argmax(-1), self.action_dim).float()
        return tensordict.set("action", action)
