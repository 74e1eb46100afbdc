"""STORM acting: a memory of recent steps that is run anew, within an episode or across, and blind or not."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import ExplorationType, InitTracker, SerialEnv, TransformedEnv, set_exploration_type

from support.storm import build
from support.tokens import watch
from wmkit.dynamics import Steps
from wmkit.envs.counting import CountingEnv
from wmkit.errors import ConfigError
from wmkit.systems import System


def acted(system: System, *lengths: int, steps: int = 12) -> tuple[list[Tensor], TensorDict]:
    """Beliefs that the actor read along a roll-out of counting worlds with episodes of these lengths."""
    read = watch(system.actor, "policy")
    worlds = [partial(CountingEnv, length=length, pixels=True) for length in lengths]
    env = TransformedEnv(SerialEnv(len(worlds), worlds), InitTracker())
    env.append_transform(system.policy.make_tensordict_primer())
    torch.manual_seed(3)
    with set_exploration_type(ExplorationType.RANDOM):
        rollout = env.rollout(steps, system.policy, break_when_any_done=False)
    return [features.parts[1] for features in read], rollout


def remembered(system: System, memory: Tensor, action: Tensor) -> Tensor:
    """Beliefs ``[E, n, U]`` after the steps ``[E, n, N]`` of a policy's memory, run at once."""
    dynamics, classes = system.world_model.eval().dynamics, memory[..., :4].long()
    lead = classes.shape[:2]
    walk = Steps(
        dynamics.latent.one_hot(classes), classes, action.float(),
        torch.zeros(*lead, 1), torch.zeros(lead, dtype=torch.bool),
    )  # fmt: skip
    with torch.no_grad():
        return dynamics.advance(walk, None)[0]


def test_acting_remembers_the_episode_and_no_other() -> None:
    """The belief that the actor reads is that of the whole episode so far, run at once."""
    system = build(spec=CountingEnv(pixels=True).observation_spec, actions=3)
    read, rollout = acted(system, 7)
    memory = rollout["next", "recent_steps"][:, 6, -7:]  # after acting on t = 6: seven steps of one episode
    belief = remembered(system, memory, rollout["action"][:, :7])
    for t in range(1, 7):
        torch.testing.assert_close(read[t], belief[:, t - 1], atol=1e-5, rtol=0)
    assert rollout["is_init"].flatten().nonzero().flatten().tolist() == [0, 7]
    assert not read[0].any() and not read[7].any()


def test_released_acting_remembers_across_episodes() -> None:
    """``compat=released``: the belief is that of the last sixteen steps, whatever ended among them."""
    spec = CountingEnv(pixels=True).observation_spec
    system = build("compat=released", spec=spec, actions=3)
    read, rollout = acted(system, 7, 5, steps=24)
    assert rollout["is_init"].flatten(1).sum(1).tolist() == [4, 5]
    for t in range(1, 24):
        count = min(t, 16)
        memory = rollout["next", "recent_steps"][:, t - 1, -count:]
        belief = remembered(system, memory, rollout["action"][:, t - count : t])
        torch.testing.assert_close(read[t], belief[:, -1], atol=1e-5, rtol=0)
    assert not read[0].any()


def test_released_acting_is_blind_to_the_present_frame() -> None:
    """Another frame changes nothing with the same memory and chance, unless the posterior is read."""
    for acts_on, blind in (("expected", True), ("sample", False)):
        system = build(f"policy.acts_on={acts_on}", actions=5)
        system.world_model.dynamics.posterior[-1].weight.data.mul_(1000)  # frames that can be told apart
        torch.manual_seed(0)
        recent = torch.zeros(40, 16, 4 + 2 + 5)
        recent[:, 0, 5] = 1  # the first of them begins an episode
        root = {
            "is_init": torch.zeros(40, 1, dtype=torch.bool),
            "previous_action": F.one_hot(torch.arange(40) % 5, 5),
        }
        seen = watch(system.actor, "policy")
        for value in (0, 255):
            pixels = torch.full((40, 3, 64, 64), value, dtype=torch.uint8)
            torch.manual_seed(1)
            system.policy(TensorDict({**root, "pixels": pixels, "recent_steps": recent}, [40]))
        assert torch.equal(*(features.dense for features in seen)) == blind
    with pytest.raises(ConfigError, match="acts_on is 'nothing'"):
        build("policy.acts_on=nothing")
