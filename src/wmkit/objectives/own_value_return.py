"""A λ-return of the released STORM (compat)."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from wmkit.objectives.estimators import LambdaReturnJumpy


class OwnValueReturn(LambdaReturnJumpy):
    """λ-return that bootstraps with the value of the state that is left: a slip of the released STORM.

    ``G_t = r_t + d_t [(1-λ) V(s_t) + λ G_{t+1}]``, ``G_H = V(s_H)``, where ``V(s_{t+1})`` was meant. Reads
    ``state_value`` at the root too.

    Args:
        lmbda: λ of the mixture.

    >>> from tensordict import TensorDict
    >>> one = torch.ones(1, 2, 1)
    >>> after = {"reward": one, "continuation": one, "state_value": 4 * one}
    >>> transitions = TensorDict({"state_value": 2 * one, "next": after}, [1, 2])
    >>> OwnValueReturn(0.5).value_estimate(transitions).flatten()
    tensor([4., 4.])
    """

    def __init__(self, lmbda: float) -> None:
        super().__init__(gamma=1.0, lmbda=lmbda)

    def value_estimate(self, tensordict: TensorDictBase, *args: Any, **kwargs: Any) -> Tensor:
        """The λ-return ``[*B, T, 1]``."""
        keys, after = self.tensor_keys, tensordict["next"]
        going_on = after.get(keys.continuation)
        base = after.get(keys.reward) + (1 - self.lmbda) * tensordict.get(keys.value) * going_on  # [*B, T, 1]
        last, returns = after.get(keys.value)[..., -1, :], []
        for t in reversed(range(base.shape[-2])):
            last = base[..., t, :] + self.lmbda * going_on[..., t, :] * last
            returns.append(last)
        return torch.stack(returns[::-1], -2)
