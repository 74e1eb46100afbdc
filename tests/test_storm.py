"""STORM as a system: counts, cache, episodes that are not kept apart, losses and updates by hand, acting."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchrl.data import OneHot
from torchrl.envs import ExplorationType, InitTracker, SerialEnv, TransformedEnv, set_exploration_type
from wmkit.objectives.token_latents import Spans

import wmkit
from support.storm import ATARI, build
from support.tokens import cut, make_start, parameters, steps
from support.twm import build as build_twm
from wmkit.data import VisitBalanced
from wmkit.dynamics import DreamStart, Steps, dream
from wmkit.envs.counting import CountingEnv
from wmkit.errors import ConfigError, SpecError
from wmkit.functional import categorical_kl, unimix_probs
from wmkit.nn import Feature
from wmkit.objectives import KLBalance, LambdaReturnJumpy, MeanFreeBits, OwnValueReturn
from wmkit.systems import System, compose
from wmkit.training.memory import ReplayMemory


def paper() -> System:
    with torch.device("meta"):
        overrides = ["size=paper", "preset=full"]
        return wmkit.build("storm", observation_spec=ATARI, action_spec=OneHot(18), overrides=overrides)


def test_parameter_counts_of_every_part() -> None:
    system = paper()
    model, dynamics = system.world_model, system.world_model.dynamics
    assert [parameters(part) for part in (model, system.actor, system.critic)] == [
        16_513_155,
        1_059_858,
        1_181_439,
    ]
    parts = [
        (model.encoder,),
        (dynamics.posterior, dynamics.prior),
        (model.decoder,),
        (dynamics.tokens, dynamics.backbone),
        (model.heads["reward"],),
        (model.heads["continuation"],),
    ]
    assert [parameters(*part) for part in parts] == [
        690_624,
        4_720_640,
        4_884_931,
        5_032_960,
        657_151,
        526_849,
    ]
    assert system.batch_shape == (16, 65)


def test_published_numbers() -> None:
    system, page = paper(), compose("storm", ["preset=full"])
    found = {}
    for name, learner in system.schedule.learners.items():
        (group,) = learner.optimizer.param_groups
        assert type(learner.optimizer) is torch.optim.Adam and group["weight_decay"] == 0
        found[name] = group["lr"], group["eps"], learner.clip, group["betas"]
    betas = (0.9, 0.999)
    assert found == {"world_model": (1e-4, 1e-8, 1000, betas), "agent": (3e-5, 1e-5, 100, betas)}
    loss, behaviour = system.world_model_loss, system.behaviour
    assert loss.weights == {
        **dict.fromkeys(("pixels", "reward", "continuation"), 1.0),
        **{"kl_dynamics": 0.5, "kl_representation": 0.1},
    }
    assert loss.latents.free_nats == 1
    assert loss.latents.unimix == system.world_model.dynamics.unimix == 0.01
    assert (behaviour.horizon, behaviour.entropy, behaviour.prior_start) == (16, 3e-4, True)
    assert system.dream_windows == (1024, 8 + 1) and system.actor.unimix == 0
    assert (page.discount, page.behaviour.estimator.lmbda) == (0.985, 0.95)
    norm = behaviour.return_norm
    assert (norm.rate, norm.quantiles, norm.min_scale) == (0.01, (0.05, 0.95), 1.0)
    assert system.schedule.slow_fraction == 0.02


def test_the_sequence_model_begins_as_the_original_does() -> None:
    """Positions of unit variance; nothing dropped inside the dense layers, a tenth everywhere else."""
    backbone = build().world_model.dynamics.backbone
    assert 0.9 < backbone.positions.weight.std() < 1.1
    for layer in backbone.layers:
        assert (layer.dropout.p, layer.attention.dropout, layer.feed_forward.dropout.p) == (0.1, 0.1, 0.0)


def test_a_cached_walk_is_the_full_pass() -> None:
    dynamics = build().world_model.eval().dynamics
    walk = steps(dynamics, 4, 20, torch.rand(4, 20) < 0.2)
    full, _ = dynamics.advance(walk, None)
    carry, beliefs, loop = None, [], dynamics.loop()
    for t in range(20):
        belief, carry = dynamics.advance(cut(walk, t, t + 1), carry, loop)
        beliefs.append(belief)
    torch.testing.assert_close(torch.cat(beliefs, 1), full, atol=1e-5, rtol=0)


@pytest.mark.parametrize("separate", [False, True])
def test_attention_crosses_episodes_unless_told_not_to(separate: bool) -> None:
    dynamics = build(f"world_model.dynamics.separate_episodes={separate}").world_model.eval().dynamics
    init = torch.zeros(1, 8, dtype=torch.bool)
    init[0, 4] = True
    walk = steps(dynamics, 1, 8, init)
    classes = walk.state.classes.clone()
    classes[:, 2] = (classes[:, 2] + 1) % 4
    state = dynamics.one_hot(classes)
    base, _ = dynamics.advance(walk, None)
    other, _ = dynamics.advance(Steps(Feature(state, state[..., :0], classes), *walk[1:]), None)
    changed = (base != other).any(-1)[0].tolist()
    assert changed == [False, False, True, True] + [not separate] * 4


def test_a_dream_from_what_is_expected_is_what_full_passes_say() -> None:
    """Everything a dream returns, again without memory; draws are made certain, so that they are known."""
    system = build()
    model, dynamics, horizon = system.world_model, system.world_model.dynamics, 9
    dynamics.unimix = 0.0
    with torch.no_grad():
        dynamics.prior[-1].weight.mul_(1000)
        model.heads["continuation"].trunk[-1].weight.mul_(50)
    start = make_start(system, context=3)
    torch.manual_seed(1)
    dreamt = dream(model, system.actor, start, horizon, prior_start=True, learn=True)
    torch.manual_seed(1)
    seen = dream(model, system.actor, start, horizon)
    assert model.training and not dreamt.restarts.any()
    model.eval()
    classes = torch.cat([start.classes[:, :-1], dreamt.classes[:, :-1]], 1)
    state = dynamics.one_hot(classes)
    walk = Steps(
        Feature(state, state[..., :0], classes),
        torch.cat([start.action, dreamt.actions], 1),
        torch.zeros(5, 3 + horizon, 1),
        torch.zeros(5, 3 + horizon, dtype=torch.bool),
    )
    with torch.no_grad():
        belief = dynamics.advance(walk, None)[0][:, 2:]  # after the context, and after every step
        reward, _ = model.outcome(belief[:, 1:])
        goes_on = model.heads["continuation"](belief[:, 1:]).logits > 0
        expected = dynamics.prior_logits(belief).argmax(-1)
    assert torch.equal(dreamt.classes, expected)  # the first state too, whatever was there
    assert not torch.equal(expected[:, 0], start.classes[:, -1])
    assert torch.equal(seen.classes[:, 0], start.classes[:, -1])
    assert torch.equal(seen.beliefs[:, 0], dreamt.beliefs[:, 0])
    torch.testing.assert_close(dreamt.beliefs, belief, atol=1e-5, rtol=0)
    torch.testing.assert_close(dreamt.rewards, reward, atol=1e-4, rtol=1e-4)
    assert goes_on.any() and not goes_on.all() and torch.equal(dreamt.discounts, 0.985 * goes_on)
    policy = system.actor.out(system.actor.trunk(torch.cat([dreamt.states, dreamt.beliefs], -1)[:, :-1]))
    torch.testing.assert_close(dreamt.log_probs, (policy.log_softmax(-1) * dreamt.actions).sum(-1))


def test_a_dream_costs_less_than_half_a_gigaflop_per_start() -> None:
    system, rows = paper(), 1024
    model = system.world_model.requires_grad_(False)
    start = DreamStart(
        torch.zeros(rows, 9, 32, dtype=torch.int64, device="meta"),
        torch.zeros(rows, 9, 1, device="meta"),
        torch.zeros(rows, 9, dtype=torch.bool, device="meta"),
        torch.zeros(rows, 8, 18, device="meta"),
        torch.ones(rows, dtype=torch.bool, device="meta"),
    )
    with FlopCounterMode(display=False) as counter:
        dreamt = dream(model, system.actor, start, 16, prior_start=True)
    assert dreamt.beliefs.shape == (rows, 17, 512)
    assert 0.1e9 < counter.get_total_flops() / rows < 0.4e9


def code(value: float) -> Tensor:
    """A number on 255 bins from -20 to 20 in symlog units."""
    place = (math.copysign(math.log1p(abs(value)), value) + 20) / 40 * 254
    hot, below = torch.zeros(255), min(int(place), 253)
    hot[below], hot[below + 1] = below + 1 - place, place - below
    return hot


def read(logits: Tensor) -> Tensor:
    """The number that such bins stand for."""
    x = logits.softmax(-1) @ torch.linspace(-20, 20, 255)
    return x.sign() * torch.expm1(x.abs())


def test_losses_of_the_world_model_by_hand() -> None:
    """Equation 4 in plain loops over one episode, and where its gradients go."""
    system = build()
    model = system.world_model.eval()
    batch = system.fill(system.example_batch())
    for key in ("is_init", "terminated", "done"):
        batch[key] = torch.zeros_like(batch[key])
    batch["terminated"][0, -1] = batch["done"][0, -1] = True
    with torch.no_grad():
        for part in (model.dynamics.posterior, model.dynamics.prior):
            part[-1].weight.mul_(10)  # beyond the free nats
    torch.manual_seed(1)
    out = system.world_model_loss(model, batch)
    torch.manual_seed(1)
    seen = model.observe(batch)
    q, p = (0.99 * x.softmax(-1) + 0.01 / 4 for x in (seen.posterior_logits, seen.prior_logits))
    decoded = model.decoder(seen.latent.state)["pixels"].mean
    reward = model.heads["reward"]
    rewards = reward.out(reward.trunk(seen.latent.belief)).log_softmax(-1)
    ends = model.heads["continuation"](seen.latent.belief).logits[..., 0]  # above zero where it goes on
    terms: dict[str, list[Tensor]] = {k: [] for k in ("image", "reward", "end", "dynamics", "representation")}
    for b, t in itertools.product(range(3), range(7)):
        terms["image"].append((decoded[b, t] - batch["pixels"][b, t]).square().sum())
        terms["reward"].append(-(code(batch["reward"][b, t + 1].item()) * rewards[b, t + 1]).sum())
        sign = -1 if batch["terminated"][b, t + 1] else 1
        terms["end"].append(torch.log1p(torch.exp(-sign * ends[b, t + 1])))
        x, y = q[b, t + 1], p[b, t + 1]
        terms["dynamics"].append((x.detach() * (x.detach() / y).log()).sum())
        terms["representation"].append((x * (x / y.detach()).log()).sum())
    mean = {name: torch.stack(values).mean() for name, values in terms.items()}
    assert mean["dynamics"] > 1
    wanted = (
        mean["image"] + mean["reward"] + mean["end"] + 0.5 * mean["dynamics"] + 0.1 * mean["representation"]
    )
    loss = out.representation + out.dynamics
    torch.testing.assert_close(loss, wanted)
    weights = list(model.parameters())
    for mine, theirs in zip(*(torch.autograd.grad(x, weights) for x in (loss, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wide", [False, True])
def test_losses_of_behaviour_by_hand(wide: bool) -> None:
    """Every number in a plain loop, every gradient from constants; returns in a narrow and a wide range."""
    system = build()
    model, actor, critic, behaviour = system.world_model, system.actor, system.critic, system.behaviour
    slow = copy.deepcopy(critic)
    with torch.no_grad():
        model.heads["continuation"].trunk[-1].weight.mul_(50)
        model.heads["reward"].out.weight.mul_(10 if wide else 1)
        actor.out.weight.mul_(10)  # far from uniform, where entropy has a gradient
        critic.out.weight.mul_(3)
        slow.out.weight.mul_(-3)
    batch = system.fill(system.example_batch())
    for key in ("is_init", "terminated", "done"):
        batch[key] = torch.zeros_like(batch[key])
    if wide:
        behaviour.return_norm.low.fill_(-3.0)
        behaviour.return_norm.high.fill_(5.0)
    else:
        batch["terminated"][0, 5] = batch["done"][0, 5] = True  # nothing starts there
    records = system.world_model_loss(model, batch).records
    torch.manual_seed(2)
    out = behaviour(model, actor, critic, records, slow)
    torch.manual_seed(2)
    start = behaviour.starts(
        records.classes, records.previous_action, records.reward, records.is_init, records.ended
    )
    dreamt = dream(model, actor, start, 4, prior_start=True)
    assert len(set(dreamt.discounts.flatten().tolist())) == 2 and start.mask.all() == wide

    feature = torch.cat([dreamt.states, dreamt.beliefs], -1)
    policy = actor.out(actor.trunk(feature[:, :-1])).log_softmax(-1)
    logits, slow_logits = (x.out(x.trunk(feature)) for x in (critic, slow))
    value, slow_value = read(logits.detach()), read(slow_logits.detach())  # [N, 5]

    def returns(value: Tensor) -> Tensor:
        found = torch.zeros(12, 4)
        for n in range(12):
            later = value[n, 4].item()
            for t in (3, 2, 1, 0):
                after = 0.05 * value[n, t + 1].item() + 0.95 * later
                later = dreamt.rewards[n, t].item() + dreamt.discounts[n, t].item() * after
                found[n, t] = later
        return found

    target, slow_target = returns(value), returns(slow_value)
    low, high = (-3.0, 5.0) if wide else (0.0, 0.0)
    share = np.percentile(target.numpy(), [5, 95])
    span = (0.99 * high + 0.01 * share[1]) - (0.99 * low + 0.01 * share[0])
    assert (span > 7) == wide and (span < 1) != wide
    gains, entropies, errors = [], [], []
    for n in range(12):
        for t in range(4):
            if start.mask[n]:
                advantage = (target[n, t] - value[n, t]).item() / max(1.0, span)
                gains.append(policy[n, t, dreamt.actions[n, t].argmax()] * advantage)
                entropies.append(-(policy[n, t].exp() * policy[n, t]).sum())
                codes = code(target[n, t].item()) + code(slow_target[n, t].item())
                errors.append(-(codes * logits[n, t].log_softmax(-1)).sum())
    actor_loss = -torch.stack(gains).mean() - 3e-4 * torch.stack(entropies).mean()
    critic_loss = torch.stack(errors).mean()
    assert behaviour.return_norm.scale().item() == pytest.approx(max(1.0, span), rel=1e-5)
    for mine, theirs, part in ((out.actor_loss, actor_loss, actor), (out.critic_loss, critic_loss, critic)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        others = [*slow.parameters(), *model.parameters(), *(critic if part is actor else actor).parameters()]
        grads = torch.autograd.grad(mine, others, retain_graph=True, allow_unused=True)
        assert all(grad is None for grad in grads)
        weights = list(part.parameters())
        for a, b in zip(*(torch.autograd.grad(x, weights) for x in (mine, theirs)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_free_bits_are_of_the_mean() -> None:
    """One position far off, many at zero: a mean below one nat teaches nothing; DreamerV3's terms do."""
    q = torch.zeros(1, 20, 1, 4)
    q[0, 3, 0, 0] = 4.0
    flag = torch.ones(1, 20, dtype=torch.bool)
    spans = Spans(slice(0, 19), slice(1, 20), flag, flag)
    losses = {}
    for kind in ("mean", "element"):
        p = torch.zeros(1, 20, 1, 4, requires_grad=True)
        if kind == "mean":
            loss = MeanFreeBits()(q, p, spans)[1]["kl_dynamics"].mean
        else:
            loss = KLBalance()(q, p)["kl_dynamics"].mean
        (losses[kind],) = torch.autograd.grad(loss, p)
    assert not losses["mean"].any() and losses["element"][0, 3].any()
    big = 3 * torch.randn(2, 5, 2, 4)
    spans = Spans(slice(0, 4), slice(1, 5), flag, flag)
    representation, dynamics = MeanFreeBits()(big, 0 * big, spans)
    kl = categorical_kl(*(unimix_probs(x[:, 1:], 0.01) for x in (big, 0 * big))).mean()
    assert kl > 1
    torch.testing.assert_close(dynamics["kl_dynamics"].mean, kl)
    torch.testing.assert_close(representation["kl_representation"].mean, kl)


