"""TorchRL value estimators: for transitions of any duration, and the released STORM's λ-return (compat)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives.utils import register_value_estimator
from torchrl.objectives.value import ValueEstimatorBase

from wmkit.arguments import check_range
from wmkit.functional import check_equal, lambda_return_jumpy


class WorldModelEstimators(Enum):
    """wmkit's value estimators, for ``LossModule.make_value_estimator``."""

    LambdaReturnJumpy = "Jumpy λ-return"


@register_value_estimator(
    WorldModelEstimators.LambdaReturnJumpy, default_kwargs={"gamma": 0.997, "lmbda": 0.95}
)
class LambdaReturnJumpy(ValueEstimatorBase):
    """λ-return over transitions that may span several environment steps (LS-Imagine, eq. 6).

    Reads a TorchRL transition batch ``[*B, T]`` (root and ``next``). With every
    ``steps_to_next_obs`` equal to one, no ``jump_return`` and ``continuation_at="next"`` it
    equals :class:`torchrl.objectives.value.TDLambdaEstimator`.

    Keys under ``next``: ``reward``; ``continuation`` (one minus ``terminated`` if absent;
    with ``continuation_at="current"`` it is read at the root instead);
    ``steps_to_next_obs`` (looked for at the root too, where TorchRL
    writes it; one if absent); ``jump_return`` (zero if absent); ``done``
    restarts the recursion (never, if absent).

    Args:
        gamma: discount of one environment step.
        lmbda: λ of the mixture.
        continuation_at: see :func:`wmkit.functional.lambda_return_jumpy`.
        value_network: writes ``state_value``; only needed when values are not in the batch.
        differentiable: let gradients through the return.

    >>> from tensordict import TensorDict
    >>> one = torch.ones(1, 3, 1)
    >>> batch = TensorDict({"next": {"reward": one, "state_value": 0 * one}}, [1, 3])
    >>> estimator = LambdaReturnJumpy(gamma=0.5, lmbda=1.0)
    >>> estimator.value_estimate(batch).flatten()
    tensor([1.7500, 1.5000, 1.0000])
    """

    @dataclass
    class _AcceptedKeys:
        advantage: NestedKey = "advantage"
        value_target: NestedKey = "value_target"
        value: NestedKey = "state_value"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        steps_to_next_obs: NestedKey = "steps_to_next_obs"
        continuation: NestedKey = "continuation"
        jump_return: NestedKey = "jump_return"

    default_keys = _AcceptedKeys
    value_network: Any

    def __init__(
        self,
        *,
        gamma: float,
        lmbda: float,
        continuation_at: Literal["next", "current"] = "next",
        value_network: Any = None,
        differentiable: bool = False,
        **kwargs: Any,
    ) -> None:
        check_range("gamma", gamma, 0, 1)
        check_range("lmbda", lmbda, 0, 1)
        super().__init__(value_network=value_network, differentiable=differentiable, **kwargs)
        self.register_buffer("gamma", torch.tensor(gamma), persistent=False)  # the page's, not a checkpoint's
        self.register_buffer("lmbda", torch.tensor(lmbda), persistent=False)
        self.continuation_at = continuation_at
        _ = self.tensor_keys  # made at the first look, which a compiler would take for a change

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("gamma", "lmbda"):  # which older states have
            state_dict.pop(f"{prefix}{name}", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(
        self, tensordict: TensorDictBase, *, params: Any = None, target_params: Any = None
    ) -> TensorDictBase:
        """Write ``value_target`` and ``advantage`` (target minus ``state_value``)."""
        keys = self.tensor_keys
        if self.value_network is not None:
            self._call_value_net(tensordict, params, target_params)
        target = self.value_estimate(tensordict)
        tensordict.set(keys.value_target, target)
        tensordict.set(keys.advantage, target - tensordict.get(keys.value))
        return tensordict

    def value_estimate(
        self,
        tensordict: TensorDictBase,
        target_params: Any = None,
        next_value: Tensor | None = None,
        time_dim: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The λ-return ``[*B, T, 1]``."""
        keys = self.tensor_keys
        following = tensordict.get("next")
        reward = following.get(keys.reward)
        if next_value is None:
            next_value = following.get(keys.value)
        source = following if self.continuation_at == "next" else tensordict
        continuation = source.get(keys.continuation, None)
        if continuation is None:
            ended = source.get(keys.terminated, None)
            continuation = torch.ones_like(reward) if ended is None else 1 - ended.to(reward.dtype)
        steps = following.get(keys.steps_to_next_obs, None)
        if steps is None:  # TorchRL's multi-step transform writes it at the root
            steps = tensordict.get(keys.steps_to_next_obs, torch.ones_like(reward))
        jump_return = following.get(keys.jump_return, torch.zeros_like(reward))
        done = following.get(keys.done, None)
        lmbda = self.lmbda if done is None else self.lmbda * (~done.bool()).to(reward.dtype)
        target = lambda_return_jumpy(
            reward,
            next_value,
            continuation.to(reward.dtype),
            steps.to(reward.dtype),
            jump_return,
            gamma=self.gamma,
            lmbda=lmbda,
            continuation_at=self.continuation_at,
        )
        return target if self.differentiable else target.detach()

    def _call_value_net(self, tensordict: TensorDictBase, params: Any, target_params: Any) -> None:
        """Fill in the values that are missing."""
        keys = self.tensor_keys
        for part, weights in ((tensordict, params), (tensordict.get("next"), target_params)):
            if part.get(keys.value, None) is None:
                if weights is None:
                    self.value_network(part)
                else:
                    with weights.to_module(self.value_network):
                        self.value_network(part)


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
        going_on, own = after.get(keys.continuation), tensordict.get(keys.value)
        check_equal(
            "OwnValueReturn", "[*B, T, 1]", reward=after.get(keys.reward), value=own, continuation=going_on
        )
        base = after.get(keys.reward) + (1 - self.lmbda) * own * going_on  # [*B, T, 1]
        last, returns = after.get(keys.value)[..., -1, :], []
        for t in reversed(range(base.shape[-2])):
            last = base[..., t, :] + self.lmbda * going_on[..., t, :] * last
            returns.append(last)
        return torch.stack(returns[::-1], -2)
