"""DreamerV1, DreamerV2 and DreamerV3 of 2024: the papers' numbers, domains, acting, runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import nn
from torchrl.data import Composite, OneHot, TensorSpec, UnboundedDiscrete
from torchrl.envs import ExplorationType, SerialEnv, set_exploration_type

import wmkit
from support.family import CHOICE, NARROW, PIXELS, SIX, SMALL, VECTOR, build, composed
from support.steer import Steer
from wmkit.codecs import UnpaddedImageDecoder
from wmkit.control import AdditiveGaussian, EpsilonGreedy, StateReturns
from wmkit.errors import ConfigError
from wmkit.optim import LaProp
from wmkit.systems import build_from, compose
from wmkit.training.parts import default_parts
from wmkit.training.run import RunDirectory
from wmkit.training.trainer import Trainer


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
    latent, objective = system.world_model.dynamics.latent, system.objectives["latents"]
    same = latent.statistics(torch.zeros(1, 2, latent.stats_dim))
    terms = objective.of(same, same)
    return {name: (objective.weights[name], term.value[0, 0].item()) for name, term in terms.items()}


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
    if not isinstance(system.controller.returns, StateReturns):
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
        "entropy": system.controller.entropy,
        "batch": (system.batch_shape[0], system.batch_shape[1] - system.context),
        "updates per decision": updates_per_decision(system),
    }


def critic_target(system: wmkit.System) -> Any:
    """Where targets come from: what a disturbed slow critic does to them."""
    slow, scene, returns = system.schedule.slow, system.scene(system.example_batch()), []
    if not slow:
        return "itself", None
    with torch.no_grad():
        for shift in (0.0, 1.0):
            slow["critic"].out.bias += shift
            torch.manual_seed(1)
            returns.append(system.controller.learn(scene, slow).metrics["imagined_return"])
    kind = "online" if torch.equal(*returns) else "copy"
    return kind, system.schedule._slow_spec["critic"]


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
            system.controller.entropy == entropies[domain]
            and system.controller.returns.discount == discounts[domain]
        )
    atari, crafter, dmc = systems.values()
    assert kl(atari) == {"kl_dynamics": (0.08, 0.0), "kl_representation": (0.02, 0.0)}
    assert kl(dmc) == {"kl_dynamics": (0.8, 1.0), "kl_representation": (0.2, 1.0)}
    assert (continuation(atari), continuation(crafter), continuation(dmc)) == (0.999, 0.999, None)
    assert (reward(atari), reward(dmc)) == (1.0, 100.0)
    assert atari.objectives["heads"].weights["continuation"] == 5
    assert isinstance(crafter.world_model.dynamics.input.norm, nn.LayerNorm)
    v1 = build("dreamer_v1", VECTOR, CHOICE, "domain=v1_atari")
    assert continuation(v1) == 0.99 and v1.objectives["heads"].weights["continuation"] == 10
    assert isinstance(v1.policy.exploration, EpsilonGreedy)
    scene = v1.scene(v1.example_batch())
    batch, length = scene.observed.posterior_logits.shape[:2]
    counted = v1.controller.starts(scene).mask.view(batch, length)
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
        [*small, f"run_dir={folder}", "threads=1", "controller.horizon=3", "preset=smoke"]
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
