"""TransDreamer as a system: counts, prefixes, dreams, updates, acting; its own code is in tests/oracles."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torchrl.data import OneHot
from torchrl.envs import InitTracker, TransformedEnv

import wmkit
from support.tokens import cut, known, parameters, record
from support.transdreamer import GREY, build
from wmkit.control import PrefixStarts
from wmkit.envs.counting import CountingEnv
from wmkit.objectives import Scene
from wmkit.systems import System


def certain(system: System) -> System:
    """What is drawn is what is likeliest."""
    with torch.no_grad():
        for part in (system.world_model.dynamics.posterior, system.world_model.dynamics.prior):
            part[-1].weight.mul_(1e5)
    return system


def test_parameter_counts_and_published_numbers() -> None:
    with torch.device("meta"):
        system = wmkit.build("transdreamer", observation_spec=GREY, action_spec=OneHot(18))
    model, dynamics = system.world_model, system.world_model.dynamics
    parts = [model.encoder, dynamics.tokens, dynamics.backbone, dynamics.posterior, dynamics.prior]
    parts += [model.decoder, model.heads["reward"], model.heads["continuation"]]
    assert [parameters(part) for part in parts] == [
        *(1_549_776, 625_800, 14_769_744, 1_537_624, 2_776_024),
        *(15_105_553, 2_331_601, 2_331_601),
    ]
    counts = [parameters(part) for part in (model, system.actor, system.critic)]
    assert counts == [41_027_723, 2_338_418, 2_331_601]
    found = {}
    for name, learner in system.schedule.learners.items():
        (group,) = learner.optimizer.param_groups
        assert type(learner.optimizer) is torch.optim.AdamW and learner.clip == 100
        assert (group["eps"], group["weight_decay"], group["betas"]) == (1e-5, 1e-6, (0.9, 0.999))
        found[name] = group["lr"]
    assert found == {"world_model": 2e-4, "actor": 4e-5, "critic": 1e-4}
    assert system.batch_shape == (50, 50) and system.controller.horizon == 36


@pytest.mark.parametrize("length", [1, 3])
def test_a_start_does_not_depend_on_what_is_filled_in_before_it(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prefix is what its records alone say, also where the window begins in the middle of an episode."""
    system = certain(build())
    model, dynamics = system.world_model.eval(), system.world_model.dynamics
    latent, told = known(dynamics, 4, 8), record(dynamics, 4, 8)
    told["is_init"][0, 2] = True
    wanted = dynamics.remember(*(cut(x, 0, length + 1) for x in (latent, told)))
    flags = {"is_init": told["is_init"].unsqueeze(-1), "terminated": torch.rand(4, 8, 1) < 0.5}
    scene = Scene(model, told | flags, observed=SimpleNamespace(latent=latent))
    monkeypatch.setattr(torch, "randint", lambda *args, **options: torch.tensor([length]))
    action, noise = torch.eye(5)[:4], dynamics.noise(4)
    for most in (length, length + 1, 7, 13):
        start = PrefixStarts(1, most)(scene)
        assert start.mask.all() and start.continuation.bool().equal(~flags["terminated"][:, length])
        after = (dynamics.step(x, action, noise=noise) for x in (start.latent, wanted))
        for one, other in ((start.latent, wanted), after):
            torch.testing.assert_close(one.belief, other.belief, atol=1e-5, rtol=0)
            assert torch.equal(one.classes, other.classes)


def test_prefixes_are_of_every_length_and_one_for_all() -> None:
    system, lengths = build(), set()
    scene = system.scene(system.example_batch())
    number = torch.arange(8.0).expand(3, -1).unsqueeze(-1)
    scene._observed = scene.observed._replace(latent=scene.observed.latent._replace(belief=number))
    system.world_model.dynamics.remember = lambda latent, told: latent.map(lambda x: x[:, -1])
    for _ in range(60):
        lengths.add(tuple(system.controller.starts(scene).latent.belief.flatten().tolist()))
    assert lengths == {(length,) * 3 for length in (1, 2, 3, 4)}


def test_dreams_begin_with_what_is_expected_after_the_prefix() -> None:
    system = certain(build())
    model, scene = system.world_model, system.scene(system.example_batch())
    start = system.controller.starts(scene)
    found = system.controller.dream(model, start)
    expected = model.dynamics.prior_logits(start.latent.belief).argmax(-1)
    assert found.latent.classes[0].equal(expected) and found.latent.belief[0].equal(start.latent.belief)
    assert not torch.equal(expected, start.latent.classes)


def test_updates_learn_and_resume() -> None:
    system, metrics = build("learning_rate.world_model=0.003"), []
    batch, slow = system.example_batch(), [p.clone() for p in system.schedule.slow["critic"].parameters()]
    for _ in range(6):
        torch.manual_seed(0)
        metrics.append(system.update(batch))
        assert all(bool(x.isfinite().all()) for x in metrics[-1].values())
    assert metrics[-1]["loss_world_model"] < metrics[0]["loss_world_model"]
    assert all(p.grad.abs().sum() > 0 for p in system.world_model.parameters())
    assert not all(map(torch.equal, slow, system.schedule.slow["critic"].parameters()))  # copied at the first
    other = build("learning_rate.world_model=0.003", "seed=1")
    other.load_state_dict(copy.deepcopy(system.state_dict()))
    for one in (system, other):
        torch.manual_seed(1)
        one.update(batch)
    assert all(map(torch.equal, system.parameters(), other.parameters()))


def test_acting_runs_over_episodes() -> None:
    system = build(spec=CountingEnv(pixels=True).observation_spec, actions=3)
    env = TransformedEnv(CountingEnv(pixels=True), InitTracker())
    env.append_transform(system.policy.make_tensordict_primer())
    found = env.rollout(9, system.policy, break_when_any_done=False)
    assert found["action"].sum(-1).eq(1).all() and found["recent_steps"].shape == (9, 50, 4 + 2 + 3)
