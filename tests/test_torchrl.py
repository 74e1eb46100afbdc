"""wmkit's encoder, dynamics and heads inside TorchRL's own world model and environment."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import GymEnv
from torchrl.envs.model_based import WorldModelEnv
from torchrl.modules import WorldModel

from wmkit import backbones
from wmkit.codecs import Encoder
from wmkit.dynamics import RSSM, FilteredStep, ImaginedStep, LongShortRSSM
from wmkit.heads import ContinueHead, RewardHead

AFTER = [("next", "state"), ("next", "belief")]


def parts(name: str, long_short: bool):
    encoder = Encoder({"observation": (3,)}, images=[], vectors=["observation"], depth=4, units=8, layers=1)
    rssm = partial(RSSM, backbone=partial(backbones.build, name), deter=16, groups=4, classes=4, hidden=8)
    make = partial(LongShortRSSM, dynamics=rssm) if long_short else rssm
    dynamics = make(action_dim=1, embed_dim=encoder.out_dim)
    width = dynamics.state_dim + dynamics.belief_dim
    reward = RewardHead(width, units=8, layers=1, outscale=1.0, in_keys=AFTER, out_keys=[("next", "reward")])
    ends = ContinueHead(width, units=8, layers=1, in_keys=AFTER, out_keys=[("next", "going_on")])
    return encoder, dynamics, reward, ends


@pytest.mark.parametrize("long_short", [False, True])
@pytest.mark.parametrize("name", ["gru", "transformer_xl"])
def test_parts_run_in_the_world_model_of_torchrl(name: str, long_short: bool) -> None:
    encoder, dynamics, reward, ends = parts(name, long_short)
    see = TensorDictSequential(encoder, FilteredStep(dynamics))
    model = WorldModel(see, ImaginedStep(dynamics), TensorDictSequential(reward, ends))
    before = dynamics.pack(dynamics.initial(5))
    seen = {
        "observation": torch.randn(5, 3),
        "previous_action": torch.zeros(5, 1),
        "action": torch.randn(5, 1),
    }
    whole = TensorDict({**seen, **before, "is_init": torch.ones(5, 1, dtype=torch.bool)}, [5])
    torch.manual_seed(0)
    out = model(whole)
    torch.manual_seed(0)
    record = {"previous_action": seen["previous_action"], "is_init": torch.ones(5, dtype=torch.bool)}
    latent = dynamics.filter(dynamics.initial(5), encoder.encode(seen), record)
    after = dynamics.step(latent, seen["action"])
    torch.testing.assert_close(out["next", "belief"], after.belief)
    torch.testing.assert_close(out["next", "reward"], reward.predict(after.feature).mean)


@pytest.mark.filterwarnings("ignore")
def test_parts_run_in_the_environment_of_torchrl() -> None:
    encoder, dynamics, reward, _ = parts("gru", False)
    model = WorldModel(encoder, ImaginedStep(dynamics), reward)
    shapes = dynamics.dream_shapes
    shown = Composite({key: Unbounded((4, *shape)) for key, shape in shapes.items()}, shape=[4])
    env = WorldModelEnv(
        model, GymEnv("Pendulum-v1"), observation_spec=shown, batch_size=[4], latent_key="state"
    )
    # What TorchRL itself expands here is one dimension short.
    env.action_spec, env.reward_spec = Bounded(-2.0, 2.0, (4, 1)), Unbounded((4, 1))
    start = TensorDict(dynamics.pack(dynamics.initial(4)), [4])
    played = env.rollout(6, auto_reset=False, tensordict=env.reset(start))
    assert played["next", "reward"].shape == (4, 6, 1)
    assert played["next", "belief"].std() > 0
