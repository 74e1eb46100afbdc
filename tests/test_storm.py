"""STORM as a system: counts, cache, episodes that are not kept apart, losses and updates by hand, acting."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchrl.data import OneHot
from torchrl.envs import InitTracker, SerialEnv, TransformedEnv

import wmkit
from support.storm import ATARI, build
from support.tokens import known, parameters, record, watch
from support.twm import build as build_twm
from wmkit.data import VisitBalanced
from wmkit.dynamics import FromPrior, Latent, Steps, rollout
from wmkit.envs.counting import CountingEnv
from wmkit.errors import SpecError
from wmkit.functional import categorical_kl, unimix_probs
from wmkit.objectives import KLBalance, LambdaReturnJumpy, OwnValueReturn, Scene
from wmkit.systems import System, compose
from wmkit.training.memory import ReplayMemory

OWN_WINDOWS = "controller.starts._target_=wmkit.control.SampledStarts"


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
    weights = {key: w for objective in system.objectives.values() for key, w in objective.weights.items()}
    assert weights == {
        **dict.fromkeys(("pixels", "reward", "continuation"), 1.0),
        **{"kl_dynamics": 0.5, "kl_representation": 0.1},
    }
    latents, controller = system.objectives["latents"], system.controller
    assert latents.free_nats == 1 and latents.unimix == system.world_model.dynamics.latent.unimix == 0.01
    assert (controller.horizon, controller.entropy) == (16, 3e-4)
    assert [type(hook) for hook in controller.hooks] == [FromPrior]
    assert system.dream_windows == (1024, 8 + 1) and system.actor.unimix == 0
    assert (page.discount, page.controller.returns.estimator.lmbda) == (0.985, 0.95)
    norm = controller.return_norm
    assert (norm.rate, norm.quantiles, norm.min_scale) == (0.01, (0.05, 0.95), 1.0)
    assert page.schedule.slow == {"critic": {"fraction": 0.02}}


def test_the_sequence_model_begins_as_the_original_does() -> None:
    """Positions of unit variance; nothing dropped inside the dense layers, a tenth everywhere else."""
    backbone = build().world_model.dynamics.backbone
    assert 0.9 < backbone.positions.weight.std() < 1.1
    for layer in backbone.layers:
        assert (layer.dropout.p, layer.attention.dropout, layer.feed_forward.dropout.p) == (0.1, 0.1, 0.0)


def test_a_dream_from_what_is_expected_is_what_full_passes_say() -> None:
    """Everything of a dream, again without memory; draws are made certain, so that they are known."""
    system = build()
    model, dynamics, horizon = system.world_model, system.world_model.dynamics, 9
    dynamics.latent.unimix = 0.0
    with torch.no_grad():
        dynamics.prior[-1].weight.mul_(1000)
        model.heads["continuation"].trunk[-1].weight.mul_(50)
    before, told = known(dynamics, 5, 4), record(dynamics, 5, 4)
    with model.evaluating(), torch.no_grad():
        start = dynamics.remember(before, told)
    torch.manual_seed(1)
    found = rollout(model, start, system.actor, horizon, hooks=[FromPrior()])
    torch.manual_seed(1)
    seen = rollout(model, start, system.actor, horizon)
    transitions = system.controller.outcome(model, found)
    assert model.training and not found.restarts.any()
    model.eval()
    dreamt = found.before.map(lambda x: x.transpose(0, 1))
    walk = Steps(
        torch.cat([before.state[:, :-1], dreamt.state], 1),
        torch.cat([before.classes[:, :-1], dreamt.classes], 1),
        torch.cat([told["previous_action"][:, 1:], found.actions.transpose(0, 1)], 1),
        torch.zeros(5, 3 + horizon, 1),
        torch.zeros(5, 3 + horizon, dtype=torch.bool),
    )
    with torch.no_grad():
        belief = dynamics.advance(walk, None)[0][:, 2:].transpose(0, 1)  # after the context and every step
        reward = model.heads["reward"].predict(belief[1:]).mean
        goes_on = model.heads["continuation"].predict(belief[1:]).logits > 0
        expected = dynamics.prior_logits(belief).argmax(-1)
    assert torch.equal(found.latent.classes, expected)  # the first state too, whatever was there
    assert not torch.equal(expected[0], before.classes[:, -1])
    assert torch.equal(seen.latent.classes[0], before.classes[:, -1])
    assert torch.equal(seen.latent.belief[0], found.latent.belief[0])
    torch.testing.assert_close(found.latent.belief, belief, atol=1e-5, rtol=0)
    after = transitions["next"].apply(lambda x: x.transpose(0, 1), batch_size=[horizon, 5])
    torch.testing.assert_close(after["reward"], reward, atol=1e-4, rtol=1e-4)
    assert goes_on.any() and not goes_on.all() and torch.equal(after["continuation"], 0.985 * goes_on)


def test_a_dream_costs_less_than_half_a_gigaflop_per_start() -> None:
    system, rows = paper(), 1024
    model = system.world_model.requires_grad_(False)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        start = model.dynamics.remember(known(model.dynamics, rows, 9), record(model.dynamics, rows, 9))
        found = rollout(model, start, system.actor, 16, hooks=[FromPrior()])
    assert found.latent.belief.shape == (17, rows, 512)
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


def score(system: System, scene: Scene) -> Tensor:
    """The world model's loss."""
    return torch.stack([loss.value for loss in system._score(scene, {}).values()]).sum()


