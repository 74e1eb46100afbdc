"""λ-returns over transitions of different durations, with TorchRL's own keys.

A reward of 1 waits 21 steps away. Walking there takes 21 transitions; one jump of 20 steps
and one step take two. Both must be worth the same: the jump carries its duration in
``steps_to_next_obs`` and what it earned on the way in ``jump_return``.

    python examples/jumpy_return.py
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torchrl.objectives.value import TDLambdaEstimator

from wmkit.objectives import LambdaReturnJumpy

GAMMA, LAMBDA = 0.97, 0.95


def transitions(rewards: list[float], spans: list[int]) -> TensorDict:
    """One roll-out ``[1, T]`` whose values are all zero and whose end is terminal."""
    reward = torch.tensor(rewards).view(1, -1, 1)
    last = torch.zeros_like(reward, dtype=torch.bool)
    last[:, -1] = True
    following = {
        "reward": reward,
        "state_value": torch.zeros_like(reward),
        "steps_to_next_obs": torch.tensor(spans).view(1, -1, 1).float(),
        "jump_return": torch.zeros_like(reward),  # nothing was earned inside the jump
        "done": last,
        "terminated": last,
    }
    return TensorDict({"state_value": torch.zeros_like(reward), "next": following}, [1, len(rewards)])


def main() -> None:
    """Compare a walk with a jump, and the estimator with TorchRL's."""
    walk = transitions([0.0] * 20 + [1.0], [1] * 21)
    jump = transitions([0.0, 1.0], [20, 1])
    exact = LambdaReturnJumpy(gamma=GAMMA, lmbda=1.0)
    print(f"walking, 21 transitions: {exact.value_estimate(walk)[0, 0].item():.4f}")
    print(f"jumping,  2 transitions: {exact.value_estimate(jump)[0, 0].item():.4f}")
    print(f"gamma ** 20            : {GAMMA**20:.4f}")

    # Values that are wrong everywhere (zero) hurt a long path more than a short one.
    mixed = LambdaReturnJumpy(gamma=GAMMA, lmbda=LAMBDA)
    print(f"walking, lambda = {LAMBDA} : {mixed.value_estimate(walk)[0, 0].item():.4f}")
    print(f"jumping, lambda = {LAMBDA} : {mixed.value_estimate(jump)[0, 0].item():.4f}")

    # Without jumps it is TorchRL's own TD(lambda).
    torchrl = TDLambdaEstimator(gamma=GAMMA, lmbda=LAMBDA, value_network=None)
    plain = walk.exclude(("next", "steps_to_next_obs"), ("next", "jump_return"))
    difference = (mixed.value_estimate(plain) - torchrl.value_estimate(plain)).abs().max()
    print(f"difference from TorchRL's TD(lambda) on the walk: {difference.item():.1e}")


if __name__ == "__main__":
    main()