def test_returns_released_and_corrected() -> None:
    torch.manual_seed(0)
    reward, discount, value = torch.randn(3, 7), torch.rand(3, 7), torch.randn(3, 8)
    after = {"reward": reward, "continuation": discount, "state_value": value[:, 1:]}
    transitions = TensorDict(
        {"state_value": value[:, :-1, None], "next": {k: v[..., None] for k, v in after.items()}}, [3, 7]
    )
    for estimator, shift in ((OwnValueReturn(0.95), 0), (LambdaReturnJumpy(gamma=1.0, lmbda=0.95), 1)):
        wanted, later = torch.zeros(3, 7), value[:, 7]
        for t in reversed(range(7)):
            later = reward[:, t] + discount[:, t] * (0.05 * value[:, t + shift] + 0.95 * later)
            wanted[:, t] = later
        torch.testing.assert_close(estimator.value_estimate(transitions).squeeze(-1), wanted)
    assert isinstance(build("compat=released").behaviour.estimator, OwnValueReturn)


def test_the_sequence_model_teaches_the_encoder() -> None:
    system = build()
    out = system.world_model_loss(system.world_model, system.fill(system.example_batch()))
    encoder = list(system.world_model.encoder.parameters())
    assert any(g.abs().sum() > 0 for g in torch.autograd.grad(out.dynamics, encoder))


