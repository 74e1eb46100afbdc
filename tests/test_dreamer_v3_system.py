"""Today's DreamerV3 as a system: parameter counts, continuous actions, image sizes, a whole run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torchrl.data import (
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    OneHot,
    TensorSpec,
    Unbounded,
    UnboundedDiscrete,
)
from torchrl.envs import SerialEnv, TransformedEnv, check_env_specs
from torchrl.envs.utils import ExplorationType, set_exploration_type

import wmkit
from support.steer import SIX, Steer, rescaled
from wmkit.data import ReplayStreams
from wmkit.envs import unit_actions
from wmkit.errors import ConfigError, SpecError
from wmkit.optim.captured import make_update
from wmkit.systems import System, compose
from wmkit.training.evaluate import evaluate
from wmkit.training.parts import default_parts, latent_options
from wmkit.training.protocol import EvaluationProtocol
from wmkit.training.run import RunDirectory
from wmkit.training.trainer import Trainer

SMALL = [
    "preset=paper",
    *("size.deter=16", "size.groups=4", "size.classes=4", "size.hidden=8", "size.units=8", "size.depth=2"),
    *("batch.size=3", "batch.length=5"),
]
PROPRIO = Composite(height=Unbounded((1,)), orientations=Unbounded((14,)), velocity=Unbounded((9,)))
RANKS = Composite(speed=Unbounded(()), grid=Unbounded((2, 3)), velocity=Unbounded((3,)))


def image(channels: int, side: int) -> Composite:
    return Composite(pixels=UnboundedDiscrete((channels, side, side), dtype=torch.uint8))


def build(spec: Composite, actions: TensorSpec, *overrides: str, name: str = "dreamer_v3") -> System:
    return wmkit.build(name, observation_spec=spec, action_spec=actions, overrides=[*SMALL, *overrides])


def parameters(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


# ---- sizes --------------------------------------------------------------------------------------------


def sized(size: str, spec: Composite, actions: TensorSpec) -> System:
    with torch.device("meta"):
        return wmkit.build(
            "dreamer_v3", observation_spec=spec, action_spec=actions, overrides=[f"size={size}"]
        )


SIZES = ("1m", "12m", "25m", "50m", "100m", "200m", "400m")


@pytest.mark.parametrize(
    ("spec", "actions", "counts"),
    [
        (
            PROPRIO,
            SIX,
            [640_867, 9_738_019, 21_782_947, 38_612_003, 86_622_499, 153_769_507, 345_473_059],
        ),
        (
            image(3, 64),
            SIX,
            [686_846, 10_494_158, 23_489_326, 41_650_062, 93_468_238, 165_948_686, 372_896_398],
        ),
        (
            image(3, 64),
            OneHot(17),
            [687_875, 10_498_259, 23_495_475, 41_658_259, 93_480_531, 165_965_075, 372_920_979],
        ),
        (
            image(1, 96),
            OneHot(18),
            [769_762, 11_808_850, 26_444_402, 46_900_882, 105_276_626, 186_936_082, 420_106_130],
        ),
    ],
    ids=["walker", "vision", "crafter", "atari"],
)
def test_parameter_counts_are_those_of_the_original(
    spec: Composite, actions: TensorSpec, counts: list[int]
) -> None:
    systems = (sized(size, spec, actions) for size in SIZES)
    assert [parameters(each.world_model, each.actor, each.critic) for each in systems] == counts


@pytest.mark.parametrize(
    ("size", "spec", "counts"),
    [
        ("1m", PROPRIO, [10_112, 273_664, 45_312, 45_440, 51_096, 57_663, 41_153, 50_316, 66_111]),
        (
            "12m",
            image(3, 64),
            [220_416, 4_338_688, 918_528, 722_432, 1_272_003, 721_407, 656_129, 791_052, 853_503],
        ),
        (
            "200m",
            image(3, 64),
            [
                *(3_492_864, 69_259_264, 14_684_160, 11_540_480, 20_282_115),
                *(10_749_183, 10_488_833, 12_601_356, 12_850_431),
            ],
        ),
    ],
)
def test_every_part_has_its_share(size: str, spec: Composite, counts: list[int]) -> None:
    system = sized(size, spec, SIX)
    model, rssm = system.world_model, system.world_model.dynamics
    parts = [
        (model.encoder,),
        (rssm.input, rssm.backbone),
        (rssm.posterior_in, rssm.posterior_out),
        (rssm.prior,),
        (model.decoder,),
        (model.heads["reward"],),
        (model.heads["continuation"],),
        (system.actor,),
        (system.critic,),
    ]
    assert [parameters(*part) for part in parts] == counts


@pytest.mark.parametrize("side", [64, 96])
def test_images_of_several_sizes_learn(side: int) -> None:
    system = build(image(1, side), OneHot(3))
    assert system.update(system.example_batch())["loss_joint"].isfinite()
    if side != 64:
        with pytest.raises(SpecError, match=r"\[1, 96, 96\]"):
            build(image(1, side), OneHot(3), name="dreamer_v3_2023")


# ---- actions ------------------------------------------------------------------------------------------


def test_the_page_chooses_the_actor() -> None:
    spec = Composite(observation=Unbounded((3,)))
    discrete = build(spec, OneHot(4), "actor.discrete.unimix=0.5")
    assert discrete.actor.unimix == 0.5 and discrete.spaces.actions == "discrete"
    continuous = build(spec, Bounded(-3.0, 7.0, (4,)), "actor.continuous.high=2")
    assert (continuous.actor.low, continuous.actor.high) == (0.1, 2)
    assert continuous.spaces.actions == "continuous" and continuous.spaces.action_dim == 4
    batched = wmkit.build(  # as a batch of two environments shows itself
        "dreamer_v3",
        observation_spec=Composite(observation=Unbounded((2, 3)), shape=[2]),
        action_spec=Composite(action=Bounded(-3.0, 7.0, (2, 4)), shape=[2]),
        overrides=SMALL,
    )
    assert batched.spaces.action_dim == 4


@pytest.mark.parametrize(
    ("actions", "found"),
    [
        (Unbounded((2,)), "floats of shape [2] without bounds, wanted OneHot or Bounded"),
        (Bounded(-1.0, float("inf"), (2,)), "floats of shape [2] from -1 to inf, wanted"),
        (Bounded(-1.0, 1.0, ()), "floats of shape [] from -1 to 1, wanted"),
        (Bounded(-1.0, 1.0, (2, 3)), "floats of shape [2, 3] from -1 to 1, wanted"),
        (Bounded(0, 3, (2,), dtype=torch.int64), "2 whole numbers (torch.int64), wanted"),
        (Categorical(4), "one choice of 4 values (Categorical), wanted"),
    ],
)
def test_other_actions_are_refused_in_one_sentence(actions: TensorSpec, found: str) -> None:
    with pytest.raises(SpecError) as error:
        build(Composite(observation=Unbounded((3,))), actions)
    assert found in str(error.value) and "\n" not in str(error.value)


def test_systems_of_one_hot_actions_refuse_numbers() -> None:
    with pytest.raises(SpecError, match=r"wanted OneHot"):
        build(PROPRIO, SIX, name="dreamer_v3_2023")


def test_an_update_learns_from_actions_of_any_size() -> None:
    system = build(Composite(observation=Unbounded((3,))), Bounded(-3.0, 7.0, (2,)))
    batch = system.example_batch()
    action = batch["previous_action"]
    assert action.dtype == torch.float32 and (action.abs() > 1).any()
    assert not action[batch["is_init"].squeeze(-1)].any()
    before = [p.clone() for p in system.actor.parameters()]
    for _ in range(3):  # the first has a learning rate of zero
        metrics = system.update(batch)
    assert all(v.isfinite().all() for v in metrics.exclude("replay_context").values())
    assert all(not torch.equal(p, q) for p, q in zip(before, system.actor.parameters(), strict=True))
    with pytest.raises(SpecError, match=r"torch.int64"):
        system.update(batch.set("previous_action", action.long()))


CLASSES = Composite(inventory=MultiCategorical([5, 5]), held=Categorical(7), velocity=Unbounded((3,)))


ACTING = {
    "walker": ("dreamer_v3", PROPRIO, SIX, 3),
    "ranks": ("dreamer_v3", RANKS, OneHot(3), 3),
    "classes": ("dreamer_v3", CLASSES, OneHot(3), 3),
    "crafter": ("dreamer_v3", image(3, 64), OneHot(17), 1),
    "many images": ("dreamer_v3", image(3, 64), OneHot(17), 3),
    "strided, with numbers": ("dreamer_v3_2024", Composite(**image(3, 64), velocity=Unbounded((3,))), SIX, 2),
}


@pytest.mark.parametrize(("name", "spec", "actions", "rows"), ACTING.values(), ids=ACTING)
def test_acting_on_a_cpu_gives_the_numbers_of_the_parts(
    name: str, spec: Composite, actions: TensorSpec, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused or not, before and after updates and after a load, with resets in between."""
    options = ("batch.length=3", "controller.horizon=2", "learning_rate.joint=0.1")
    system = build(spec, actions, *options, name=name)
    batch, policy = system.example_batch(), system.policy
    if "speed" in batch:
        batch["speed"][:, 1] = -torch.inf  # missing
    before = {key: value.clone() for key, value in system.state_dict().items() if torch.is_tensor(value)}

    def play(seed: int, kind: ExplorationType) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        views = batch[:rows].select(*spec.keys(), "is_init")
        carried = {name: torch.zeros(rows, 16) for name in ("state", "belief")}
        carried["previous_action"], out = torch.randn(rows, system.spaces.action_dim), []
        with set_exploration_type(kind):
            for t in range(4):
                step = policy(TensorDict({**views[:, t].to_dict(), **carried}, [rows]))
                carried = {name: step[name] for name in ("state", "belief")}
                carried["previous_action"] = step["next", "previous_action"]
                out += [step["action"], *carried.values()]
        return out

    def same(seed: int) -> torch.Tensor:
        for kind in (ExplorationType.RANDOM, ExplorationType.MODE):
            quick = play(seed, kind)
            assert policy._fused.step() is not None
            with monkeypatch.context() as patch:
                patch.setattr(policy._fused, "step", lambda: None)
                torch.testing.assert_close(quick, play(seed, kind), rtol=1e-4, atol=1e-5)
        return quick[-2]  # the last belief

    first = same(0)
    for _ in range(3):  # the first has a learning rate of zero
        system.update(batch)
    assert not torch.equal(first, same(0))
    system.load_state_dict(before, strict=False)
    torch.testing.assert_close(first, same(0))


