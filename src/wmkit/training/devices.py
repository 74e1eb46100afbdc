"""Acting where the environments are not: they live on the CPU, the weights perhaps on an accelerator.

    observations, carry  ──▶  the weights' device: policy  ──▶  action, carry
    where the environments live                                 where the environments live

Only what the policy reads and writes travels. Everything that meets an environment, its transforms, the
replay or a recorded episode stays where the environments live.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from wmkit.control.policy import ARRIVAL_REWARD


def policy_weights(policy: Any) -> Iterator[torch.Tensor]:
    """Parameters and buffers that a policy reads: its own, and those of parts it does not own.

    >>> list(policy_weights(torch.nn.Linear(2, 1, bias=False)))[0].shape
    torch.Size([1, 2])
    """
    for part in (policy, *getattr(policy, "__dict__", {}).values()):
        if isinstance(part, torch.nn.Module):
            yield from part.parameters()
            yield from part.buffers()


class AcrossDevices(TensorDictModuleBase):
    """A policy whose weights lie on another device than what it is called with; see :func:`for_env`.

    Args:
        policy: reads its ``in_keys`` and writes its ``out_keys``.
        device: of its weights.
        home: of the environments.
    """

    def __init__(self, policy: TensorDictModuleBase, device: torch.device, home: torch.device) -> None:
        super().__init__()
        self.policy, self.device, self.home = policy, device, home
        self.in_keys, self.out_keys = policy.in_keys, policy.out_keys

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act."""
        found = {key: tensordict.get(key, None) for key in (*self.in_keys, ARRIVAL_REWARD)}
        read = {key: value.to(self.device) for key, value in found.items() if value is not None}
        written = self.policy(TensorDict(read, tensordict.batch_size, device=self.device))
        for key in self.out_keys:
            tensordict.set(key, written.get(key).to(self.home))
        return tensordict


def for_env(policy: Any, env: EnvBase) -> Any:
    """The policy as the environment can call it: itself, unless its weights lie on another device.

    Args:
        policy: where it is a module, its weights say where it computes.
        env: without a device of its own, on the CPU.

    >>> from wmkit.envs.counting import CountingEnv
    >>> policy = torch.nn.Linear(2, 1)
    >>> for_env(policy, CountingEnv()) is policy
    True
    """
    home = env.device or torch.device("cpu")
    weight = next(policy_weights(policy), None)
    if weight is None or weight.device == home:
        return policy
    return AcrossDevices(policy, weight.device, home)
