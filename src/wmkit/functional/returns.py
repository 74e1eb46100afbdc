"""λ-returns over transitions of any duration (LS-Imagine, arXiv:2410.03618, eq. 6).

With durations of one step and no jump return this is the λ-return of Dreamer
(arXiv:1912.01603, eq. 6). Along a window of replay, where every state also has an imagined
return, it is :func:`replay_lambda_return` (DreamerV3, danijar/dreamerv3 e3f0224).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from wmkit.errors import SpecError
from wmkit.functional.shapes import check_equal, check_factor, check_least


def lambda_return_jumpy(
    reward: Tensor,
    next_value: Tensor,
    continuation: Tensor,
    steps: Tensor,
    jump_return: Tensor,
    *,
    gamma: float | Tensor,
    lmbda: float | Tensor,
    continuation_at: Literal["next", "current"] = "next",
) -> Tensor:
    """λ-return of transitions that may span several environment steps.

    With ``continuation_at="next"``, for transition t of duration Δ::

        R_t = γ^(Δ-1) r_{t+1} + G_t + c_{t+1} γ^Δ [(1-λ) v_{t+1} + λ R_{t+1}]

    With ``continuation_at="current"`` (LS-Imagine) ``c_t`` multiplies the whole right
    side instead. After the last transition the return is its ``next_value``.

    Args:
        reward: ``[*B, T, 1]`` reward on arriving at the end of each transition.
        next_value: ``[*B, T, 1]`` value of the state each transition arrives at.
        continuation: ``[*B, T, 1]`` probability of going on: of the state arrived at
            (``"next"``) or of the state left (``"current"``).
        steps: ``[*B, T, 1]`` duration Δ in environment steps, 1 or more.
        jump_return: ``[*B, T, 1]`` discounted reward G inside the transition, before arrival.
        gamma: discount of one environment step, 0 to 1: a number, or a tensor that ``[*B, T, 1]`` takes.
        lmbda: λ of the mixture, likewise.
        continuation_at: which continuation the tensor holds.

    Returns:
        ``[*B, T, 1]`` float.

    Raises:
        SpecError: other shapes, a discount, λ or duration out of range (of tensors on a CPU alone), or
            ``continuation_at`` is neither name.

    >>> one = torch.ones(3, 1)
    >>> lambda_return_jumpy(one, 0 * one, one, one, 0 * one, gamma=0.5, lmbda=1.0).squeeze(-1)
    tensor([1.7500, 1.5000, 1.0000])
    """
    if continuation_at not in ("next", "current"):
        raise SpecError(
            f"continuation_at is {continuation_at!r}: wanted 'next' or 'current'; "
            "use 'next' for Dreamer and 'current' for LS-Imagine"
        )
    where = "lambda_return_jumpy"
    check_equal(
        where,
        "[*B, T, 1]",
        reward=reward,
        next_value=next_value,
        continuation=continuation,
        steps=steps,
        jump_return=jump_return,
    )
    check_factor(where, "gamma", gamma, reward.shape)
    check_factor(where, "lmbda", lmbda, reward.shape)
    check_least(where, "steps", steps, 1)
    gamma = torch.as_tensor(gamma, dtype=reward.dtype, device=reward.device)
    discount = gamma**steps  # [*B, T, 1]
    gain = gamma ** (steps - 1) * reward + jump_return
    if continuation_at == "next":
        discount = discount * continuation
    else:
        gain, discount = gain * continuation, discount * continuation
    # R_t = base_t + slope_t * R_{t+1}
    base = gain + discount * (1 - lmbda) * next_value
    slope = discount * lmbda
    last = next_value[..., -1, :]
    returns = []
    for t in reversed(range(reward.shape[-2])):
        last = base[..., t, :] + slope[..., t, :] * last
        returns.append(last)
    return torch.stack(returns[::-1], -2)


def replay_lambda_return(
    reward: Tensor,
    bootstrap: Tensor,
    terminated: Tensor,
    last: Tensor,
    *,
    gamma: float,
    lmbda: float,
) -> Tensor:
    """λ-return along a window of records, arrival-aligned, that may cross episode borders.

    With ``b`` the bootstrap and ``λ_t`` equal to λ inside an episode and zero at its last record::

        G_{T-1} = b_{T-1}
        G_t = r_{t+1} + γ (1 - terminated_{t+1}) [(1 - λ_{t+1}) b_{t+1} + λ_{t+1} G_{t+1}]

    At a time limit the return ends with that record's bootstrap, at a true end with its reward.

    Args:
        reward: ``[*B, T, 1]`` float, received on arriving at each record.
        bootstrap: ``[*B, T, 1]`` float, estimated return of each record's state.
        terminated: ``[*B, T, 1]`` bool or float, true end of the episode.
        last: ``[*B, T, 1]`` bool or float, last record of the episode, whatever ended it.
        gamma: discount of one step.
        lmbda: λ of the mixture.

    Returns:
        ``[*B, T-1, 1]`` float, targets of all records but the window's last. What stands at the last
        record of an episode belongs to no transition and is not a target.

    Raises:
        SpecError: other shapes, fewer than two records, or a discount or λ out of range.

    >>> reward, flag = torch.ones(4, 1), torch.zeros(4, 1)
    >>> bootstrap = torch.full((4, 1), 8.0)
    >>> replay_lambda_return(reward, bootstrap, flag, flag, gamma=0.5, lmbda=1.0).squeeze(-1)
    tensor([2.7500, 3.5000, 5.0000])
    """
    where = "replay_lambda_return"
    check_equal(where, "[*B, T, 1]", reward=reward, bootstrap=bootstrap, terminated=terminated, last=last)
    check_factor(where, "gamma", gamma, ())
    check_factor(where, "lmbda", lmbda, ())
    if reward.shape[-2] < 2:
        raise SpecError(
            f"{where} got a window of {reward.shape[-2]} records: wanted 2 or more; lengthen the window"
        )
    live = gamma * (1 - terminated.to(reward.dtype))  # [*B, T, 1]
    mix = lmbda * (1 - last.to(reward.dtype))
    # G_t = base_{t+1} + slope_{t+1} G_{t+1}
    base = reward + live * (1 - mix) * bootstrap
    slope = live * mix
    following = bootstrap[..., -1, :]
    returns = []
    for t in reversed(range(1, reward.shape[-2])):
        following = base[..., t, :] + slope[..., t, :] * following
        returns.append(following)
    return torch.stack(returns[::-1], -2)


def discount_sum(steps: Tensor, gamma: float | Tensor) -> Tensor:
    """Sum of discounts over the steps inside a transition: ``Γ(Δ) = Σ_{k=0}^{max(Δ-2, 0)} γ^k``.

    LS-Imagine predicts the *mean* reward inside a jump; this turns it into the sum
    (released code; the arrival reward is counted apart).

    Args:
        steps: any shape, Δ in environment steps.
        gamma: discount of one step, below one.

    Returns:
        Same shape, float.

    Raises:
        SpecError: a discount out of range, or of a shape that would widen the result.

    >>> discount_sum(torch.tensor([1.0, 2.0, 4.0]), 0.5)
    tensor([1.0000, 1.0000, 1.7500])
    """
    check_factor("discount_sum", "gamma", gamma, steps.shape, open_end=True)
    return (1.0 - gamma ** (steps - 1).clamp(min=1)) / (1.0 - gamma)
