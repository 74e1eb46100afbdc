"""A roll-out as TorchRL lays transitions out, root and ``next``, for any value estimator."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from wmkit.dynamics import Trajectory


def as_transitions(
    trajectory: Trajectory,
    reward: Tensor,
    *,
    steps: Tensor | None = None,
    jump_return: Tensor | None = None,
) -> TensorDict:
    """Transitions ``[S, H]`` of a roll-out.

    Root: ``state``, ``belief``, ``action``, ``jump``, ``continuation``, ``steps_to_next_obs``. Under
    ``next``: ``state``, ``belief``, ``reward``, ``continuation``, ``steps_to_next_obs``, ``jump_return``,
    ``done``, ``terminated``.

    Args:
        trajectory: ``H`` transitions from each of ``S`` states.
        reward: ``[S, H, 1]`` predicted on arriving at the end of each.
        steps: ``[S, H, 1]`` duration of each, environment steps; one if not given.
        jump_return: ``[S, H, 1]`` discounted reward inside each; zero if not given.
    """
    steps = torch.ones_like(reward) if steps is None else steps
    never = torch.zeros_like(trajectory.jumps)
    return TensorDict(
        {
            "state": trajectory.states[:, :-1],
            "belief": trajectory.beliefs[:, :-1],
            "action": trajectory.actions,
            "jump": trajectory.jumps,
            "continuation": trajectory.continuations[:, :-1],
            "steps_to_next_obs": steps,  # TorchRL's own estimators look for it here
            "next": {
                "state": trajectory.states[:, 1:],
                "belief": trajectory.beliefs[:, 1:],
                "reward": reward,
                "continuation": trajectory.continuations[:, 1:],
                "steps_to_next_obs": steps,
                "jump_return": torch.zeros_like(reward) if jump_return is None else jump_return,
                "done": never,
                "terminated": never,
            },
        },
        batch_size=list(reward.shape[:2]),
    )