def test_half_precision_acts_learns_and_stores_one_belief() -> None:
    spec, rows = Composite(height=Unbounded((1,)), velocity=Unbounded((9,))), 3
    results = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        system = build(spec, SIX).compute_in(precision)
        batch = system.example_batch()
        batch["is_init"][:, 1] = False  # goes on from what replay has stored
        batch["state"] = torch.eye(4)[torch.randint(4, (rows, 6, 4))].flatten(2)
        batch["belief"] = (2 * torch.rand(rows, 6, 16) - 1).bfloat16().float()
        before = batch[:, 0].select("state", "belief")
        here = batch[:, 1].select(*spec.keys(), "is_init", "previous_action")
        acted = system.policy(here.update(before))
        results[precision] = acted, make_update(system, {})(batch)
    for name, rtol in {"loss_kl_dynamics": 0.05, "loss_joint": 0.1, "grad_norm_joint": 0.1}.items():
        found, wanted = (results[precision][1][name] for precision in ("bfloat16", "float32"))
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=0)
    assert all(p.isfinite().all() for p in system.parameters())

    acted, learned = results["bfloat16"][0], results["bfloat16"][1]["replay_context"]
    torch.testing.assert_close(acted["belief"], learned["belief"][:, 0], rtol=0, atol=0.01)
    streams = ReplayStreams(num_streams=1, capacity=rows * 6, **latent_options(system, "compact"))
    for latents in (acted.select("state", "belief"), learned.flatten()):
        assert latents["belief"].dtype == torch.float32 and latents["belief"].any()
        flags = dict.fromkeys(("is_init", "done"), torch.zeros(len(latents), 1, dtype=torch.bool))
        back = streams.get(streams.extend(TensorDict({**latents, **flags}, latents.batch_size), 0))
        assert torch.equal(back["belief"], latents["belief"]) and torch.equal(back["state"], latents["state"])
    assert streams.bytes_by_key()["belief"] == rows * 6 * 16 * 2
    with pytest.raises(ConfigError, match=r"precision is 'half'"):
        system.compute_in("half")


