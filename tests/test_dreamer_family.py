"""DreamerV1, DreamerV2 and DreamerV3 of 2024: the papers' numbers, and slow oracles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch import distributions as torchd
from torchrl.data import Bounded, Composite, OneHot, TensorSpec, Unbounded, UnboundedDiscrete
from torchrl.envs import ExplorationType, SerialEnv, set_exploration_type
from wmkit.systems.exploration import AdditiveGaussian, EpsilonGreedy
from wmkit.systems.schedules import adam

import wmkit
from support.steer import Steer
from wmkit import backbones
from wmkit.codecs import UnpaddedImageDecoder
from wmkit.dynamics import constants, imagine, imagine_through
from wmkit.errors import ConfigError
from wmkit.nn import (
    GaussianLatent,
    OneHotCategorical,
    TanhNormal,
    TruncatedNormal,
)
from wmkit.objectives import LaProp, Learner, MeanKL, MeanKLBalance, MixedGradient
from wmkit.systems import build_from, compose
from wmkit.training.parts import default_parts
from wmkit.training.run import RunDirectory
from wmkit.training.trainer import Trainer

PIXELS = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))
VECTOR = Composite(observation=Unbounded((3,)))
BOTH = Composite(observation=Unbounded((3,)), pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))
SIX, CHOICE = Bounded(-1.0, 1.0, (6,)), OneHot(5)
NARROW = ["size.deter=16", "size.hidden=8", "size.units=8", "size.depth=2"]
SMALL = [*NARROW, "size.groups=4", "batch.size=3", "batch.length=5"]


composed = cache(compose)


def build(
    name: str, spec: Composite, actions: TensorSpec, *overrides: str, sizes: Sequence[str] = SMALL
) -> wmkit.System:
    torch.manual_seed(0)
    return build_from(composed(name, ("preset=paper", *sizes, *overrides)), spec, actions)


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def linear(before: int, after: int) -> int:
    return before * after + after


def tower(before: int, layers: int, after: int, units: int = 400) -> int:
    return linear(before, units) + (layers - 1) * linear(units, units) + linear(units, after)


# ---- sizes --------------------------------------------------------------------------------------------


def codec(depth: int, feature: int, shown: int) -> tuple[int, int]:
    """Parameters of both image halves, layer by layer."""
    down = [(shown, 1), (depth, 2), (2 * depth, 4), (4 * depth, 8)]
    up = [(32, 4, 5), (4, 2, 5), (2, 1, 6)]
    encoder = sum(16 * before * width * depth + width * depth for before, width in down)
    decoder = linear(feature, 32 * depth) + 36 * depth * shown + shown
    return encoder, decoder + sum(k * k * i * depth * o * depth + o * depth for i, o, k in up)


def test_parameter_counts_of_v1_are_the_papers() -> None:
    with torch.device("meta"):
        system = build("dreamer_v1", PIXELS, SIX, sizes=[])
    found = [count(part) for part in (system.world_model, system.actor, system.critic)]
    assert [round(n / 1e6, digits) for n, digits in zip(found, (1, 2, 2), strict=True)] == [5.3, 0.58, 0.41]
    encoder, decoder = codec(32, 230, 3)
    gru = 2 * 200 * 600 + 2 * 600  # an input and a recurrent bias
    heads = 2 * linear(200, 60) + linear(200, 200) + linear(200 + 1024, 200)
    assert found[0] == encoder + decoder + linear(36, 200) + gru + heads + tower(230, 2, 1)
    assert found[1:] == [tower(230, 4, 12), tower(230, 3, 1)]


@pytest.mark.parametrize(
    ("domain", "actions", "width"), [("v2_atari", OneHot(18), 600), ("v2_dmc", SIX, 200), (None, SIX, 1024)]
)
def test_parameter_counts_of_v2(domain: str | None, actions: TensorSpec, width: int) -> None:
    with torch.device("meta"):
        system = build("dreamer_v2", PIXELS, actions, *[f"domain={domain}"] * bool(domain), sizes=[])
    feature, choices = width + 1024, int(actions.shape[-1])
    encoder, decoder = codec(48, feature, 3)
    gru = linear(2 * width, 3 * width) + 2 * 3 * width
    heads = 2 * linear(width, 1024) + linear(width, width) + linear(width + 1536, width)
    predicted = (1 if domain == "v2_dmc" else 2) * tower(feature, 4, 1)
    total = encoder + decoder + linear(1024 + choices, width) + gru + heads + predicted
    assert count(system.world_model) == total
    outputs = choices if isinstance(actions, OneHot) else 2 * choices
    assert (count(system.actor), count(system.critic)) == (tower(feature, 4, outputs), tower(feature, 4, 1))


# ---- the papers' numbers ------------------------------------------------------------------------------

V3_KL = {"kl_dynamics": (1.0, 1.0), "kl_representation": (0.1, 1.0)}
PUBLISHED: dict[str, dict[str, Any]] = {
    "dreamer_v1": {
        "rates": {"world_model": 6e-4, "actor": 8e-5, "critic": 8e-5},
        "decay, eps, clip": (0.0, 1e-7, 100.0),
        "kl": {"kl": (1.0, 3.0)},
        "reward of 100": 100.0,
        "continue": None,
        "entropy": 0.0,
        "batch": (50, 50),
        "updates per decision": 0.2,
    },
    "dreamer_v2": {
        "rates": {"world_model": 1e-4, "actor": 8e-5, "critic": 2e-4},
        "decay, eps, clip": (1e-6, 1e-5, 100.0),
        "kl": {"kl_dynamics": (0.8, 0.0), "kl_representation": (0.2, 0.0)},
        "reward of 100": 1.0,
        "continue": 0.99,
        "entropy": 2e-3,
        "batch": (16, 50),
        "updates per decision": 0.2,
    },
    "dreamer_v3_2023": {
        "rates": {"world_model": 1e-4, "actor": 3e-5, "critic": 3e-5},
        "decay, eps, clip": (0.0, 1e-8, 1000.0),
        "kl": {**V3_KL, "kl_dynamics": (0.5, 1.0)},
        "reward of 100": 100.0,
        "continue": 1.0,
        "entropy": 3e-4,
        "batch": (16, 64),
        "updates per decision": None,
    },
    "dreamer_v3": {
        "rates": {"joint": 4e-5},
        "decay, eps, clip": (None, 1e-20, None),
        "kl": V3_KL,
        "reward of 100": 100.0,
        "continue": 1 - 1 / 333,
        "entropy": 3e-4,
        "batch": (16, 64),
        "updates per decision": None,
    },
}
PUBLISHED["dreamer_v3_2024"] = PUBLISHED["dreamer_v3"]


def reward(system: wmkit.System) -> float:
    head: Any = system.world_model.heads["reward"]
    return head.label({"reward": torch.tensor([[100.0]])}).item()


def continuation(system: wmkit.System) -> float | None:
    if "continuation" not in system.world_model.heads:
        return None
    head: Any = system.world_model.heads["continuation"]
    ended, on = head.label({"terminated": torch.tensor([True, False])}).tolist()
    assert ended == 0
    return pytest.approx(on)


def kl(system: wmkit.System) -> Any:
    dynamics, weights = system.world_model.dynamics, system.world_model_loss.weights
    same = dynamics.latent.statistics(torch.zeros(1, 2, dynamics.latent.stats_dim))
    terms = system.world_model_loss.kl(same, same)
    return {name: (weights[name], term.value[0, 0].item()) for name, term in terms.items()}


def optimiser(system: wmkit.System) -> Any:
    learners = system.schedule.learners
    for learner in learners.values():
        kinds = (LaProp,) if "joint" in learners else (torch.optim.Adam, torch.optim.AdamW)
        assert isinstance(learner.optimizer, kinds)
    return {name: pytest.approx(float(x.optimizer.param_groups[0]["lr"])) for name, x in learners.items()}


def optimiser_numbers(system: wmkit.System) -> Any:
    learner: Any = next(iter(system.schedule.learners.values()))
    group = learner.optimizer.param_groups[0]
    decay = group.get("weight_decay")
    decay = None if decay is None else pytest.approx(decay * float(group["lr"]))
    return decay, group["eps"], learner.clip


def updates_per_decision(system: wmkit.System) -> float | None:
    config = composed(system.name, ("preset=paper",))
    if not getattr(system.behaviour, "gradients", None):
        return None  # V3 says it by benchmark
    return config.training.train_ratio / (config.batch.size * config.batch.length)


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_those_of_the_paper(name: str) -> None:
    """Read off the built system, whose parts do with a number what it says."""
    size = ["size=paper", "size.layers=1"] if name == "dreamer_v3_2023" else []
    actions = CHOICE if name == "dreamer_v3_2023" else SIX
    system = build(name, VECTOR, actions, *size, sizes=NARROW)
    assert PUBLISHED[name] == {
        "rates": optimiser(system),
        "decay, eps, clip": optimiser_numbers(system),
        "kl": kl(system),
        "reward of 100": reward(system),
        "continue": continuation(system),
        "entropy": system.behaviour.entropy,
        "batch": (system.batch_shape[0], system.batch_shape[1] - system.context),
        "updates per decision": updates_per_decision(system),
    }


def critic_target(system: wmkit.System) -> Any:
    """Where targets come from: what a disturbed slow critic does to them."""
    schedule, batch = system.schedule, system.fill(system.example_batch())
    if schedule.slow_critic is None:
        return "itself", None
    learned, returns = system.world_model_loss(system.world_model, batch), []
    with torch.no_grad():
        for shift in (0.0, 1.0):
            schedule.slow_critic.out.bias += shift
            torch.manual_seed(1)
            returns.append(schedule.behave(system, learned).start_return)
    kind = "online" if torch.equal(*returns) else "copy"
    return kind, (schedule.slow_fraction, schedule.slow_every)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("dreamer_v1", ("itself", None)),
        ("dreamer_v2", ("copy", (1.0, 100))),
        ("dreamer_v3_2023", ("online", (0.02, 1))),
        ("dreamer_v3", ("online", (0.02, 1))),
    ],
)
def test_where_the_targets_come_from(name: str, wanted: Any) -> None:
    actions = CHOICE if name == "dreamer_v3_2023" else SIX
    assert critic_target(build(name, VECTOR, actions)) == wanted


def test_domains_have_the_numbers_of_their_benchmark() -> None:
    systems = {
        d: build("dreamer_v2", VECTOR, SIX, f"domain={d}") for d in ("v2_atari", "v2_crafter", "v2_dmc")
    }
    rates = {"v2_atari": (2e-4, 4e-5, 1e-4), "v2_crafter": (1e-4,) * 3, "v2_dmc": (3e-4, 8e-5, 8e-5)}
    entropies = {"v2_atari": 1e-3, "v2_crafter": 3e-3, "v2_dmc": 1e-4}
    discounts = {"v2_atari": 0.999, "v2_crafter": 0.999, "v2_dmc": 0.99}
    for domain, system in systems.items():
        assert tuple(optimiser(system).values()) == rates[domain]
        assert (
            system.behaviour.entropy == entropies[domain] and system.behaviour.discount == discounts[domain]
        )
    atari, crafter, dmc = systems.values()
    assert kl(atari) == {"kl_dynamics": (0.08, 0.0), "kl_representation": (0.02, 0.0)}
    assert kl(dmc) == {"kl_dynamics": (0.8, 1.0), "kl_representation": (0.2, 1.0)}
    assert (continuation(atari), continuation(crafter), continuation(dmc)) == (0.999, 0.999, None)
    assert (reward(atari), reward(dmc)) == (1.0, 100.0)
    assert atari.world_model_loss.weights["continuation"] == 5
    assert isinstance(crafter.world_model.dynamics.input.norm, nn.LayerNorm)
    v1 = build("dreamer_v1", VECTOR, CHOICE, "domain=v1_atari")
    assert continuation(v1) == 0.99 and v1.world_model_loss.weights["continuation"] == 10
    assert isinstance(v1.policy.exploration, EpsilonGreedy)
    learned = v1.world_model_loss(v1.world_model, v1.fill(v1.example_batch()[:, v1.context :]))
    batch, length = learned.observed.posterior_logits.shape[:2]
    counted = learned.start_mask.view(batch, length)
    assert counted[:, :-1].all() and not counted[:, -1].any()  # no dream begins at a window's last step
    assert compose("dreamer_v2", ["domain=v2_atari", "preset=paper"]).training.train_ratio == 50  # of 16 x 50
    wide = compose("dreamer_v3_2024", ["domain=v3_2024_dmc", "preset=paper"])
    assert (wide.size.deter, wide.training.train_ratio) == (2048, 512)
    assert (
        compose("dreamer_v2", ["domain=v2_dmc", "size=1m"]).size.deter == 512
    )  # what is asked for last wins


PROTOCOLS = {  # of each domain: system, image, action repeat, steps, prefill, updates per step
    "v1_atari": ("dreamer_v1", (3, 64, 64), 4, 1_250_000, 1250, 0.4),
    "v2_atari": ("dreamer_v2", (1, 64, 64), 4, 50_000_000, 50_000, 1 / 16),
    "v2_crafter": ("dreamer_v2", (3, 64, 64), 1, 1_000_000, 10_000, 0.2),
    "v2_dmc": ("dreamer_v2", (3, 64, 64), 2, 1_000_000, 1000, 0.2),
    "v3_2024_dmc": ("dreamer_v3_2024", (3, 64, 64), 2, 600_000, 0, 0.5),
    "v3_2024_dmc_proprio": ("dreamer_v3_2024", None, 2, 300_000, 0, 0.5),
}


def seen(config: DictConfig) -> tuple[Composite, TensorSpec]:
    """What the environment of a configuration shows and takes, without its packages."""
    options = config.env.options
    actions = OneHot(18) if config.env.name.startswith(("atari", "crafter")) else SIX
    if "image_size" not in options:
        return VECTOR, actions
    image = (1 if options.get("grey") else 3, options.image_size, options.image_size)
    return Composite(pixels=UnboundedDiscrete(image, dtype=torch.uint8)), actions


@pytest.mark.parametrize("preset", ["paper", "atari"])
@pytest.mark.parametrize("domain", PROTOCOLS)
def test_a_domain_is_a_protocol_whatever_the_preset(domain: str, preset: str) -> None:
    name, image, repeat, steps, prefill, updates = PROTOCOLS[domain]
    config = compose(name, [f"domain={domain}", f"preset={preset}"])
    spec, actions = seen(config)
    assert (tuple(spec["pixels"].shape) if "pixels" in spec.keys() else None) == image
    assert config.env.options.get("action_repeat", 1) == repeat
    assert (config.training.steps, config.training.prefill) == (steps, prefill)
    replayed = config.batch.size * config.batch.length
    assert config.training.train_ratio / replayed == pytest.approx(updates)
    assert config.training.replay.capacity >= min(1.01 * steps, 2e6)  # resets are records too
    with torch.device("meta"):
        assert build_from(config, spec, actions).name == name


def test_blocks_of_pixels_are_refused() -> None:
    with pytest.raises(ConfigError, match="patch is 8"):
        build("dreamer_v2", PIXELS, CHOICE, "size=tiny", sizes=[])


def test_images_come_back_in_their_own_units() -> None:
    decoder = UnpaddedImageDecoder(4, {"pixels": (1, 64, 64)}, depth=1)
    for parameter in decoder.parameters():
        nn.init.zeros_(parameter)
    assert decoder(torch.zeros(1, 4)).unique().tolist() == [0.5]  # grey: what enters as zero


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
    term = MeanKL(free_nats=3.0)(p, q)["kl"]
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
    system = build("dreamer_v2", VECTOR, CHOICE, f"world_model_loss.kl.free_nats={free}")
    weights = system.world_model_loss.weights
    post, prior = (torch.randn(3, 5, 4, 8, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        post[0, 0, 0, 0] = 400.0  # a class as good as certain: no class is given a share of it

    def slow(p: Tensor, q: Tensor) -> Tensor:
        p, q = (torchd.Independent(torchd.OneHotCategorical(logits=x), 1) for x in (p, q))
        return torchd.kl_divergence(p, q).mean().clamp(min=free)

    terms = system.world_model_loss.kl(post, prior)
    found = sum(weights[name] * term.mean for name, term in terms.items())
    expected = 0.8 * slow(post.detach(), prior) + 0.2 * slow(post, prior.detach())
    torch.testing.assert_close(found, expected)
    for grad, want in zip(
        torch.autograd.grad(found, [post, prior]), torch.autograd.grad(expected, [post, prior]), strict=True
    ):
        assert grad.isfinite().all()
        torch.testing.assert_close(grad, want, atol=1e-6, rtol=1e-4)
    near = MeanKLBalance(free_nats=1.0)(post, post)
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
        found = TruncatedNormal(mean[:, i : i + 1], std[:, i : i + 1]).sample(shares.unsqueeze(-1))
        torch.testing.assert_close(found.flatten(), grid[[5001, 10001, 15001]].float(), atol=1e-3, rtol=0)
    assert policy.sample(torch.rand(1000, 2)).abs().max() <= 1


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

SYSTEMS = {
    "v1": ("dreamer_v1", SIX, ["behaviour.horizon=4"]),
    "v1 choice": ("dreamer_v1", CHOICE, ["behaviour.horizon=4", "domain=v1_atari"]),
    "v2": ("dreamer_v2", SIX, ["behaviour.horizon=4"]),
    "v2 dmc": ("dreamer_v2", SIX, ["behaviour.horizon=4", "domain=v2_dmc"]),
    "v2 choice": ("dreamer_v2", CHOICE, ["behaviour.horizon=4"]),
}


def case(name: str, *overrides: str) -> tuple[wmkit.System, Any]:
    """A system whose critics say something, and states that it imagines from."""
    page, actions, own = SYSTEMS[name]
    system = build(page, VECTOR, actions, *own, *overrides)
    nn.init.normal_(system.critic.out.bias)
    learned = system.world_model_loss(system.world_model, system.fill(system.example_batch()))
    return system, learned


def slow_losses(system: wmkit.System, learned: Any, v1: bool, reinforce: bool) -> tuple[Tensor, Tensor]:
    """Actor and critic losses of both papers, state by state, number by number."""
    model, actor, h = system.world_model, system.actor, 4
    gamma, lmbda = system.behaviour.discount, 0.95
    critic = system.critic if v1 else system.schedule.slow_critic
    noise = model.dynamics.noise(h, len(learned.start_mask))
    chance = actor.noise(h, len(learned.start_mask))
    state, features, scores, entropies = learned.starts, [], [], []
    for t in range(h):
        features.append(state.feature)
        policy = actor(state.feature.detach())
        action = policy.sample(chance[t])
        if isinstance(policy, OneHotCategorical) and not reinforce:
            action = action + policy.probs - policy.probs.detach()
        scores.append(policy.log_prob(action.detach()))
        entropies.append(policy.entropy if system.behaviour.entropy else None)
        state = model.dynamics.step(state, action, noise=noise[t])
        if reinforce:
            state = state.detach()
    features.append(state.feature)
    r = [model.heads["reward"](f).mean[:, 0] for f in features]
    v = [critic(f).mean[:, 0] for f in features]
    if "continuation" in model.heads:
        d = [torch.sigmoid(model.heads["continuation"](f).logits[:, 0]) for f in features]
    else:
        d = [torch.full_like(x, gamma) for x in r]
    d[0] = gamma * learned.start_continuation[:, 0]
    target, following = {}, v[h]
    for t in reversed(range(h)):
        following = target[t] = r[t] + d[t] * ((1 - lmbda) * v[t + 1] + lmbda * following)
    actor_loss, critic_loss, counts = torch.zeros(()), torch.zeros(()), learned.start_mask[:, 0]
    first = 1 if v1 else 0
    weight = torch.ones_like(r[0])
    for t in range(first, h):
        predicted = system.critic(features[t].detach()).mean[:, 0]
        error = 0.5 * (predicted - target[t].detach()).square() + 0.5 * math.log(2 * math.pi)
        critic_loss = critic_loss + (weight.detach() * error)[counts].mean() / (h - first)
        action = t - first  # V1's weights begin with the first state that an action led to
        if action < h - 1:
            gain = target[action + 1]
            if reinforce:
                gain = scores[action] * (target[action + 1] - v[action]).detach()
            if system.behaviour.entropy:
                gain = gain + system.behaviour.entropy * entropies[action]
            actor_loss = actor_loss - (weight.detach() * gain)[counts].mean() / (h - 1)
        weight = weight * d[t]
    return actor_loss, critic_loss


@pytest.mark.parametrize("name", SYSTEMS)
def test_losses_and_gradients_equal_those_of_a_slow_formula(name: str) -> None:
    system, learned = case(name)
    parts = {"actor": list(system.actor.parameters()), "critic": list(system.critic.parameters())}
    found, expected = [], []
    torch.manual_seed(3)
    behaved = system.schedule.behave(system, learned)
    found = [behaved.actor_loss, behaved.critic_loss]
    torch.manual_seed(3)
    expected = list(slow_losses(system, learned, name.startswith("v1"), name == "v2 choice"))
    for loss, slow, part in zip(found, expected, parts, strict=True):
        torch.testing.assert_close(loss, slow, atol=1e-5, rtol=1e-4)
        grads = torch.autograd.grad(loss, parts[part], retain_graph=True)
        wanted = torch.autograd.grad(slow, parts[part], retain_graph=True)
        assert any(grad.any() for grad in grads)
        for grad, want in zip(grads, wanted, strict=True):
            torch.testing.assert_close(grad, want, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", SYSTEMS)
def test_where_gradients_flow_and_where_they_stop(name: str) -> None:
    system, learned = case(name, "behaviour.entropy=0")
    rest = [*system.world_model.parameters(), *system.schedule.parameters()]
    actor, critic = list(system.actor.parameters()), list(system.critic.parameters())
    torch.manual_seed(3)
    behaved = system.schedule.behave(system, learned)
    for loss, own, others in (
        (behaved.actor_loss, actor, [*rest, *critic]),
        (behaved.critic_loss, critic, [*rest, *actor]),
    ):
        others = [p for p in others if p.requires_grad]
        assert all(g is None for g in torch.autograd.grad(loss, others, allow_unused=True, retain_graph=True))
        assert any(g.any() for g in torch.autograd.grad(loss, own, retain_graph=True))
    assert all(p.requires_grad for p in system.world_model.parameters())  # constants no longer

    # Cut where an action enters the model: a gradient through the dynamics ends there, REINFORCE's does not.
    step = system.world_model.dynamics.step
    system.world_model.dynamics.step = lambda latent, action, **kw: step(latent, action.detach(), **kw)
    torch.manual_seed(3)
    cut = system.schedule.behave(system, learned).actor_loss
    torch.testing.assert_close(cut, behaved.actor_loss)
    if name == "v2 choice":
        whole = torch.autograd.grad(behaved.actor_loss, actor)
        for grad, want in zip(torch.autograd.grad(cut, actor), whole, strict=True):
            torch.testing.assert_close(grad, want)
    else:
        assert not cut.requires_grad


def test_mixed_gradients_are_some_of_both() -> None:
    target, baseline = torch.randn(3, 4, 1, requires_grad=True), torch.randn(3, 4, 1)
    score = torch.randn(3, 4, 1, requires_grad=True)
    through, log = torch.autograd.grad(MixedGradient(0.1)(target, baseline, score).sum(), [target, score])
    torch.testing.assert_close(through, torch.full_like(through, 0.1))
    torch.testing.assert_close(log, 0.9 * (target - baseline).detach())
    system, learned = case("v2 choice")
    system.behaviour.gradients["discrete"] = MixedGradient(0.1)
    loss = system.schedule.behave(system, learned).actor_loss
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(system.actor.parameters())))


@pytest.mark.parametrize("name", ["v1", "v2", "v2 choice"])
def test_both_ways_to_imagine_see_the_same_future(name: str) -> None:
    system, learned = case(name)
    torch.manual_seed(2)
    plain = imagine(system.world_model, system.actor, learned.starts, 3)
    torch.manual_seed(2)
    with constants(system.world_model):
        through = imagine_through(system.world_model, system.actor, learned.starts, 3)
    for a, b in zip(plain[:5], through[:5], strict=True):
        torch.testing.assert_close(a, b)
    assert through.states.requires_grad and not plain.states.requires_grad
    assert plain.features.state.shape == (15, 4, system.world_model.dynamics.state_dim)


def test_a_page_that_cannot_work_says_so() -> None:
    with pytest.raises(ConfigError, match="estimator that keeps no gradient"):
        case("v1", "behaviour.estimator.differentiable=false")
    with pytest.raises(ConfigError, match=r"start is 'scord'"):
        case("v1", "behaviour.start=scord")
    with pytest.raises(ConfigError, match="start 'scored' and horizon 1"):
        case("v1", "behaviour.start=scored", "behaviour.horizon=1")
    system, learned = case("v2")
    del system.behaviour.gradients["continuous"]
    with pytest.raises(ConfigError, match="continuous actions"):
        system.schedule.behave(system, learned)


# ---- schedules ----------------------------------------------------------------------------------------


def test_targets_are_copied_after_the_first_update_and_every_hundredth_from_there() -> None:
    system = build("dreamer_v2", VECTOR, CHOICE)
    schedule, bias = system.schedule, system.critic.out.bias
    copies = []
    for update in range(1, 302):
        with torch.no_grad():
            bias.fill_(update)
        schedule.follow(system.critic)
        if schedule.slow_critic.out.bias.item() == update:
            copies.append(update)
    assert copies == [1, 101, 201, 301]
    twin = build("dreamer_v2", VECTOR, CHOICE)
    twin.load_state_dict(system.state_dict())
    assert twin.schedule.updates == 301  # a resumed run copies when the first one would have


def test_weights_decay_by_a_millionth_whatever_the_learning_rate() -> None:
    for lr in (1e-4, 1e-2):
        weight = nn.Parameter(torch.full((3,), 1000.0, dtype=torch.float64))
        learner: Learner = adam({"lr": lr, "eps": 1e-5, "clip": 100.0, "decay": 1e-6}, [weight])
        learner.step((0 * weight).sum())
        torch.testing.assert_close(weight.data, torch.full((3,), 1000 - 1e-3, dtype=torch.float64))


def test_v1_imagines_in_the_model_before_the_update_and_v2_after() -> None:
    for name, wanted in (("dreamer_v1", False), ("dreamer_v2", True)):
        system = build(name, VECTOR, SIX)
        before, seen = [p.clone() for p in system.world_model.parameters()], []
        forward = system.behaviour.forward

        def watch(*args: Any, forward: Any = forward, before: Any = before, seen: Any = seen) -> Any:
            now = args[0].parameters()
            seen.append(any(not torch.equal(p, q) for p, q in zip(before, now, strict=True)))
            return forward(*args)

        system.behaviour.forward = watch
        system.update(system.example_batch())
        assert seen == [wanted]
        assert any(
            not torch.equal(p, q) for p, q in zip(before, system.world_model.parameters(), strict=True)
        )


@pytest.mark.parametrize("name", ["v1", "v1 choice", "v2", "v2 choice", "v2 pixels", "v3 2024"])
def test_twenty_updates_lower_the_loss(name: str) -> None:
    page, actions, own = {
        **SYSTEMS,
        "v2 pixels": ("dreamer_v2", CHOICE, []),
        "v3 2024": ("dreamer_v3_2024", SIX, ["learning_rate.joint=3e-3", "schedule.optimizer.warmup=0"]),
    }[name]
    pixels = (
        ["behaviour.horizon=3", "batch.size=2", "batch.length=3"] if name in ("v2 pixels", "v3 2024") else []
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


# ---- acting -------------------------------------------------------------------------------------------


def test_exploration_is_for_collecting_only() -> None:
    system = build("dreamer_v1", VECTOR, SIX)
    assert isinstance(system.policy.exploration, AdditiveGaussian)
    assert build("dreamer_v1", VECTOR, CHOICE).policy.exploration is None
    system.policy.exploration.scale = 100.0
    start = system.example_batch()[:, :1].squeeze(1).select("observation")
    rows = {"is_init": torch.ones(3, 1, dtype=torch.bool), "previous_action": torch.zeros(3, 6)}
    dynamics = system.world_model.dynamics
    rows |= {"state": torch.zeros(3, dynamics.state_dim), "belief": torch.zeros(3, dynamics.belief_dim)}
    start.update(rows)
    explored, kept = ExplorationType.RANDOM, ExplorationType.DETERMINISTIC
    for kind in (explored, kept):
        torch.manual_seed(0)
        with set_exploration_type(kind):
            action = system.policy(start.clone())["action"]
        at_the_edge = action.abs().eq(1).float().mean()
        assert action.shape == (3, 6) and (at_the_edge > 0.8) == (kind == explored)


def test_epsilon_greedy_decays_to_its_least() -> None:
    torch.manual_seed(0)
    explore, action = EpsilonGreedy(0.5, half_life=1000.0, least=0.125), torch.eye(4)[[0]].expand(1000, 4)
    shares = [1 - explore(action)[:, 0].mean().item() for _ in range(5)]
    for found, amount in zip(shares, [0.5, 0.25, 0.125, 0.125, 0.125], strict=True):
        assert found == pytest.approx(0.75 * amount, abs=0.05)  # one choice in four is the same again


def run(folder: Path, name: str, make_env: Callable[..., Any], *overrides: str) -> Trainer:
    settings = {"steps": 64, "prefill": 24, "train_ratio": 2.0, "checkpoint_every": 1000, "final_episodes": 1}
    small = [option for option in SMALL if not option.startswith("batch")]
    config = compose(
        name,
        [*small, f"run_dir={folder}", "threads=1", "behaviour.horizon=3", "preset=smoke"]
        + ["batch={size: 3, length: 5}", "training.report=false", *overrides]
        + [f"training.{key}={value}" for key, value in settings.items()],
    )
    parts = replace(default_parts(), make_env=make_env)
    return Trainer(config, RunDirectory.create(config), parts=parts)


@pytest.mark.parametrize("name", ["dreamer_v1", "dreamer_v2"])
def test_a_run_on_continuous_actions(tmp_path: Path, name: str) -> None:
    trainer = run(tmp_path / "run", name, lambda *_, **__: SerialEnv(2, Steer))
    summary = trainer.train()
    assert summary.steps == 64 and summary.updates == (64 - 24) * 2 // 15 and summary.episodes == 1
    records = trainer.memory.streams.get(trainer.memory.streams.ids(0))
    assert records["previous_action"].abs().max() <= 1  # drawn or explored, an action stays inside
    imagined = trainer.system.imagine(
        trainer.system.update(trainer.memory.sample())["replay_context"][:, 0], 3
    )
    assert imagined["next", "reward"].shape == (3, 3, 1) and imagined["action"].abs().max() <= 1