def adam(
    weights: list[nn.Parameter], loss: Tensor, memory: list, *, lr: float, eps: float, clip: float
) -> float:
    """One step of Adam behind a clip of the whole gradient's norm; gives that norm."""
    grads = [grad.double() for grad in torch.autograd.grad(loss, weights)]
    norm = math.sqrt(sum(float(grad.square().sum()) for grad in grads))
    memory.append([grad * min(1.0, clip / norm) for grad in grads])
    count = len(memory)
    with torch.no_grad():
        for i, weight in enumerate(weights):
            known = [grads[i] for grads in memory]  # oldest first
            first = sum(0.1 * 0.9 ** (count - 1 - k) * grad for k, grad in enumerate(known))
            second = sum(0.001 * 0.999 ** (count - 1 - k) * grad.square() for k, grad in enumerate(known))
            first, second = first / (1 - 0.9**count), second / (1 - 0.999**count)
            weight -= lr * first / (second.sqrt() + eps)
    return norm


@pytest.mark.parametrize("own_windows", [False, True])
def test_two_updates_by_hand(own_windows: bool) -> None:
    """World model, then actor and critic as one in the dreams of the new model, then the slow critic."""
    overrides = [
        *("schedule.world_model.clip=1000", "schedule.world_model.eps=0.1", "learning_rate.world_model=0.05"),
        *("schedule.agent.clip=0.01", "schedule.agent.eps=0.001", "learning_rate.actor=0.01"),
        *["behaviour.starts._target_=wmkit.dynamics.SampledStarts"] * own_windows,
    ]
    system, other = build(*overrides), build(*overrides)
    batches = system.example_batches()
    batch, *dreams = (other.fill(x) for x in batches)
    model, slow, memories = other.world_model, copy.deepcopy(other.critic), ([], [])
    agent = [*other.actor.parameters(), *other.critic.parameters()]
    for update in range(2):
        torch.manual_seed(update)
        metrics = system.update(*batches)
        torch.manual_seed(update)
        learned = other.world_model_loss(model, batch)
        loss = learned.representation + learned.dynamics
        weights = list(model.parameters())
        norm = adam(weights, loss, memories[0], lr=0.05, eps=0.1, clip=1000)
        assert metrics["grad_norm_world_model"].item() == pytest.approx(norm, rel=1e-4) and norm > 1000
        records = other.world_model_loss.encoded(model, *dreams, blank=1) if dreams else learned.records
        behaved = other.behaviour(model, other.actor, other.critic, records, slow)
        loss = behaved.actor_loss + behaved.critic_loss
        norm = adam(agent, loss, memories[1], lr=0.01, eps=0.001, clip=0.01)
        assert metrics["grad_norm_agent"].item() == pytest.approx(norm, rel=1e-4) and norm > 0.01
        for mine, theirs in zip(slow.parameters(), other.critic.parameters(), strict=True):
            mine.data += 0.02 * (theirs.data - mine.data)
    theirs = [*model.parameters(), *agent, *slow.parameters()]
    parts = (system.world_model, system.actor, system.critic, system.schedule.slow_critic)
    for a, b in zip((p for part in parts for p in part.parameters()), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("make", [build, build_twm])
def test_images_are_learned_from_in_channels_last_memory(make: Callable[..., System]) -> None:
    """Between all convolutions of the autoencoder; what it takes and gives may lie as it likes."""
    system = make("size.depth=16")
    model, laid = system.world_model, []
    for codec in (model.encoder, model.decoder):
        convs = [m for m in codec.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        assert len(convs) == 4
        for conv in convs[:-1] if codec is model.decoder else convs:
            conv.register_forward_hook(lambda m, args, out: laid.append(out))
    system.update(system.example_batch())
    assert len(laid) == 7 and all(x.is_contiguous(memory_format=torch.channels_last) for x in laid)
    assert not any(x.is_contiguous() for x in laid)


def test_an_update_learns_resumes_and_draws_the_slow_critic() -> None:
    systems = [build(), build()]
    batch = systems[0].example_batch()
    slow = [p.clone() for p in systems[0].schedule.slow_critic.parameters()]
    for system in systems:
        torch.manual_seed(5)
        first = system.update(batch)
        for _ in range(4):
            last = system.update(batch)
        assert last["loss_world_model"] < first["loss_world_model"]
        assert all(torch.isfinite(v).all() for v in last.values())
    a, b = systems
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(slow, a.schedule.slow_critic.parameters(), strict=True))
    other = build("seed=3")
    other.load_state_dict(copy.deepcopy(a.state_dict()))
    for system in (a, other):
        torch.manual_seed(6)
        system.update(batch)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), other.parameters(), strict=True))