# ---- the environment's side ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_environment_clips_and_rescales_out_of_sight(dtype: torch.dtype) -> None:
    env = TransformedEnv(SerialEnv(2, partial(Steer, dtype=dtype)))
    for transform in unit_actions():
        env.append_transform(transform)
    check_env_specs(env, seed=0)
    drawn = 3 * torch.randn(2, 4, 2)
    current, seen = env.reset(), []
    for action in drawn.unbind(1):
        stepped, current = env.step_and_maybe_reset(current.set("action", action))
        assert torch.equal(stepped["action"], action)
        seen.append(stepped["next", "applied"].float())
    torch.testing.assert_close(torch.stack(seen, 1), rescaled(drawn))
    assert env.action_spec.space.low.eq(-1).all() and env.action_spec.space.high.eq(1).all()


def steering(folder: Path, *overrides: str) -> Trainer:
    """A trainer of dreamer_v3 on two steered worlds, with the collector and replay of every run."""
    settings = {
        **{"steps": 96, "prefill": 24, "train_ratio": 2.0, "checkpoint_every": 1000, "final_episodes": 2},
        "report": "false",
    }
    config = compose(
        "dreamer_v3",
        [*SMALL, f"run_dir={folder}", "threads=1", "controller.horizon=3", "preset=smoke"]
        + [f"training.{key}={value}" for key, value in settings.items()]
        + list(overrides),
    )
    resumed = OmegaConf.select(config, "resume")
    run = RunDirectory.open(folder) if resumed else RunDirectory.create(config)
    return Trainer(config, run, parts=replace(default_parts(), make_env=lambda *_, **__: SerialEnv(2, Steer)))


