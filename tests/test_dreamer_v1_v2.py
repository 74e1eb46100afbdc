"""DreamerV1 and DreamerV2: cells, latents, KL, losses of actor and critic, beside slow oracles."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as torchd

import wmkit
from support.family import CHOICE, PIXELS, SIX, SYSTEMS, VECTOR, build
from wmkit import backbones
from wmkit.control import ActorCritic, MixedGradient, Reinforce
from wmkit.dynamics import Latent, constants, rollout
from wmkit.errors import ConfigError
from wmkit.nn import GaussianLatent, OneHotCategorical, TanhNormal, TruncatedNormal
from wmkit.objectives import KL, KLBalance, Scene, Start
from wmkit.optim import Learner, adam

# ---- cells, latents, KL -------------------------------------------------------------------------------


def test_the_gru_of_v1_resets_after_its_product_and_keeps_by_its_gate() -> None:
    gru = backbones.build("gru", 3, 4)
    x, h, p = torch.randn(2, 3), torch.randn(2, 4), dict(gru.gru.named_parameters())
    for bias in ("bias_ih", "bias_hh"):
        nn.init.normal_(p[bias])
    wx, wh = x @ p["weight_ih"].T + p["bias_ih"], h @ p["weight_hh"].T + p["bias_hh"]
    (xr, xz, xn), (hr, hz, hn) = wx.chunk(3, -1), wh.chunk(3, -1)
    keep = torch.sigmoid(xz + hz)
    expected = keep * h + (1 - keep) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    torch.testing.assert_close(gru.step(x, h, torch.zeros(2, dtype=torch.bool))[0], expected)


def test_gaussian_latents_are_reparameterised() -> None:
    latent = GaussianLatent(3)
    raw = torch.randn(5, 6, requires_grad=True)
    statistics, noise = latent.statistics(raw), latent.noise(5)
    mean, std = raw[:, :3], nn.functional.softplus(raw[:, 3:]) + 0.1
    found = latent.sample(statistics, noise)[0]
    torch.testing.assert_close(found, mean + std * noise)
    (grad,) = torch.autograd.grad(found.sum(), raw)
    torch.testing.assert_close(grad[:, :3], torch.ones(5, 3))
    assert grad[:, 3:].ne(0).all() and latent.mode(statistics)[1] is None
    torch.testing.assert_close(latent.mode(statistics)[0], mean)


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_kl_of_v1_is_free_on_the_batch_mean(scale: float) -> None:
    latent = GaussianLatent(4)
    raw = [(scale * torch.randn(3, 5, 8)).requires_grad_() for _ in range(2)]
    p, q = (latent.statistics(x) for x in raw)
    normals = [torchd.Independent(torchd.Normal(x[..., 0, :], x[..., 1, :]), 1) for x in (p, q)]
    slow = torchd.kl_divergence(*normals).mean()
    term = KL({}, free_nats=3.0).of(p, q)["kl"]
    torch.testing.assert_close(term.mean, slow.clamp(min=3.0))
    grads = torch.autograd.grad(term.mean, raw, retain_graph=True)
    wanted = (
        torch.autograd.grad(slow, raw, retain_graph=True) if slow > 3 else [torch.zeros_like(x) for x in raw]
    )
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want)
    assert (slow > 3) == (scale == 3.0)


@pytest.mark.parametrize("free", [0.0, 1.0])
def test_kl_of_v2_is_balanced(free: float) -> None:
    system = build("dreamer_v2", VECTOR, CHOICE, f"objectives.latents.free_nats={free}")
    objective = system.objectives["latents"]
    post, prior = (torch.randn(3, 5, 4, 8, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        post[0, 0, 0, 0] = 400.0  # a class as good as certain: no class is given a share of it

    def slow(p: Tensor, q: Tensor) -> Tensor:
        p, q = (torchd.Independent(torchd.OneHotCategorical(logits=x), 1) for x in (p, q))
        return torchd.kl_divergence(p, q).mean().clamp(min=free)

    terms = objective.of(post, prior)
    found = sum(objective.weights[name] * term.mean for name, term in terms.items())
    expected = 0.8 * slow(post.detach(), prior) + 0.2 * slow(post, prior.detach())
    torch.testing.assert_close(found, expected)
    for grad, want in zip(
        torch.autograd.grad(found, [post, prior]), torch.autograd.grad(expected, [post, prior]), strict=True
    ):
        assert grad.isfinite().all()
        torch.testing.assert_close(grad, want, atol=1e-6, rtol=1e-4)
    near = KLBalance({}, free="mean").of(post, post)
    assert all(not term.value.grad_fn or term.mean.item() == 1 for term in near.values())


# ---- policies -----------------------------------------------------------------------------------------


def test_a_choice_as_good_as_made_keeps_finite_gradients() -> None:
    logits = torch.tensor([[500.0, 0.0, -500.0]], requires_grad=True)
    policy = OneHotCategorical(logits)
    value = policy.entropy + policy.log_prob(torch.eye(3)[[0]]) + policy.log_prob(torch.eye(3)[[2]])
    assert value.item() == -1000
    assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()


def test_tanh_normal_has_the_density_of_a_transformed_normal() -> None:
    policy = TanhNormal(torch.randn(4, 2), torch.randn(4, 2) - 4)
    oracle = torchd.TransformedDistribution(
        torchd.Normal(policy.location, policy.std), torchd.TanhTransform(cache_size=1)
    )
    action = policy.sample()
    torch.testing.assert_close(policy.log_prob(action), oracle.log_prob(action).sum(-1), atol=1e-3, rtol=1e-3)
    assert policy.log_prob(torch.ones(4, 2)).isfinite().all()
    torch.manual_seed(0)
    narrow = TanhNormal(torch.zeros(1, 1), torch.full((1, 1), -7.0))  # std 0.12: nearly a normal
    entropy = torchd.Normal(0.0, narrow.std).entropy().item()
    assert narrow.entropy.item() == pytest.approx(entropy, abs=0.3) and narrow.mode.abs().item() < 0.1


def test_truncated_normal_against_numbers() -> None:
    mean, std = torch.tensor([[0.3, -2.0]]), torch.tensor([[-1.0, 2.0]])
    policy = TruncatedNormal(mean, std)
    grid = torch.linspace(-1, 1, 20001).double()
    for i in range(2):
        part = TruncatedNormal(mean[:, i : i + 1].expand(20001, 1), std[:, i : i + 1].expand(20001, 1))
        log_prob = part.log_prob(grid.float().unsqueeze(-1)).double()
        assert torch.trapezoid(log_prob.exp(), grid).item() == pytest.approx(1.0, abs=1e-4)
        entropy = -torch.trapezoid(log_prob.exp() * log_prob, grid).item()
        assert part.entropy[0].item() == pytest.approx(entropy, abs=1e-4)
        # Samples of evenly spread uniforms are the quantiles of that density.
        shares = torch.cumulative_trapezoid(log_prob.exp(), grid)[[5000, 10000, 15000]].float()
        found = TruncatedNormal(mean[:, i : i + 1], std[:, i : i + 1]).sample(shares.view(3, 1, 1))
        torch.testing.assert_close(found.flatten(), grid[[5001, 10001, 15001]].float(), atol=1e-3, rtol=0)
    assert policy.sample(torch.rand(1000, 1, 2)).abs().max() <= 1


@pytest.mark.parametrize("family", [TanhNormal, TruncatedNormal])
def test_samples_carry_the_gradient_of_their_parameters(
    family: type[TanhNormal] | type[TruncatedNormal],
) -> None:
    draw = torch.tensor([[0.3, 0.8]])

    def sample(mean: Tensor, std: Tensor) -> Tensor:
        return family(mean, std).rsample(draw).double().sum()

    point = [torch.tensor([[0.4, -0.7]], requires_grad=True), torch.tensor([[-3.0, 0.5]], requires_grad=True)]
    grads = torch.autograd.grad(sample(*point), point)
    for i in range(2):
        step = [torch.zeros(1, 2), torch.zeros(1, 2)]
        step[i][0, 0] = 1e-2
        ahead, back = (sample(*(p + sign * s for p, s in zip(point, step, strict=True))) for sign in (1, -1))
        assert grads[i][0, 0].item() == pytest.approx(((ahead - back) / 2e-2).item(), rel=2e-2, abs=1e-4)


# ---- behaviour ----------------------------------------------------------------------------------------


def case(name: str, *overrides: str) -> tuple[wmkit.System, Scene]:
    """A system whose critics say something, and states that it imagines from."""
    page, actions, own = SYSTEMS[name]
    system = build(page, VECTOR, actions, *own, *overrides)
    nn.init.normal_(system.critic.out.bias)
    scene = system.scene(system.example_batch())
    assert scene.observed is not None  # drawn now, and not where a seed is set below
    return system, scene


def losses(system: wmkit.System, scene: Scene) -> tuple[Tensor, Tensor]:
    """Those of actor and critic."""
    terms = system.controller.learn(scene, system.schedule.slow).terms
    return terms["actor"].loss, terms["critic"].loss


def slow_losses(system: wmkit.System, start: Start, v1: bool, reinforce: bool) -> tuple[Tensor, Tensor]:
    """Actor and critic losses of both papers, state by state, number by number."""
    model, actor, h = system.world_model, system.actor, 4
    gamma, lmbda = system.controller.returns.discount, 0.95
    critic = system.critic if v1 else system.schedule.slow_critic
    noise, chance = model.dynamics.noise(h, len(start.mask)), actor.noise(h, len(start.mask))
    state, states, scores, entropies = start.latent, [], [], []
    for t in range(h):
        states.append(state)
        policy = actor.policy(model.read(actor, state.detach()))
        action = policy.sample(chance[t])
        if isinstance(policy, OneHotCategorical) and not reinforce:
            action = action + policy.probs - policy.probs.detach()
        scores.append(policy.log_prob(action.detach()))
        entropies.append(policy.entropy if system.controller.entropy else None)
        state = model.dynamics.step(state, action, noise=noise[t])
        if reinforce:
            state = state.detach()
    states.append(state)
    r = [model.predict("reward", x).mean[:, 0] for x in states]
    v = [critic.predict(model.read(critic, x)).mean[:, 0] for x in states]
    if "continuation" in model.heads:
        d = [torch.sigmoid(model.predict("continuation", x).logits[:, 0]) for x in states]
    else:
        d = [torch.full_like(x, gamma) for x in r]
    d[0] = gamma * start.continuation[:, 0]
    target, following = {}, v[h]
    for t in reversed(range(h)):
        following = target[t] = r[t] + d[t] * ((1 - lmbda) * v[t + 1] + lmbda * following)
    actor_loss, critic_loss, counts = torch.zeros(()), torch.zeros(()), start.mask[:, 0]
    first = 1 if v1 else 0
    weight = torch.ones_like(r[0])
    for t in range(first, h):
        predicted = system.critic.predict(model.read(system.critic, states[t].detach())).mean[:, 0]
        error = 0.5 * (predicted - target[t].detach()).square() + 0.5 * math.log(2 * math.pi)
        critic_loss = critic_loss + (weight.detach() * error)[counts].mean() / (h - first)
        action = t - first  # V1's weights begin with the first state that an action led to
        if action < h - 1:
            gain = target[action + 1]
            if reinforce:
                gain = scores[action] * (target[action + 1] - v[action]).detach()
            if system.controller.entropy:
                gain = gain + system.controller.entropy * entropies[action]
            actor_loss = actor_loss - (weight.detach() * gain)[counts].mean() / (h - 1)
        weight = weight * d[t]
    return actor_loss, critic_loss


@pytest.mark.parametrize("name", SYSTEMS)
def test_losses_and_gradients_equal_those_of_a_slow_formula(name: str) -> None:
    system, scene = case(name)
    start = system.controller.starts(scene)
    torch.manual_seed(3)
    found = losses(system, scene)
    torch.manual_seed(3)
    expected = slow_losses(system, start, name.startswith("v1"), name == "v2 choice")
    for loss, slow, part in zip(found, expected, (system.actor, system.critic), strict=True):
        torch.testing.assert_close(loss, slow, atol=1e-5, rtol=1e-4)
        grads = torch.autograd.grad(loss, list(part.parameters()), retain_graph=True)
        wanted = torch.autograd.grad(slow, list(part.parameters()), retain_graph=True)
        assert any(grad.any() for grad in grads)
        for grad, want in zip(grads, wanted, strict=True):
            torch.testing.assert_close(grad, want, atol=1e-6, rtol=1e-3)


class Cut:
    """Steps of a model that no gradient of an action enters."""

    def __init__(self, steps: Any) -> None:
        self.steps = steps

    def step(self, latent: Latent, action: Tensor, option: Any = None, noise: Any = None) -> Latent:
        return self.steps.step(latent, action.detach(), option, noise)


@pytest.mark.parametrize("name", SYSTEMS)
def test_where_gradients_flow_and_where_they_stop(name: str) -> None:
    system, scene = case(name, "controller.entropy=0")
    rest = [*system.world_model.parameters(), *system.schedule.parameters()]
    actor, critic = list(system.actor.parameters()), list(system.critic.parameters())
    torch.manual_seed(3)
    actor_loss, critic_loss = losses(system, scene)
    for loss, own, others in (
        (actor_loss, actor, [*rest, *critic]),
        (critic_loss, critic, [*rest, *actor]),
    ):
        others = [p for p in others if p.requires_grad]
        assert all(g is None for g in torch.autograd.grad(loss, others, allow_unused=True, retain_graph=True))
        assert any(g.any() for g in torch.autograd.grad(loss, own, retain_graph=True))
    assert all(p.requires_grad for p in system.world_model.parameters())  # constants no longer

    # Cut where an action enters the model: a gradient through the dynamics ends there, REINFORCE's does not.
    dynamics = system.world_model.dynamics
    bind = dynamics.bind
    dynamics.bind = lambda **options: Cut(bind(**options))
    torch.manual_seed(3)
    cut = losses(system, scene)[0]
    torch.testing.assert_close(cut, actor_loss)
    if name == "v2 choice":
        whole = torch.autograd.grad(actor_loss, actor)
        for grad, want in zip(torch.autograd.grad(cut, actor), whole, strict=True):
            torch.testing.assert_close(grad, want)
    else:
        assert not cut.requires_grad


def test_mixed_gradients_are_some_of_both() -> None:
    target, baseline = torch.randn(3, 4, 1, requires_grad=True), torch.randn(3, 4, 1)
    score = torch.randn(3, 4, 1, requires_grad=True)
    through, log = torch.autograd.grad(
        MixedGradient(0.1)(target, target - baseline, score).sum(), [target, score]
    )
    torch.testing.assert_close(through, torch.full_like(through, 0.1))
    torch.testing.assert_close(log, 0.9 * (target - baseline).detach())
    system, scene = case("v2 choice")
    system.controller.gradient = MixedGradient(0.1)
    loss = losses(system, scene)[0]
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(system.actor.parameters())))


@pytest.mark.parametrize("name", ["v1", "v2", "v2 choice"])
def test_both_ways_to_imagine_see_the_same_future(name: str) -> None:
    system, scene = case(name)
    model, start = system.world_model, system.controller.starts(scene).latent
    torch.manual_seed(2)
    plain = rollout(model, start, system.actor, 3)
    torch.manual_seed(2)
    with constants(model):
        through = rollout(model, start, system.actor, 3, gradient=True)
    for a, b in zip((*plain.latent[:2], plain.actions), (*through.latent[:2], through.actions), strict=True):
        torch.testing.assert_close(a, b)
    assert through.latent.state.requires_grad and not plain.latent.state.requires_grad
    assert plain.latent.state.shape == (4, 15, model.dynamics.state_dim)


def test_a_page_that_cannot_work_says_so() -> None:
    with pytest.raises(ConfigError, match="estimator that keeps no gradient"):
        case("v1", "controller.returns.estimator.differentiable=false")
    with pytest.raises(ConfigError, match=r"start is 'scord'"):
        case("v1", "controller.returns.start=scord")
    with pytest.raises(ConfigError, match="horizon is 1"):
        case("v1", "controller.returns.start=scored", "controller.horizon=1")
    controller = build("dreamer_v2", VECTOR, SIX).controller
    parts = {name: getattr(controller, name) for name in ("horizon", "starts", "returns")}
    with pytest.raises(ConfigError, match="continuous actions"):
        ActorCritic(
            controller.actor, controller.critic, **parts, rewards={}, gradient={"discrete": Reinforce()}
        )


# ---- schedules ----------------------------------------------------------------------------------------


def test_targets_are_copied_after_the_first_update_and_every_hundredth_from_there() -> None:
    system = build("dreamer_v2", VECTOR, CHOICE)
    schedule, bias = system.schedule, system.critic.out.bias
    copies = []
    for update in range(1, 302):
        with torch.no_grad():
            bias.fill_(update)
        schedule.follow()
        if schedule.slow["critic"].out.bias.item() == update:
            copies.append(update)
    assert copies == [1, 101, 201, 301]
    twin = build("dreamer_v2", VECTOR, CHOICE)
    twin.load_state_dict(system.state_dict())
    assert twin.schedule.updates == 301  # a resumed run copies when the first one would have


def test_weights_decay_by_a_millionth_whatever_the_learning_rate() -> None:
    for lr in (1e-4, 1e-2):
        weight = nn.Parameter(torch.full((3,), 1000.0, dtype=torch.float64))
        learner = Learner([weight], partial(adam, lr=lr, eps=1e-5, decay=1e-6), clip=100.0)
        learner.backward((0 * weight).sum())
        learner.step()
        torch.testing.assert_close(weight.data, torch.full((3,), 1000 - 1e-3, dtype=torch.float64))


def test_v1_imagines_in_the_model_before_the_update_and_v2_after() -> None:
    for name, wanted in (("dreamer_v1", False), ("dreamer_v2", True)):
        system = build(name, VECTOR, SIX)
        before, seen = [p.clone() for p in system.world_model.parameters()], []
        learn = system.controller.learn

        def watch(scene: Scene, slow: Any, learn: Any = learn, before: Any = before, seen: Any = seen) -> Any:
            now = scene.world_model.parameters()
            seen.append(any(not torch.equal(p, q) for p, q in zip(before, now, strict=True)))
            return learn(scene, slow)

        system.controller.learn = watch
        system.update(system.example_batch())
        assert seen == [wanted]
        assert any(
            not torch.equal(p, q) for p, q in zip(before, system.world_model.parameters(), strict=True)
        )


FAST = ("learning_rate.joint=3e-3", "schedule.learners.joint.optimizer.warmup=0")


@pytest.mark.parametrize("name", ["v1", "v1 choice", "v2", "v2 choice", "v2 pixels", "v3 2024"])
def test_twenty_updates_lower_the_loss(name: str) -> None:
    page, actions, own = {
        **SYSTEMS,
        "v2 pixels": ("dreamer_v2", CHOICE, []),
        "v3 2024": (
            "dreamer_v3_2024",
            SIX,
            ["learning_rate.joint=3e-3", "schedule.learners.joint.optimizer.warmup=0"],
        ),
    }[name]
    pixels = (
        ["controller.horizon=3", "batch.size=2", "batch.length=3"] if name in ("v2 pixels", "v3 2024") else []
    )
    spec = PIXELS if pixels else VECTOR
    system = build(page, spec, actions, *own, *pixels)
    for learner in system.schedule.learners.values():
        if name != "v3 2024":
            learner.optimizer.param_groups[0]["lr"] = 3e-3
    batch = system.example_batch()
    losses = [system.update(batch)["loss_world_model"].item() for _ in range(20)]
    assert math.isfinite(losses[-1]) and losses[-1] < losses[0] - 0.1
    assert all(parameter.isfinite().all() for parameter in system.parameters())