def test_dreams_have_windows_of_their_own_where_they_ask_for_them() -> None:
    own = "behaviour.starts._target_=wmkit.dynamics.SampledStarts"
    system = build(own)
    assert system.dream_windows == (12, 4) and build().dream_windows is None
    with torch.device("meta"):
        paper = ["size=paper", "preset=full"]
        published = wmkit.build("storm", observation_spec=ATARI, action_spec=OneHot(18), overrides=paper)
    assert published.dream_windows == (1024, 9)
    batch, dreams = system.example_batches()
    seen: list = []
    system.behaviour.register_forward_pre_hook(lambda module, args: seen.append(args[3]))
    norms = [buffer.clone() for buffer in system.world_model.buffers()]
    system.world_model_loss.encoded(system.world_model, system.fill(dreams))
    assert all(map(torch.equal, norms, system.world_model.buffers()))  # statistics stay as they were
    system.update(batch, dreams)
    (records,) = seen
    torch.testing.assert_close(records.previous_action, dreams["previous_action"].float())
    start = system.behaviour.starts(
        records.classes, records.previous_action, records.reward, records.is_init, records.ended
    )
    assert start.mask.all() and start.action.equal(records.previous_action[:, 1:])
    assert not records.states[:, -1].any()  # dreams begin at what is expected there
    looked: list = []
    hook = system.world_model.encoder.register_forward_pre_hook(lambda module, args: looked.append(args[0]))
    system.update(batch, dreams)
    hook.remove()
    assert [x["is_init"].shape[1] for x in looked] == [8, 3]
    seen_too = build(own, "behaviour.prior_start=false")
    seen_too.behaviour.register_forward_pre_hook(lambda module, args: seen.append(args[3]))
    seen_too.update(batch, dreams)
    assert seen[-1].states[:, -1].sum(-1).eq(seen[-1].classes.shape[-1]).all()

    for wrong, found, wanted in (
        ((batch,), "None", r"\(12, 4\)"),
        ((batch, batch), r"\(3, 8\)", r"\(12, 4\)"),
    ):
        with pytest.raises(SpecError, match=f"windows for dreams are {found}: wanted {wanted}"):
            system.update(*wrong)
    with pytest.raises(SpecError, match=r"are \(12, 4\): wanted None"):
        build().update(batch, dreams)
    with pytest.raises(ConfigError, match="SampledStarts"):
        wmkit.build("twm", observation_spec=ATARI, action_spec=OneHot(5), overrides=[own])


