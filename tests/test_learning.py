"""The whole loop learns: model, imagination, actor and critic on a task with a known answer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torchrl.data import Composite, OneHot, Unbounded

import wmkit


def records(batch: int, length: int) -> tuple[TensorDict, torch.Tensor]:
    """Random play of a task: act as the last observation said, and the next record pays one."""
    side, action = torch.randint(0, 2, (2, batch, length))
    before, acted = side.roll(1, 1), action.roll(1, 1)
    is_init = torch.zeros(batch, length, 1, dtype=torch.bool)
    is_init[:, 0] = True
    columns = {
        "observation": F.one_hot(side, 2).float() * 2 - 1,
        "previous_action": F.one_hot(acted, 2).float() * ~is_init,
        "reward": (acted == before).float().unsqueeze(-1) * ~is_init,
        "is_init": is_init,
        "terminated": torch.zeros_like(is_init),
        "done": torch.zeros_like(is_init),
    }
    return TensorDict(columns, [batch, length]), side


@pytest.mark.slow
def test_policy_learned_in_imagination_is_the_right_one() -> None:
    torch.manual_seed(0)
    sizes = {"deter": 32, "groups": 4, "classes": 4, "hidden": 32, "units": 32, "layers": 1}
    rates = {"world_model": 3e-3, "actor": 1e-3, "critic": 1e-3}
    system = wmkit.build(
        "dreamer_v3_2023",
        observation_spec=Composite(observation=Unbounded((2,))),
        action_spec=OneHot(2),
        overrides=[f"size.{k}={v}" for k, v in sizes.items()]
        + [f"schedule.{k}.lr={v}" for k, v in rates.items()]
        + ["behaviour.horizon=5"],
    )
    for _ in range(400):
        system.update(records(16, 8)[0])
    batch, side = records(64, 8)
    with torch.no_grad():
        feature = system.world_model.observe(system.fill(batch)).latent.feature
        right = system.actor(feature).probs.gather(-1, side.unsqueeze(-1))
    assert right.mean() > 0.9