def test_a_run_keeps_what_was_drawn_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = steering(folder, "training.prefill_actions=random", "training.prefill_windows=0")
    assert first.config.training.replay.sampler == "online"
    summary = first.train()
    assert summary.steps == 96 and summary.updates == (96 - 24) * 2 // 15
    assert summary.episodes == 2 and summary.episode_return is not None

    second = steering(folder, f"resume={folder}", "training.steps=144")
    again = second.train()
    assert again.steps == 144 and again.updates == (144 - 24) * 2 // 15
    for stream in range(2):
        records = second.memory.streams.get(second.memory.streams.ids(stream))
        action, acted = records["previous_action"], ~records["is_init"].squeeze(-1)
        torch.testing.assert_close(records["applied"][acted], rescaled(action)[acted])
        assert not action[~acted].any()
        prefilled = int(acted.cumsum(0).le(12).sum())  # uniform in [-1, 1]
        assert action[:prefilled].abs().max() <= 1 < action[prefilled:].abs().max()
        assert records["phase"].shape == acted.shape and records["phase"].dtype == torch.int64
        assert records["phase"].unique().tolist() == [0, 1, 2]
        assert records["belief"].dtype == records["state"].dtype == torch.float32
        assert records["belief"][acted][:-1].any(-1).all()  # latents of every step but the last
        assert set(records["state"].view(-1, 4).sum(-1).tolist()) <= {0.0, 1.0}


PUBLISHED = [
    ("dreamer_v3", [f"preset={name}"])
    for name in ("paper", "full", "atari", "atari100k", "crafter", "dmc_proprio", "dmc_vision")
]
PUBLISHED += [
    ("dreamer_v3_2024", ["preset=paper", f"domain=v3_2024_{name}"]) for name in ("dmc", "dmc_proprio")
]