def test_replay_draws_windows_for_dreams_beside_its_sampler(tmp_path: Path) -> None:
    def drawn(dream_windows: tuple[int, int] | None) -> tuple[torch.Tensor, tuple]:
        memory = ReplayMemory(
            tmp_path / str(dream_windows), num_envs=2, batch_shape=(3, 4), dream_windows=dream_windows,
            options={"sampler": VisitBalanced()},
        )  # fmt: skip
        env = TransformedEnv(SerialEnv(2, lambda: CountingEnv(pixels=True)), InitTracker())
        memory.write(env.rollout(20, break_when_any_done=False))
        batch, dreams = memory.sample()["index"].clone(), memory.sample_dreams()
        visits = memory.streams.sampler.state_dict()["visits"].sum()
        assert visits == 3  # of the batch's windows alone
        return batch, dreams

    with_dreams, (dreams,) = drawn((7, 5))
    without, nothing = drawn(None)
    assert with_dreams.equal(without) and nothing == ()
    assert dreams.shape == (7, 5) and dreams["is_init"][:, 0].all()
    assert (dreams["index"][:, 1:] - dreams["index"][:, :-1] == 2).all()


def acted(system: System, *lengths: int, steps: int = 12) -> tuple[list[Feature], TensorDict]:
    """What the actor read along a roll-out of counting worlds with episodes of these lengths."""
    read: list[Feature] = []
    hook = system.actor.register_forward_pre_hook(lambda m, args: read.append(args[0]))
    worlds = [partial(CountingEnv, length=length, pixels=True) for length in lengths]
    env = TransformedEnv(SerialEnv(len(worlds), worlds), InitTracker())
    env.append_transform(system.policy.make_tensordict_primer())
    torch.manual_seed(3)
    with set_exploration_type(ExplorationType.RANDOM):
        rollout = env.rollout(steps, system.policy, break_when_any_done=False)
    hook.remove()
    return read, rollout