def test_losses_of_the_world_model_by_hand() -> None:
    """Equation 4 in plain loops over one episode, and where its gradients go."""
    system = build()
    model, scene = system.world_model.eval(), system.scene(system.example_batch())
    batch = scene.batch
    for key in ("is_init", "terminated", "done"):
        batch[key] = torch.zeros_like(batch[key])
    batch["terminated"][0, -1] = batch["done"][0, -1] = True
    with torch.no_grad():
        for part in (model.dynamics.posterior, model.dynamics.prior):
            part[-1].weight.mul_(10)  # beyond the free nats
    torch.manual_seed(1)
    loss = score(system, scene)
    torch.manual_seed(1)
    seen = model.observe(batch)
    q, p = (0.99 * x.softmax(-1) + 0.01 / 4 for x in (seen.posterior_logits, seen.prior_logits))
    decoded = model.decoder.predict(seen.latent.state)["pixels"].mean
    reward = model.heads["reward"]
    rewards = reward.out(reward.trunk(seen.latent.belief)).log_softmax(-1)
    ends = model.predict("continuation", seen.latent).logits[..., 0]  # above zero where it goes on
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
    torch.testing.assert_close(loss, wanted)
    weights = list(model.parameters())
    for mine, theirs in zip(*(torch.autograd.grad(x, weights) for x in (loss, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wide", [False, True])
def test_losses_of_behaviour_by_hand(wide: bool) -> None:
    """Every number in a plain loop, every gradient from constants; returns in a narrow and a wide range."""
    system = build()
    model, actor, critic, controller = (system.world_model, system.actor, system.critic, system.controller)
    slow = copy.deepcopy(critic)
    with torch.no_grad():
        model.heads["continuation"].trunk[-1].weight.mul_(50)
        model.heads["reward"].out.weight.mul_(10 if wide else 1)
        actor.out.weight.mul_(10)  # far from uniform, where entropy has a gradient
        critic.out.weight.mul_(3)
        slow.out.weight.mul_(-3)
    scene = system.scene(system.example_batch())
    for key in ("is_init", "terminated", "done"):
        scene.batch[key] = torch.zeros_like(scene.batch[key])
    if wide:
        controller.return_norm.low.fill_(-3.0)
        controller.return_norm.high.fill_(5.0)
    else:
        scene.batch["terminated"][:, 3:6] = True  # nothing starts there
    scene.observed  # noqa: B018 (drawn once)
    torch.manual_seed(2)
    out = controller.learn(scene, {"critic": slow})
    torch.manual_seed(2)
    start = controller.starts(scene)
    found = controller.dream(model, start)
    transitions, actions = controller.outcome(model, found), found.actions.transpose(0, 1)
    rewards, discounts = (transitions["next", key][..., 0] for key in ("reward", "continuation"))  # [N, H]
    assert len(set(discounts.flatten().tolist())) == 2 and start.mask.all() == wide

    feature = found.latent.feature.dense.transpose(0, 1)  # [N, H+1, F]
    policy = actor.out(actor.trunk(feature[:, :-1])).log_softmax(-1)
    logits, slow_logits = (x.out(x.trunk(feature)) for x in (critic, slow))
    value, slow_value = read(logits.detach()), read(slow_logits.detach())  # [N, 5]

    def returns(value: Tensor) -> Tensor:
        found = torch.zeros(12, 4)
        for n in range(12):
            later = value[n, 4].item()
            for t in (3, 2, 1, 0):
                after = 0.05 * value[n, t + 1].item() + 0.95 * later
                later = rewards[n, t].item() + discounts[n, t].item() * after
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
                gains.append(policy[n, t, actions[n, t].argmax()] * advantage)
                entropies.append(-(policy[n, t].exp() * policy[n, t]).sum())
                codes = code(target[n, t].item()) + code(slow_target[n, t].item())
                errors.append(-(codes * logits[n, t].log_softmax(-1)).sum())
    actor_loss = -torch.stack(gains).mean() - 3e-4 * torch.stack(entropies).mean()
    critic_loss = torch.stack(errors).mean()
    assert controller.return_norm.scale().item() == pytest.approx(max(1.0, span), rel=1e-5)
    terms = {name: term.loss for name, term in out.terms.items()}
    for mine, theirs, part in (
        (terms["actor"], actor_loss, actor),
        (terms["critic"], critic_loss, critic),
    ):
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
    losses = {}
    for free in ("mean", "position"):
        p = torch.zeros(1, 20, 1, 4, requires_grad=True)
        loss = KLBalance({}, free=free, unimix=0.01, first=1).of(q, p)["kl_dynamics"].mean
        (losses[free],) = torch.autograd.grad(loss, p)
    assert not losses["mean"].any() and losses["position"][0, 3].any()
    big = 3 * torch.randn(2, 5, 2, 4)
    terms = KLBalance({}, free="mean", unimix=0.01, first=1).of(big, 0 * big)
    kl = categorical_kl(*(unimix_probs(x[:, 1:], 0.01) for x in (big, 0 * big))).mean()
    assert kl > 1
    torch.testing.assert_close(terms["kl_dynamics"].mean, kl)
    torch.testing.assert_close(terms["kl_representation"].mean, kl)


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
    assert isinstance(build("compat=released").controller.returns.estimator, OwnValueReturn)


def test_the_sequence_model_teaches_the_encoder() -> None:
    system = build()
    losses = system._score(system.scene(system.example_batch()), {})
    dynamics = torch.stack([loss.value for loss in losses.values() if loss.group == "dynamics"]).sum()
    encoder = list(system.world_model.encoder.parameters())
    assert any(g.abs().sum() > 0 for g in torch.autograd.grad(dynamics, encoder))


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
        *("schedule.learners.world_model.clip=1000", "schedule.learners.world_model.optimizer.eps=0.1"),
        *("schedule.learners.agent.clip=0.01", "schedule.learners.agent.optimizer.eps=0.001"),
        *("learning_rate.world_model=0.05", "learning_rate.actor=0.01"),
        *[OWN_WINDOWS] * own_windows,
    ]
    system, other = build(*overrides), build(*overrides)
    batches = system.example_batches()
    model, slow, memories = other.world_model, copy.deepcopy(other.critic), ([], [])
    agent = [*other.actor.parameters(), *other.critic.parameters()]
    for update in range(2):
        torch.manual_seed(update)
        metrics = system.update(*batches)
        torch.manual_seed(update)
        scene = other.scene(*batches)
        weights = list(model.parameters())
        norm = adam(weights, score(other, scene), memories[0], lr=0.05, eps=0.1, clip=1000)
        assert metrics["grad_norm_world_model"].item() == pytest.approx(norm, rel=1e-4) and norm > 1000
        learned = other.controller.learn(scene, {"critic": slow}).terms
        loss = learned["actor"].loss + learned["critic"].loss
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
    system, blind = build(OWN_WINDOWS), build(OWN_WINDOWS, "+controller.starts.look=false")
    assert system.dream_windows == blind.dream_windows == (12, 4) and build().dream_windows is None
    batch, dreams = system.example_batches()
    for one, looked in ((system, 4), (blind, 3)):  # where dreams begin at what is expected, none looks there
        frames, dreamt = watch(one.world_model.encoder, "encode"), watch(one.controller, "starts")
        scene = one.scene(batch, dreams)
        norms = [buffer.clone() for buffer in one.world_model.buffers()]
        start = one.controller.starts(scene)
        assert all(map(torch.equal, norms, one.world_model.buffers()))  # statistics stay as they were
        assert start.mask.all() and start.latent.state.shape == (12, 16)
        assert start.latent.state.sum(-1).eq(4).all() == (one is system)
        one.update(batch, dreams)
        assert [x["is_init"].shape[1] for x in frames] == [looked, 8, looked] and len(dreamt) == 2
        torch.testing.assert_close(dreamt[1].beside["previous_action"], dreams["previous_action"])
    for wrong, found, wanted in (
        ((batch,), "None", r"\(12, 4\)"),
        ((batch, batch), r"\(3, 8\)", r"\(12, 4\)"),
    ):
        with pytest.raises(SpecError, match=f"windows for dreams are {found}: wanted {wanted}"):
            system.update(*wrong)
    with pytest.raises(SpecError, match=r"are \(12, 4\): wanted None"):
        build().update(batch, dreams)


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


def test_rewards_are_in_their_own_units_and_ends_are_hard() -> None:
    system = build()
    model = system.world_model
    with torch.no_grad():
        model.heads["continuation"].trunk[-1].weight.zero_()
        model.heads["continuation"].trunk[-1].bias.fill_(0.1)
    latent = Latent(torch.zeros(6, 16), torch.randn(6, 16))
    assert model.predict("reward", latent).mean.shape == (6, 1)
    assert (model.continuation(latent) == 0.985).all()
    model.heads["continuation"].trunk[-1].bias.data.fill_(-0.1)
    assert not model.continuation(latent).any()
    batch = {"reward": torch.tensor([[math.e**3]])}
    assert torch.equal(model.heads["reward"].label(batch), batch["reward"])