@pytest.mark.parametrize(("name", "overrides"), PUBLISHED)
def test_published_protocols_start_with_1024_windows_and_no_random_step(
    name: str, overrides: list[str]
) -> None:
    """T19: the untrained policy acts from the first step on; the learning rate rises over 1000 updates."""
    config = compose(name, overrides)
    training, batch = config.training, config.batch
    assert (training.prefill, training.prefill_actions, training.pretrain) == (0, "policy", 0)
    assert training.prefill_windows == "batch" and batch.size * batch.length == 1024
    assert config.schedule.learners.joint.optimizer.warmup == 1000


def test_the_first_update_finds_as_many_windows_as_a_batch_has_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T19 in a run. Two streams of n records hold 2 (n - 5) windows of 5 + 1: of a batch's 15 with n = 13.

    Those are there after 11 steps of each world, as a reset after the tenth is a record too; the next steps
    are the first that an update is owed for.
    """
    settings = ("prefill=0", "collect_length=1", "train_ratio=15", "steps=26")
    trainer = steering(tmp_path / "run", *(f"training.{setting}" for setting in settings))
    seen, update = [], System.update

    def watched(system: System, batch: TensorDict, *dreams: TensorDict) -> TensorDict:
        seen.append((trainer.step, trainer.memory.streams.num_windows(6)))
        return update(system, batch, *dreams)

    monkeypatch.setattr(System, "update", watched)
    trainer.train()
    assert seen == [(24, 18), (24, 18), (26, 20), (26, 20)]
    for stream in range(2):
        records = trainer.memory.streams.get(trainer.memory.streams.ids(stream)[:13])
        assert records["previous_action"].abs().max() > 1  # drawn by the policy; random ones are in [-1, 1]


def test_latents_of_an_update_go_back_to_where_the_window_came_from(tmp_path: Path) -> None:
    """T17: to every step but the context's, of equal ones the last counts; no other record changes."""
    trainer = steering(tmp_path / "run")
    trainer.train()
    streams, update, seen = trainer.memory.streams, trainer.update, {}

    def watched(batch: TensorDict, *dreams: TensorDict) -> TensorDict:
        seen["index"] = batch["index"].clone()
        seen["context"] = update(batch, *dreams)
        return seen["context"]

    trainer.update = watched
    ids = torch.cat([streams.ids(stream) for stream in range(2)])
    row = {int(one): i for i, one in enumerate(ids)}
    before = streams.get(ids).select("state", "belief").clone()
    trainer._update(1)
    after, expected = streams.get(ids), before.clone()
    index, fresh = seen["index"][:, 1:].flatten().tolist(), seen["context"]["replay_context"].flatten()
    for one, latent in zip(index, fresh, strict=True):
        expected[row[one]] = latent
    for key in ("state", "belief"):
        assert torch.equal(after[key], expected[key]), key
    kept = set(seen["index"][:, 0].tolist()) - set(index)
    changed = {one for one in row if not torch.equal(before["belief"][row[one]], after["belief"][row[one]])}
    assert kept and changed <= set(index) and len(changed) > len(set(index)) / 2
    neighbours = fresh["belief"].view(3, 5, -1)
    assert (neighbours[:, 1:] != neighbours[:, :-1]).any(-1).all()  # one place beside is another value


def test_evaluation_samples_where_the_page_says_so() -> None:
    systems = {"dreamer_v3": True, "dreamer_v3_2023": False, "ls_imagine": False}
    for name, sampled in systems.items():
        assert compose(name).training.evaluate_sampled == sampled
    system = build(Steer().observation_spec, Steer().action_spec)
    env = default_parts().carry(SerialEnv(1, Steer), system)
    torch.nn.init.zeros_(system.actor.mean.weight)  # the mode is zero everywhere
    for sampled in (False, True):
        protocol = EvaluationProtocol("steer", episodes=1, sampled=sampled)
        (trajectory,) = evaluate(system.policy, env, protocol, record=1).trajectories
        assert trajectory["previous_action"].any() == sampled