def test_acting_remembers_the_episode_and_no_other() -> None:
    """The belief that the actor reads is that of the whole episode so far, run at once."""
    system = build(spec=CountingEnv(pixels=True).observation_spec, actions=3)
    read, rollout = acted(system, 7)
    rollout = rollout[0]
    dynamics = system.world_model.eval().dynamics
    memory = rollout["next", "recent_steps"][6]  # after acting on t = 6: seven steps of one episode
    classes = memory[:, :4].long()
    state = dynamics.one_hot(classes)
    action = torch.cat([rollout["action"][:6].float(), torch.zeros(1, 3)])
    episode = Feature(state[None, -7:], state[None, -7:, :0], classes[None, -7:])
    known = Steps(episode, action[None], torch.zeros(1, 7, 1), torch.zeros(1, 7, dtype=torch.bool))
    with torch.no_grad():
        belief, _ = dynamics.advance(known, None)
    for t in range(1, 7):
        torch.testing.assert_close(read[t].belief[0], belief[0, t - 1], atol=1e-5, rtol=0)
    assert rollout["is_init"].flatten().nonzero().flatten().tolist() == [0, 7]
    assert not read[0].belief.any() and not read[7].belief.any()


def test_released_acting_remembers_across_episodes() -> None:
    """``compat=released``: the belief is that of the last sixteen steps, whatever ended among them."""
    spec = CountingEnv(pixels=True).observation_spec
    system = build("compat=released", spec=spec, actions=3)
    read, rollout = acted(system, 7, 5, steps=24)
    dynamics, memory = system.world_model.eval().dynamics, rollout["next", "recent_steps"]
    assert rollout["is_init"].flatten(1).sum(1).tolist() == [4, 5]
    for t in range(1, 24):
        count = min(t, 16)
        classes = memory[:, t - 1, -count:, :4].long()
        state = dynamics.one_hot(classes)
        known = Steps(
            Feature(state, state[..., :0], classes), rollout["action"][:, t - count : t].float(),
            torch.zeros(2, count, 1), torch.zeros(2, count, dtype=torch.bool),
        )  # fmt: skip
        with torch.no_grad():
            belief, _ = dynamics.advance(known, None)
        torch.testing.assert_close(read[t].belief, belief[:, -1], atol=1e-5, rtol=0)
    assert not read[0].belief.any()


