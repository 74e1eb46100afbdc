"""TWM's dreams: against full passes, losses of behaviour by hand, restarts, starts, arithmetic."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from support.tokens import known, record
from support.twm import build, outcome, paper
from wmkit.control import PairStarts
from wmkit.dynamics import Latent, Restart, Rollout, Steps, rollout, to_record
from wmkit.errors import ConfigError, SpecError
from wmkit.objectives import Scene


@pytest.mark.parametrize("windows", ["[52,52,51]", "[10,10,9]"])
def test_a_dream_is_what_full_passes_say(windows: str) -> None:
    """Beliefs, rewards, discounts and restarts of a dream, again without memory from the dreamt tokens.

    The smaller windows are full after three steps.
    """
    system = build(f"backbone.window={windows}")
    model, dynamics = system.world_model.train(), system.world_model.dynamics
    pool, horizon = known(dynamics, 3, 1).map(lambda x: x[:, 0]), 9
    init = torch.zeros(5, 3, dtype=torch.bool)
    init[0, -1] = True
    before, told = known(dynamics, 5, 3), record(dynamics, 5, 3, init)
    with torch.no_grad():
        model.heads["continuation"].trunk[-1].bias.fill_(0.5)  # discounts small enough to restart
        with model.evaluating():
            start = dynamics.remember(before, told)
    found = rollout(model, start, system.actor, horizon, hooks=[Restart(0.3).of(pool)])
    assert model.training and found.restarts.any() and not found.restarts.all()
    model.eval()
    over, dreamt = found.restarts[..., 0], found.before.map(lambda x: x.transpose(0, 1))
    transitions = system.controller.outcome(model, found)
    with torch.no_grad():
        rewards, discounts = (x.squeeze(-1) for x in outcome(model, found.after))  # [H, N]
        walk = Steps(
            torch.cat([before.state[:, :-1], dreamt.state], 1),
            torch.cat([before.classes[:, :-1], dreamt.classes], 1),
            torch.cat([told["previous_action"][:, 1:], found.actions.transpose(0, 1)], 1),
            torch.cat([torch.tanh(told["reward"]), rewards[:-1].T.unsqueeze(-1)], 1),
            torch.cat([init, over[:-1].T], 1),
        )
        belief, _ = dynamics.advance(walk, None)
    torch.testing.assert_close(found.latent.belief.transpose(0, 1), belief[:, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(transitions["next", "reward"][..., 0], rewards.T)
    torch.testing.assert_close(transitions["next", "continuation"][..., 0], discounts.masked_fill(over, 0).T)
    for row in range(5):
        product = 1.0
        for t in range(horizon):
            product *= discounts[t, row].item()
            assert bool(over[t, row]) == (product < 0.3)
            if product < 0.3:
                product = 1.0
                assert (found.latent.classes[t + 1, row] == pool.classes).all(-1).any()


def test_losses_of_behaviour_by_hand() -> None:
    """Generalised advantages in a plain loop; what is scored is weighted, what restarts is cut."""
    system = build(
        "controller.hooks.restart.threshold=0.5", "controller.entropy=0.01", "controller.horizon=6"
    )
    model, controller, scene = system.world_model, system.controller, system.scene(system.example_batch())
    with torch.no_grad():
        model.heads["continuation"].trunk[-1].bias.fill_(0.5)
        system.actor.out.weight.mul_(300)  # nearly certain, so that the hinge speaks
    scene.batch["terminated"][:, 2:6] = True  # where nothing starts
    scene.observed  # noqa: B018 (drawn once)
    torch.manual_seed(2)
    out = controller.learn(scene)
    torch.manual_seed(2)
    start = controller.starts(scene)
    found = controller.dream(model, start)
    model.eval()
    over, mask = found.restarts[..., 0], start.mask[:, 0]
    assert over.any() and not mask.all()
    with torch.no_grad():
        value = system.critic.predict(found.latent.state).mean.squeeze(-1)  # [7, N]
        reward, discount = (x.squeeze(-1) for x in outcome(model, found.after))
    advantage, weight = torch.zeros_like(reward), torch.ones_like(reward)
    for n in range(len(mask)):
        later, product = 0.0, 1.0
        for t in reversed(range(6)):
            goes_on = 0.0 if over[t, n] else discount[t, n].item()
            later = reward[t, n] + goes_on * value[t + 1, n] - value[t, n] + 0.95 * goes_on * later
            advantage[t, n] = later
        for t in range(6):
            weight[t, n] = product
            product = 1.0 if over[t, n] else product * discount[t, n].item()
    weight, count = weight * mask, mask.sum() * 6
    target, states = advantage + value[:-1], found.before.state
    online, policy = system.critic.predict(states).mean.squeeze(-1), system.actor.policy(states)
    critic = (weight * (0.5 * (online - target) ** 2 + 0.5 * math.log(2 * math.pi))).sum() / count
    entropy = (weight * policy.entropy).sum() / count / math.log(5)
    actor = -(weight * policy.log_prob(found.actions) * advantage).sum() / count
    actor = actor + 0.01 * torch.relu(0.1 - entropy)
    assert 1e-6 < entropy < 0.1
    torch.testing.assert_close(out.terms["critic"].loss, critic)
    torch.testing.assert_close(out.terms["actor"].loss, actor)


def test_restarts_from_all_records() -> None:
    """States drawn beside the batch, encoded anew with their older frames, are what dreams go on from."""
    system = build(
        "controller.starts.restart_states=40", "controller.horizon=6", "observations.frames.count=4"
    )
    assert system.dream_windows == (40, 4) and build().dream_windows is None
    assert paper("preset=full").dream_windows == (64, 4)
    model = system.world_model
    with torch.no_grad():
        model.dynamics.posterior[-1].weight.mul_(1e4)  # a sample is the likeliest
        model.heads["continuation"].trunk[-1].weight.zero_()
        model.heads["continuation"].trunk[-1].bias.fill_(-3)  # every step restarts
    batch, dreams = system.example_batches()
    last = {key: value[:, -1] for key, value in system.fill(dreams).items()}
    assert last["pixels"].shape == (40, 4, 64, 64) and not last["pixels"][0, 0].equal(last["pixels"][0, 3])
    dream, found = system.controller.dream, []

    def watched(*args: Any, **options: Any) -> Rollout:
        pool = model.dynamics.posterior_logits(model.encoder.encode(last)).argmax(-1)  # as the model is now
        found.append((dream(*args, **options), pool))
        return found[-1][0]

    system.controller.dream = watched
    system.update(batch, dreams)
    ((dreamt, pool),) = found
    assert dreamt.restarts.all()
    went_on = {*map(tuple, dreamt.after.classes.flatten(0, 1).tolist())}
    assert went_on <= {*map(tuple, pool.tolist())} and len(went_on) > 4
    with pytest.raises(SpecError, match=r"windows for dreams are None: wanted \(40, 4\)"):
        system.update(batch)
    with pytest.raises(ConfigError, match=r"restart_states is -1"):
        build("controller.starts.restart_states=-1")


def test_starts_are_pairs_without_repetition_and_not_at_ends() -> None:
    number = torch.arange(4 * 8.0).view(4, 8, 1)
    ended = torch.zeros(4, 8, 1, dtype=torch.bool)
    ended[:, 3] = True
    batch = {"previous_action": torch.zeros(4, 8, 5), "reward": torch.zeros(4, 8, 1)}
    batch |= {"is_init": torch.zeros_like(ended), "terminated": ended}
    given: list[tuple] = []

    def remember(latent: Latent, told: dict) -> Latent:
        given.append((latent.state[..., 0], told["reward"].shape))
        return latent.map(lambda x: x[:, -1])

    model = SimpleNamespace(
        dynamics=SimpleNamespace(remember=remember),
        record=lambda batch: to_record(batch, ["reward"]),
        evaluating=nullcontext,
    )
    scene = Scene(model, batch, observed=SimpleNamespace(latent=Latent(number, number)))
    start = PairStarts(20)(scene)
    pairs, shape = given.pop()
    assert shape == (20, 2, 1) and torch.equal(pairs[:, 1], pairs[:, 0] + 1)
    last = start.latent.state[:, 0].tolist()
    assert start.mask.all() and len(set(last)) == 20
    assert sorted(last) == [i for i in range(32) if i % 8 not in (0, 3, 7)]  # the last has nothing after it
    start = PairStarts(400)(scene)
    assert len(start.mask) == 24 and int(start.mask.sum()) == 20


def test_a_dream_costs_less_than_a_gigaflop_per_start() -> None:
    """0.9 GFLOP at most, where running the whole sequence again each step would cost several times that."""
    system, rows = paper(), 400
    model = system.world_model.requires_grad_(False)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        start = model.dynamics.remember(known(model.dynamics, rows, 2), record(model.dynamics, rows, 2))
        found = rollout(model, start, system.actor, 15, hooks=[Restart(0.1).of(start.light())])
    assert found.latent.state.shape == (16, rows, 1024)
    assert 0.6e9 < counter.get_total_flops() / rows < 0.9e9
