"""The whole loop learns: model, imagination, actor and critic on a task with a known answer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torchrl.data import Composite, OneHot, Unbounded

import wmkit
from wmkit.dynamics import Latent, rollout
from wmkit.envs.counting import CountingEnv


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
        + [f"learning_rate.{k}={v}" for k, v in rates.items()]
        + ["controller.horizon=5", "preset=paper"],
    )
    for _ in range(400):
        system.update(records(16, 8)[0])
    batch, side = records(64, 8)
    with torch.no_grad():
        feature = system.world_model.observe(system.fill(batch)).latent.feature
        right = system.actor.policy(feature).probs.gather(-1, side.unsqueeze(-1))
    assert right.mean() > 0.9


LENGTH = 5  # steps of a counting episode


def counted(batch: int, length: int) -> TensorDict:
    """Windows of the counting world, each from a random moment on."""
    moment = torch.arange(length) + torch.randint(0, LENGTH + 1, (batch, 1))
    t = (moment % (LENGTH + 1)).unsqueeze(-1)  # [B, T, 1]
    number, end = t.float(), t == LENGTH
    action = F.one_hot(torch.randint(0, 3, (batch, length)), 3) * (t > 0)
    columns = {"observation": number, "previous_action": action.float(), "reward": number, "is_init": t == 0}
    return TensorDict({**columns, "terminated": end, "done": end}, [batch, length])


@pytest.mark.slow
def test_storm_learns_to_count() -> None:
    """From the first observation alone, its model expects 1, 2, ... and an end after the last."""
    torch.manual_seed(0)
    sizes = {"deter": 32, "groups": 4, "classes": 8, "hidden": 32, "units": 16, "layers": 1}
    env = CountingEnv(length=LENGTH)
    overrides = ["batch.size=16", "batch.length=13", "controller.horizon=1", "learning_rate.world_model=3e-3"]
    overrides += [
        "preset=paper",
        "controller.starts.count=4",
        "controller.starts.context=1",
        "backbone.heads=2",
    ]
    system = wmkit.build(
        "storm",
        observation_spec=env.observation_spec,
        action_spec=env.action_spec,
        overrides=[*overrides, *(f"size.{name}={value}" for name, value in sizes.items())],
    )
    for _ in range(300):
        system.update(counted(16, 13))
    model, rows = system.world_model, 32
    with torch.no_grad(), model.evaluating():
        seen = model.dynamics.represent(model.encoder.encode({"observation": torch.zeros(rows, 1)}))
        start = Latent(seen.state, torch.zeros(rows, model.dynamics.belief_dim), None, seen.classes)
        after = rollout(model, start, F.one_hot(torch.randint(0, 3, (rows, LENGTH)), 3).float(), LENGTH).after
        rewards, goes_on = model.predict("reward", after).mean.squeeze(-1), model.continuation(after) > 0
    error = (rewards - torch.arange(1.0, LENGTH + 1).unsqueeze(-1)).abs()  # [T, rows]
    assert error.median() < 0.25 and error.mean() < 0.5
    assert goes_on[:-1].float().mean() > 0.9 and goes_on[-1].float().mean() < 0.1