def test_released_acting_is_blind_to_the_present_frame() -> None:
    """Another frame changes nothing with the same memory and chance, unless the posterior is read."""
    for reads, blind in (("prior", True), ("posterior", False)):
        system = build(f"policy.reads={reads}", actions=5)
        system.world_model.dynamics.posterior[-1].weight.data.mul_(1000)  # frames that can be told apart
        torch.manual_seed(0)
        recent = torch.zeros(40, 16, 4 + 2 + 5)
        recent[:, 0, 5] = 1  # the first of them begins an episode
        root = {
            "is_init": torch.zeros(40, 1, dtype=torch.bool),
            "previous_action": F.one_hot(torch.arange(40) % 5, 5),
        }
        seen: list[Tensor] = []
        system.actor.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0].dense))
        for value in (0, 255):
            pixels = torch.full((40, 3, 64, 64), value, dtype=torch.uint8)
            torch.manual_seed(1)
            system.policy(TensorDict({**root, "pixels": pixels, "recent_steps": recent}, [40]))
        assert torch.equal(*seen) == blind
    with pytest.raises(ConfigError, match=r"policy\.reads"):
        build("policy.reads=nothing")


def test_rewards_are_in_their_own_units_and_ends_are_hard() -> None:
    system = build()
    model = system.world_model
    with torch.no_grad():
        model.heads["continuation"].trunk[-1].weight.zero_()
        model.heads["continuation"].trunk[-1].bias.fill_(0.1)
    belief = torch.randn(6, 16)
    reward, discount = model.outcome(belief)
    assert reward.shape == (6, 1) and (discount == 0.985).all()
    model.heads["continuation"].trunk[-1].bias.data.fill_(-0.1)
    assert not model.outcome(belief)[1].any()
    batch = {"reward": torch.tensor([[math.e**3]])}
    assert torch.equal(model.reward(batch), batch["reward"])
