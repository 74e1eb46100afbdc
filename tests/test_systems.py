"""Systems: pages, parameter counts, ordinary cases that used to crash, bad input, saving."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded, UnboundedDiscrete
from torchrl.envs import ExplorationType, InitTracker, TransformedEnv, set_exploration_type

import wmkit
from support.images import build
from wmkit.envs.counting import CountingEnv
from wmkit.errors import CheckpointError, ConfigError, SpecError
from wmkit.nn import LayerStyle
from wmkit.systems import build_from, compose, page_files
from wmkit.systems.page_files import choices, defaults, find_page
from wmkit.training.evaluate import Evaluation
from wmkit.training.report import gather_evidence
from wmkit.training.run import RunDirectory

PIXELS = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))


def assert_one_sentence(error: Exception, *named: str) -> None:
    """What a user reads: one line, which names what was given or what to give instead."""
    message = str(error)
    assert "\n" not in message and all(word in message for word in named), message


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts() -> None:
    small = wmkit.build(
        "ls_imagine", observation_spec=PIXELS, action_spec=OneHot(12), overrides=["size=small"]
    )
    assert parameters(small.world_model) == 11_584_706
    with torch.device("meta"):
        paper = wmkit.build(
            "ls_imagine",
            observation_spec=PIXELS,
            action_spec=OneHot(12),
            overrides=["size=paper"],
        )
    assert parameters(paper.world_model) == 235_883_650
    assert parameters(paper.actor) == 9_459_724
    assert parameters(paper.critic) == 6_556_927


def test_the_full_budget_is_the_systems_own() -> None:
    """Joined with any environment: of what is published for that one at least a half, at most the double."""
    for env in ("crafter", "dmc_proprio", "dmc_vision"):
        full = compose("dreamer_v3", ["preset=full", f"env={env}"]).training
        published = compose("dreamer_v3", [f"preset={env}"]).training
        assert 0.5 <= full.train_ratio / published.train_ratio <= 2
        assert {**full, "train_ratio": 0, "final_episodes": 0} == {
            **published, "train_ratio": 0, "final_episodes": 0
        }  # fmt: skip
    for name, domain in (("dreamer_v2", "v2_crafter"), ("dreamer_v3_2024", "v3_2024_dmc")):
        full, published = (compose(name, [given]).training for given in ("preset=full", f"domain={domain}"))
        assert full.train_ratio == published.train_ratio
    updates = [
        page.training.train_ratio / (page.batch.size * page.batch.length)
        for page in (compose("dreamer_v1", [f"preset={preset}"]) for preset in ("full", "paper"))
    ]
    assert updates == [100 / 500] * 2
    both = [dict(compose(name, ["preset=full"]).training) for name in ("ls_imagine", "dreamer_v3_2023")]
    assert both[0].pop("pairs") and both[0] == both[1] and both[0]["train_ratio"] == 16


@pytest.mark.parametrize("name", ["ls_imagine", "dreamer_v3_2023"])
@pytest.mark.parametrize("extra", [[], ["backbone=gru"]])
def test_an_update_learns_and_is_reproducible(name: str, extra: list[str]) -> None:
    systems = [build(name, *extra) for _ in range(2)]
    batch = systems[0].example_batch()
    first = {}
    for system in systems:
        torch.manual_seed(5)
        metrics = [system.update(batch) for _ in range(3)]
        first[system] = metrics
        assert all(torch.isfinite(v).all() for v in metrics[-1].exclude("replay_context").values())
        assert metrics[-1]["loss_world_model"] < metrics[0]["loss_world_model"]
        assert metrics[0]["replay_context", "belief"].shape == (*batch.batch_size, 16)
    a, b = systems
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_state_dict_holds_all_of_a_resume(tmp_path: Path) -> None:
    source, target = build(), build("ls_imagine", "seed=3")
    batch = source.example_batch()
    source.update(batch)
    torch.save(source.state_dict(), tmp_path / "state.pt")
    target.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    results = []
    for system in (source, target):
        torch.manual_seed(1)
        results.append(system.update(batch)["loss_world_model"])
    assert torch.equal(*results)
    assert all(torch.equal(x, y) for x, y in zip(source.parameters(), target.parameters(), strict=True))


def test_a_page_of_an_older_version_says_so() -> None:
    config = compose("dreamer_v3", ["preset=smoke"])
    OmegaConf.set_struct(config, False)
    config["behaviour"] = config.pop("controller")
    with pytest.raises(ConfigError) as error:
        build_from(config, PIXELS, OneHot(4))
    assert_one_sentence(error.value, "behaviour", "controller", "load_state_dict")


def test_moments_are_those_of_the_same_parameters() -> None:
    """Optimisers know parameters by their order, which checkpoints keep: it must not change."""
    source, target = build(), build()
    parts = [name for name, _ in source.world_model.named_children()]
    assert parts == ["encoder", "dynamics", "decoder", "heads", "projections"]
    source.update(source.example_batch())
    state = source.state_dict()
    moments = state["schedule._extra_state"]["actor"]["state"]
    moments[0], moments[1] = moments[1], moments[0]
    with pytest.raises(CheckpointError, match="parameter 0"):
        target.load_state_dict(state)


@pytest.mark.parametrize("case", ["no key", "no view", "closed gate", "all zoomed", "compat"])
def test_ordinary_cases(case: str) -> None:
    overrides = {"closed gate": ["controller.hooks.gate.prob=0"], "compat": ["compat=released"]}.get(case, [])
    system = build("ls_imagine", *overrides)
    batch = system.example_batch()
    if case == "no key":
        batch = batch.exclude("zoomed", "is_zoomed", "jump", "jump_steps", "jump_return", "jump_resolved")
    elif case == "no view":
        batch["is_zoomed"] = torch.zeros_like(batch["is_zoomed"])
    elif case == "all zoomed":
        batch["is_zoomed"] = torch.ones_like(batch["is_zoomed"])
    metrics = system.update(batch)
    assert all(torch.isfinite(v).all() for v in metrics.exclude("replay_context").values())
    if case in ("no key", "no view"):
        assert metrics["zoomed_fraction"] == 0 and metrics["loss_jump_steps"] == 0
    if case == "all zoomed":
        assert metrics["zoomed_dropped"] == pytest.approx(1 - 4 / 15)
    if case == "closed gate":
        assert metrics["jump_rate"] == 0


def test_masked_rows_change_nothing() -> None:
    """Rows set aside for views that are not there weigh nothing: any capacity gives the same loss."""
    losses = []
    for capacity in (0.2, 1.0):
        system = build("ls_imagine", f"objectives.branches.capacity={capacity}")
        batch = system.example_batch()
        batch["is_zoomed"] = torch.zeros_like(batch["is_zoomed"])
        torch.manual_seed(0)
        scored = system._score(system.scene(batch), {})
        losses.append(sum(loss.value for loss in scored.values()))
    torch.testing.assert_close(*losses)


def test_counting_world_has_no_off_by_one() -> None:
    """Observation and reward are both t: a model that sees o_t must say reward t, and imagine t + 1 next."""
    torch.manual_seed(0)
    env = CountingEnv()
    system = wmkit.build(
        "dreamer_v3_2023",
        observation_spec=env.observation_spec,
        action_spec=env.action_spec,
        overrides=[
            "preset=paper",
            "size.deter=32",
            "size.groups=8",
            "size.classes=8",
            "size.hidden=32",
            "size.units=32",
            "batch.size=16",
            "batch.length=16",
            "learning_rate.world_model=3e-3",
        ],
    )
    count = torch.arange(16 * 40).reshape(16, 40) % 8  # 8 records: t = 0..7, the last one terminal
    records = TensorDict(
        {
            "observation": count.unsqueeze(-1).float(),
            "reward": count.unsqueeze(-1).float(),
            "is_init": (count == 0).unsqueeze(-1),
            "terminated": (count == 7).unsqueeze(-1),
            "done": (count == 7).unsqueeze(-1),
        },
        [16, 40],
    )
    actions = F.one_hot(
        torch.randint(0, system.spaces.action_dim, (16, 40)), system.spaces.action_dim
    ).float()
    records["previous_action"] = actions * (count > 0).unsqueeze(-1)
    for _ in range(300):
        offset = int(torch.randint(0, 24, ()))
        losses = system._score(system.scene(records[:, offset : offset + 16]), {})
        system.schedule.learn(("world_model",), losses)
    with torch.no_grad():
        seen = system.world_model.observe(system.fill(records[:, :24])).latent
        reward = system.world_model.predict("reward", seen).mean
        torch.testing.assert_close(reward, records["reward"][:, :24], atol=0.75, rtol=0)
        going = system.world_model.continuation(seen) > 0.5
        assert (going == ~records["terminated"][:, :24]).float().mean() > 0.95  # off by one: 0.75 at best
        start = TensorDict({"state": seen.state[:, 2], "belief": seen.belief[:, 2]}, [16])
        imagined = system.imagine(start, 3)["next", "reward"].squeeze(-1)
        torch.testing.assert_close(imagined, torch.tensor([3.0, 4.0, 5.0]).expand(16, 3), atol=0.75, rtol=0)


def test_policy_runs_in_a_collector_and_carries_its_latents() -> None:
    base = CountingEnv(pixels=True)
    system = wmkit.build(
        "dreamer_v3_2023",
        observation_spec=base.observation_spec,
        action_spec=base.action_spec,
        overrides=["preset=paper", "size.deter=16", "size.groups=4", "size.classes=4", "size.depth=4"],
    )
    env = TransformedEnv(base, InitTracker())
    env.append_transform(system.policy.make_tensordict_primer())
    collector = Collector(env, system.policy, frames_per_batch=16, total_frames=16, trust_policy=True)
    batch = next(iter(collector))
    collector.shutdown()
    is_init = batch["is_init"].squeeze(-1)
    assert is_init.sum() == 3
    carried = batch["previous_action"][1:][~is_init[1:]]
    torch.testing.assert_close(carried, batch["action"].float()[:-1][~is_init[1:]])
    assert (batch["previous_action"][is_init] == 0).all()
    assert batch["belief"].abs().sum() > 0
    with set_exploration_type(ExplorationType.MODE):
        assert env.rollout(3, system.policy)["action"].sum(-1).eq(1).all()


def test_bad_spaces_are_refused_in_one_sentence() -> None:
    def attempt(spec: Composite, action: object = None) -> str:
        with pytest.raises(SpecError) as error:
            wmkit.build("ls_imagine", observation_spec=spec, action_spec=action or OneHot(12))
        return str(error.value)

    assert "floats of shape [2] from -1 to 1, wanted OneHot" in attempt(PIXELS, Bounded(-1, 1, (2,)))
    assert "one choice of 4 values (Categorical), wanted OneHot" in attempt(PIXELS, Categorical(4))
    wrong = Composite(pixels=UnboundedDiscrete((64, 64, 3), dtype=torch.uint8))
    assert "shape [64, 64, 3]: wanted [channels, 64, 64]" in attempt(wrong)
    assert "dtype torch.int64: wanted torch.uint8" in attempt(
        Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.int64))
    )
    assert "reads 'pixels', which the environment does not show" in attempt(
        Composite(observation=Unbounded(4))
    )


@pytest.mark.parametrize("name", wmkit.available())
def test_all_that_is_offered_composes(name: str) -> None:
    """Every choice of every group once, beside choices of the others."""
    offered = ("preset", "size", "backbone", "domain", "compat", "affordance", "objectives")
    groups = [group for group in offered if group == "preset" or group in defaults(name)]
    for chosen in zip_longest(*([f"{group}={one}" for one in choices(group, name)] for group in groups)):
        assert compose(name, [override for override in chosen if override]).system == name


@pytest.mark.parametrize(
    ("system", "override", "instead"),
    [
        ("twm", "size=100m", "micro, paper, tiny"),
        ("storm", "preset=crafter", "atari100k"),
        ("dreamer_v1", "domain=v2_dmc", "v1_atari"),
        ("dreamer_v3", "domain=v2_dmc", "domain"),  # which has none at all
    ],
)
def test_what_belongs_to_other_systems_is_refused(system: str, override: str, instead: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose(system, [override])
    assert_one_sentence(error.value, system, override.partition("=")[0], instead)


def test_every_setting_of_an_environments_page_can_be_given() -> None:
    pages = Path(wmkit.systems.__file__).parent.glob("conf/env/*.yaml")
    offered = {key: (page.stem, value) for page in pages for key, value in OmegaConf.load(page).items()}
    assert {"timeout", "restarts"} < set(offered)
    for key, (page, value) in offered.items():
        if isinstance(value, (int, str, type(None))):
            given = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
            assert compose("dreamer_v3_2023", [f"env={page}", f"env.{key}={given}"]).env[key] == value


def test_a_style_on_a_page_is_that_of_its_layers() -> None:
    def activations(system: wmkit.systems.System) -> set[str]:
        system.world_model.dynamics.backbone = torch.nn.Identity()  # which has a style of its own
        return {
            m.style.activation for m in system.modules() if isinstance(getattr(m, "style", None), LayerStyle)
        }

    for name, overrides in (
        ("dreamer_v3", ["style.activation=relu"]),
        ("twm", ["plain.activation=relu", "orthogonal.activation=relu"]),
        ("storm", ["plain.activation=elu"]),
    ):
        with torch.device("meta"):
            found = wmkit.build(name, observation_spec=PIXELS, action_spec=OneHot(4), overrides=overrides)
        assert activations(found) == {overrides[0].partition("=")[2]}, name
    with pytest.raises(ConfigError, match=r"style\.norm"):
        compose("dreamer_v3", ["critic.style.norm=layer"])
    with pytest.raises(ConfigError, match="found no trunk there"):
        compose("dreamer_v3", ["trunk.units=3"])
    with pytest.raises(ConfigError, match=r"_trunk\.units"):
        compose("dreamer_v3", ["_trunk.units=3"])


@pytest.mark.parametrize(
    ("system", "override", "named"),
    [
        ("ls_imagin", "seed=1", "ls_imagine"),
        ("ls_imagine", "size=smal", "small"),
        ("ls_imagine", "backbone=lstmm", "lstm"),
        ("ls_imagine", "size", "size"),
        ("ls_imagine", "controller.horizn=3", "controller.horizon"),
        ("ls_imagine", "controller.horizon.x=3", "controller.horizon"),
        ("ls_imagine", "critic.outscal=3", "+critic.outscal"),
        ("ls_imagine", "seed=[1", "seed=[1"),
        ("ls_imagine", "~affordance", "affordance=NAME"),
        ("ls_imagine", "~critic.units", "~critic.units=VALUE"),
        ("twm", "system=storm", "wmkit train storm"),
        ("twm", "run_dir=[a]", "run_dir"),
        ("ls_imagine", "affordance.model={a: 1}", "affordance.model"),
        ("ls_imagine", "seed=${nope}", "nope"),
        ("dreamer_v3", "learning_rate.world_model=1", "joint"),
        ("dreamer_v3", "learning_rate=1e-4", "learning_rate.joint"),
    ],
)
def test_bad_configuration_is_refused_in_one_sentence(system: str, override: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose(system, [override])
    assert_one_sentence(error.value, named)


def test_paths_are_read_as_they_stand() -> None:
    for text, path in (
        ("läufe/2", "läufe/2"),
        ("größe=3, seed=1", "größe=3, seed=1"),
        ("007", "007"),
        ("1e3", "1e3"),
        ("int(3)", "int(3)"),
        ("it's", "it's"),
        ("C:\\läufe\\", "C:\\läufe\\"),
        ("'a b'", "a b"),
        ("'[a]'", "[a]"),
        ("'ü'b'", "ü'b"),
        ("ö/${seed}", "ö/3"),
        ("null", None),
    ):
        page = compose("ls_imagine", ["seed=3", f"run_dir={text}", f"affordance.model={text}"])
        assert (page.run_dir, page.affordance.model) == (path, path), text


@pytest.mark.parametrize("taken", [page_files.load, page_files.load_whole])
def test_a_page_belongs_to_who_asked(taken: Callable[[Path], Any]) -> None:
    path = find_page("dreamer_v3")
    assert path is not None
    taken(path)["batch"].clear()
    assert taken(path)["batch"]["size"] == 16


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("controller.horizon=abc", "controller.horizon"),
        ("controller.horizon=0", "controller.horizon"),
        ("actor.discrete.unimix=1", "unimix"),
        ("batch.length=2.5", "batch.length"),
        ("batch.length=1", "controller"),  # whose critic on replay needs more
        ("world_model.heads.reward=null", "reward"),
        ("discount=abc", "continuation.discount"),
        ("size.units=abc", "size.units"),
        ("style.norm=abc", "style.norm"),
        ("critic=null", "critic"),
        ("observations.images=vector", "observations.images"),
        ("+critic.colour=red", "critic.colour"),
        ("controller._target_=wmkit.control.Nothing", "wmkit.control.Nothing"),
        ("world_model.decoder=null", "decoder"),  # Reconstruction wants one,
        ("controller._target_=wmkit.control", "controller._target_"),
    ],
)
def test_values_that_no_part_takes_are_refused_in_one_sentence(override: str, named: str) -> None:
    spec = Composite(vector=Unbounded((3,)))
    with torch.device("meta"), pytest.raises(ConfigError) as error:
        overrides = ["preset=smoke", "size=1m", override]
        wmkit.build("dreamer_v3", observation_spec=spec, action_spec=OneHot(4), overrides=overrides)
    assert_one_sentence(error.value, named)


@pytest.mark.parametrize(
    ("system", "enough", "too_short", "words"),
    [
        (
            "twm",
            "batch.length=3",
            "batch.length=2",
            "batch.length is 2: wanted 3 or more, as objectives.",
        ),
        (
            "storm",
            "batch.length=10",
            "batch.length=9",
            "batch.length is 9: wanted 10 or more, as controller.starts",
        ),
        (
            *("twm", "observations.frames.count=4", "observations.frames.count=5"),
            "frames.count is 5 and batch.context 3: wanted 4 or more records of context",
        ),
    ],
)
def test_windows_too_short_for_losses_or_stacks_are_refused(system, enough, too_short, words) -> None:
    def build_with(override: str, seen: Composite) -> wmkit.systems.System:
        small = [f"size={system}/micro", "batch.size=2", "controller.starts.count=4", override]
        return wmkit.build(system, observation_spec=seen, action_spec=OneHot(4), overrides=small)

    fitting = build_with(enough, PIXELS)
    fitting.update(*fitting.example_batches())
    with pytest.raises(ConfigError, match=re.escape(words)):
        build_with(too_short, PIXELS)
    if "frames" in too_short:  # numbers are not stacked
        build_with(too_short, Composite(observation=Unbounded((3,))))


@pytest.mark.parametrize("name", ["dreamer_v3", "ls_imagine", "twm"])
def test_a_page_without_a_decoder_learns_and_shows_no_pictures(name: str, tmp_path: Path) -> None:
    place = "objectives.branches.short" if name == "ls_imagine" else "objectives"
    size = [f"size={name}/micro", "controller.starts.count=4"] if name == "twm" else ["size=tiny"]
    undecoded = [*size, "batch.size=2", "world_model.decoder=null"]
    with pytest.raises(ConfigError) as error:
        wmkit.build(name, observation_spec=PIXELS, action_spec=OneHot(4), overrides=undecoded)
    assert_one_sentence(error.value, "objectives.", "decoder")
    undecoded += [f"{place}.reconstruction=null", "batch.length=8"]
    system = wmkit.build(name, observation_spec=PIXELS, action_spec=OneHot(4), overrides=undecoded)
    batch = system.example_batch()
    metrics = system.update(batch)
    assert metrics["loss_world_model"].isfinite() and "loss_pixels" not in metrics.keys()
    assert "pixels" not in system.open_loop(batch, 5)
    run = RunDirectory.create(OmegaConf.create({"system": name, "run_dir": str(tmp_path / "run")}))
    gather_evidence(run, system, Evaluation([], [system.example_batch()[0]]))
    assert not (run.path / "evidence" / "imagination.npz").exists()
    run.close()


def test_bad_batches_are_refused_in_one_sentence() -> None:
    system = build()
    batch = system.example_batch()
    with pytest.raises(SpecError, match=r"'reward' .*\[3, 5, 1\]"):
        system.update(batch.clone().set("reward", batch["reward"].squeeze(-1)))
    with pytest.raises(SpecError, match="no 'previous_action'"):
        system.update(batch.exclude("previous_action"))
    with pytest.raises(SpecError, match=r"batch size \[15\]: wanted \[B, T\]"):
        system.update(batch.reshape(-1))
    with pytest.raises(SpecError, match=r"of torch\.float64"):
        system.update(batch.clone().set("reward", batch["reward"].double()))


@pytest.mark.parametrize(
    ("name", "meant"), [("CartPole-v1", "env=gymnasium env.name=CartPole-v1"), ("nowhere", "env=NAME")]
)
def test_an_environment_given_for_its_page_names_the_page(name, meant):
    with pytest.raises(ConfigError, match=f"env '{name}'") as error:
        compose("dreamer_v3", [f"env={name}"])
    assert meant in str(error.value)
