"""The benchmarks' environments: TorchRL's contract, and each protocol held against its own package."""

from __future__ import annotations

import inspect
import sys
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torchrl.envs import TransformedEnv, check_env_specs
from torchrl.envs.transforms import InitTracker
from typer.testing import CliRunner

from support.play import act, small
from wmkit.cli import app
from wmkit.data import to_sequence
from wmkit.envs import make_env
from wmkit.envs.crafter_env import ACHIEVEMENTS
from wmkit.errors import ConfigError
from wmkit.registry import resolve
from wmkit.systems import compose
from wmkit.systems.spaces import read_spaces
from wmkit.training.collect import EpisodeTracker
from wmkit.training.evaluate import evaluate, means
from wmkit.training.parts import build_system, make_training_env
from wmkit.training.protocol import EvaluationProtocol
from wmkit.training.report import write_report
from wmkit.training.run import RunDirectory

# name, its package, options, whether these end an episode after three steps
ENVIRONMENTS = [
    ("CartPole-v1", "gymnasium", {"max_episode_steps": 3}, True),
    ("gym/CartPole-v1", "gymnasium", {"max_episode_steps": 3, "pixels": True}, True),
    ("atari/breakout", "ale_py", {"max_frames": 12, "limit": "truncate"}, True),
    ("atari100k/pong", "ale_py", {"max_frames": 12}, True),
    ("crafter", "crafter", {"max_steps": 3}, True),
    ("minigrid/MiniGrid-DoorKey-5x5-v0", "minigrid", {"max_steps": 3}, True),
    ("MiniGrid-GoToDoor-5x5-v0", "minigrid", {"max_steps": 3, "pixels": True}, False),  # an action may, too
    ("dmc_proprio/cartpole_swingup", "dm_control", {"action_repeat": 334}, True),
    ("dmc_vision/reacher_easy", "dm_control", {"shadows": False, "image_size": 16}, False),
]


def create(name: str, package: str, **options):
    """The environment, or a skip where its package or a renderer is not there."""
    pytest.importorskip(package)
    try:
        return make_env(name, **options)
    except ConfigError as error:
        if "MUJOCO_GL" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(autouse=True)
def small_worlds(request, monkeypatch):
    """Crafter makes a world at each reset, in a time that grows with its area: a sixteenth here."""
    if "crafter" in request.node.name:
        crafter = pytest.importorskip("crafter")
        small = partialmethod(crafter.Env.__init__, area=(16, 16))
        monkeypatch.setattr(crafter.Env, "__init__", small)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "package", "short", "ends"), ENVIRONMENTS)
def test_specs_ends_and_seeds(name, package, short, ends):
    """Two in a batch: specs hold, limits truncate, ``is_init`` follows ``done``, a seed is a stream."""
    env = TransformedEnv(create(name, package, num_envs=2, **short), InitTracker())
    check_env_specs(env, seed=0)
    torch.manual_seed(0)
    env.set_seed(7)
    batch = env.rollout(5, break_when_any_done=False)
    done, is_init = batch["next", "done"][..., 0], batch["is_init"][..., 0]
    assert is_init[:, 0].all() and torch.equal(is_init[:, 1:], done[:, :-1])
    if ends:
        assert done[0].tolist() == [False, False, True, False, False]
        assert torch.equal(batch["next", "truncated"], batch["next", "done"])
        assert not batch["next", "terminated"].any()
    assert batch["next", "reward"].dtype == torch.float32

    seen = ("pixels", "observation", "objects", "mission")
    keys = [key for key in seen if key in batch.keys()]
    env.reset()  # in the middle of an episode
    for again in (env, TransformedEnv(make_env(name, num_envs=2, **short), InitTracker())):
        torch.manual_seed(0)
        again.set_seed(7)
        other = again.rollout(5, break_when_any_done=False)
        assert all(torch.equal(batch[key], other[key]) for key in keys)
        assert torch.equal(batch["next", "reward"], other["next", "reward"])
    assert any(not torch.equal(batch[key][0], batch[key][1]) for key in keys)
    env.close()
    again.close()


@pytest.mark.parametrize("page", ["atari", "atari100k", "crafter", "dmc_proprio", "dmc_vision"])
def test_the_numbers_of_a_page_are_the_defaults_in_python(page):
    """``env=atari100k`` and ``make_env("atari100k/pong")`` play the same protocol."""
    block = compose("dreamer_v3", [f"env={page}"]).env
    assert block.name.partition("/")[0] == page
    target = resolve("env", page)
    given = target.keywords if isinstance(target, partial) else {}
    signature = inspect.signature(
        getattr(target, "func", target).__init__ if "Env" in repr(target) else target
    )
    defaults = {key: given.get(key, value.default) for key, value in signature.parameters.items()}
    missing = {"self", "game", "task", "seed"}
    assert dict(block.options) == {key: defaults[key] for key in defaults if key not in missing}
    training = compose("dreamer_v3", [f"preset={page}"]).training
    assert (training.prefill, training.pretrain, training.collect_length) == (0, 0, 1)
    assert training.replay.capacity == 5_000_000  # the original's; resets are records too


@pytest.mark.parametrize(
    ("system", "overrides", "apart"),
    [
        ("dreamer_v3", ["preset=dmc_proprio"], True),
        ("dreamer_v3_2024", ["preset=paper", "domain=v3_2024_dmc_proprio"], True),
        ("dreamer_v3", ["preset=cartpole_swingup"], False),  # kept results are of one vector
        ("dreamer_v3", ["preset=reacher_easy"], False),
    ],
)
def test_published_proprio_has_a_decoder_output_for_each_vector(system, overrides, apart):
    """As in danijar/dreamerv3, which clips gradients tensor by tensor."""
    pytest.importorskip("dm_control")
    config = compose(system, [*overrides, "size=1m", "env.task=walker_walk", "env.num_envs=1"])
    env = make_training_env(config, None, seed=0)
    decoder = build_system(config, env, torch.device("cpu")).world_model.decoder
    names = ["height", "orientations", "velocity"] if apart else ["observation"]
    feature = torch.zeros(1, 512 + 32 * 4)
    assert list(decoder.predict(feature)) == names


def test_presets_choose_their_environment_and_give_way():
    assert compose("dreamer_v3", ["preset=cartpole"]).env.name == "CartPole-v1"
    config = compose("dreamer_v3", ["preset=atari100k", "env.game=breakout", "size=12m", "env.num_envs=2"])
    assert (config.env.name, config.size.deter, config.env.num_envs) == ("atari100k/breakout", 2048, 2)


# --- DeepMind Control ----------------------------------------------------------------------------


def test_proprio_joins_the_tasks_numbers_by_name_and_sums_repeated_rewards():
    suite = pytest.importorskip("dm_control.suite")
    env = make_env("dmc_proprio/walker_walk", action_repeat=2)
    env.set_seed(5)
    oracle = suite.load("walker", "walk", task_kwargs={"random": np.random.RandomState(5)})
    oracle.reset()  # seeding resets

    def joined(timestep):
        return torch.cat(
            [torch.tensor(v).reshape(-1) for _, v in sorted(timestep.observation.items())]
        ).float()

    current, truth = env.reset(), oracle.reset()
    assert current["observation"].shape == (24,) and torch.equal(current["observation"], joined(truth))
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 6)).astype(np.float32):
        stepped = env.step(current.set("action", torch.from_numpy(action)))["next"]
        steps = [oracle.step(action), oracle.step(action)]
        assert torch.equal(stepped["observation"], joined(steps[-1]))
        assert stepped["reward"].item() == pytest.approx(sum(step.reward for step in steps))
    assert env.action_spec.dtype == torch.float32 and env.action_spec.space.low.eq(-1).all()


def test_an_episode_is_a_thousand_control_steps_and_never_terminates():
    pytest.importorskip("dm_control")
    batch = make_env("dmc_proprio/cartpole_swingup", action_repeat=10).rollout(200)
    assert len(batch) == 100 and batch["next", "truncated"][-1] and not batch["next", "terminated"].any()


def test_proprio_never_draws(monkeypatch):
    pytest.importorskip("dm_control")
    from dm_control.mujoco.engine import Camera, Physics

    def draw(*args, **kwargs):
        raise AssertionError("drawn")

    monkeypatch.setattr(Physics, "render", draw)
    monkeypatch.setattr(Camera, "render", draw)
    env = make_env("dmc_proprio/reacher_easy", num_envs=2)
    check_env_specs(env)
    assert env.rollout(3)["observation"].shape == (2, 3, 6)
    with pytest.raises(ConfigError, match="drawn"):
        make_env("dmc_vision/reacher_easy")


def test_vision_shows_only_the_last_control_step_by_the_benchmarks_camera():
    suite = pytest.importorskip("dm_control.suite")
    options = {"image_size": 16, "shadows": False, "action_repeat": 2}
    env = create("dmc_vision/quadruped_walk", "dm_control", **options)
    env.set_seed(5)
    oracle = suite.load("quadruped", "walk", task_kwargs={"random": np.random.RandomState(5)})
    quality = oracle.physics.model.vis.quality
    quality.shadowsize = quality.offsamples = 0
    oracle.reset()
    oracle.reset()
    current = env.reset()
    assert set(env.observation_spec.keys()) == {"pixels"}
    action = np.full(12, 0.5, np.float32)
    for _ in range(3):
        stepped = env.step(current.set("action", torch.from_numpy(action)))["next"]
        reward = oracle.step(action).reward + oracle.step(action).reward
        wanted = oracle.physics.render(16, 16, camera_id=2).transpose(2, 0, 1)
        assert np.array_equal(stepped["pixels"].numpy(), wanted)
        assert stepped["reward"].item() == pytest.approx(reward)


# --- Crafter, MiniGrid, gymnasium ----------------------------------------------------------------


def test_crafter_death_terminates_even_at_the_limit_and_health_pays():
    pytest.importorskip("crafter")
    env = make_env("crafter", max_steps=3)
    env.set_seed(1)
    current, noop = env.reset(), torch.nn.functional.one_hot(torch.tensor(0), 17)
    env._game._player.health = 5  # of 9
    stepped = env.step(current.set("action", noop))["next"]
    assert stepped["reward"].item() == pytest.approx(-0.4) and not stepped["done"]
    env.step(current)
    env._game._player.health = 0
    stepped = env.step(current)["next"]
    assert stepped["done"] and stepped["terminated"] and not stepped["truncated"]


def test_crafter_episodes_name_what_they_unlocked_and_give_the_score(tmp_path):
    """Two of 22 achievements, in the first of four episodes of three steps."""
    crafter = pytest.importorskip("crafter")
    assert list(ACHIEVEMENTS) == crafter.constants.achievements
    env = make_env("crafter", num_envs=2, max_steps=3)
    acted = 0

    def policy(tensordict):
        nonlocal acted
        acted += 1
        if acted == 2:
            env._envs[0]._game._player.achievements.update(wake_up=2, eat_cow=1)
        return tensordict.set("action", torch.eye(17, dtype=torch.int64)[[0, 0]])

    tracker, again = EpisodeTracker(2), EpisodeTracker(2)
    batch = env.rollout(6, policy, break_when_any_done=False)
    trained = [episode for _, episode in tracker.add(batch)]
    assert "achievements" not in to_sequence(batch)[0].keys()  # nor in the replay
    acted = 0
    evaluation = evaluate(policy, env, EvaluationProtocol("crafter", 4))
    score = 26 ** (2 / 22) - 1  # each at 25 percent
    again.load_state_dict(tracker.state_dict())
    for episodes in (trained, evaluation.episodes, list(again.recent)):
        assert [episode.achievements for episode in episodes] == [["eat_cow", "wake_up"], [], [], []]
        assert means(episodes)["crafter_score"] == pytest.approx(score)
    run = RunDirectory.create(
        OmegaConf.create({"run_dir": str(tmp_path / "run"), "env": {"name": "crafter"}})
    )
    for episode in trained[:2]:
        run.episode(6, "train", episode.line())
    run.score(6, "final", evaluation.numbers(), {"env": "crafter", "episodes": 4})
    assert [line["achievements"] for line in run.episodes()] == [["eat_cow", "wake_up"], []]
    page = write_report(run).read_text(encoding="utf-8")
    assert f"{score:.1f} %</b><span>Crafter score, in evaluation" in page
    assert f"{51 ** (2 / 22) - 1:.1f} %</b><span>Crafter score, all training episodes" in page
    run.close()
    specs = env.observation_spec[0], env.full_action_spec["action"][0]
    assert list(read_spaces(*specs, images="auto", vectors="auto", system="any").shapes) == ["pixels"]


def test_minigrid_shows_the_squares_ahead_as_classes_and_success_terminates():
    pytest.importorskip("minigrid")
    env = make_env("MiniGrid-Empty-5x5-v0")
    current = env.reset()
    for action in (2, 2, 1, 2):  # forward, forward, right, forward
        stepped = act(env, current, action)
        image = env._game.unwrapped.gen_obs()["image"]
        shown = torch.stack([stepped[key] for key in ("objects", "colors", "states")], -1)
        assert np.array_equal(shown.numpy(), image) and not stepped["success"]
    assert stepped["direction"].item() == 1
    stepped = act(env, current, 2)
    assert stepped["success"] and stepped["terminated"] and not stepped["truncated"]
    assert stepped["reward"].item() == pytest.approx(1 - 0.9 * 5 / 100)
    assert "mission" not in stepped.keys()


def test_minigrid_missions_are_classes():
    pytest.importorskip("minigrid")
    env = make_env("MiniGrid-GoToDoor-5x5-v0")
    numbers = {}
    for _ in range(40):
        number = env.reset()["mission"].item()
        assert numbers.setdefault(env._game.unwrapped.mission, number) == number
    assert len(set(numbers.values())) == len(numbers) == env.observation_spec["mission"].n == 6


def test_games_registered_with_gymnasium_are_drawn_by_their_id():
    pytest.importorskip("ale_py")
    config = compose(
        "dreamer_v3", ["env=gymnasium", "env.name=ALE/Pong-v5", "env.pixels=true", "env.num_envs=1"]
    )
    env = make_training_env(config, None, seed=0)
    assert env.rollout(2)["pixels"].shape == (1, 2, 3, 64, 64)
    env.close()


def test_gymnasium_pictures_are_what_the_environment_draws():
    import gymnasium

    env = make_env("CartPole-v1", pixels=True, image_size=48)
    oracle = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    env.set_seed(4)
    oracle.reset(seed=4)
    current = env.reset()  # TorchRL's seeding resets, too
    oracle.reset()
    assert np.array_equal(current["pixels"].numpy(), small(oracle.render(), 48).transpose(2, 0, 1))
    stepped = act(env, current, 1)
    oracle.step(1)
    assert np.array_equal(stepped["pixels"].numpy(), small(oracle.render(), 48).transpose(2, 0, 1))
    assert set(env.observation_spec.keys()) == {"pixels"}


# --- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "package", "words"),
    [
        ("atari100k/pongg", "ale_py", "did you mean 'pong'"),
        ("dmc_proprio/walker_wal", "dm_control", "'walker_walk'"),
        ("MiniGrid-DoorKey-5x5-v9", "minigrid", "'MiniGrid-DoorKey-5x5-v0'"),
        ("CartPole-v7", "gymnasium", "CartPole-v7"),
        ("pong", "ale_py", "wanted 'atari100k/pong' or .* in a run write env=atari100k env.game=pong or "),
        (
            "walker_walk",
            "dm_control",
            "in a run write env=dmc_proprio env.task=walker_walk or env=dmc_vision",
        ),
        ("minigrid-empty-5x5", "minigrid", "env=minigrid env.name=MiniGrid-Empty-5x5-v0"),
        ("atari/pong", "ale_py", "sticky=2"),
    ],
)
def test_unknown_names_suggest_near_ones(name, package, words):
    pytest.importorskip(package)
    with pytest.raises(ConfigError, match=words) as error:
        make_env(name, **({"sticky": 2} if name == "atari/pong" else {}))
    assert "\n" not in str(error.value)


EXTRAS = [
    ("atari", "ale_py", "atari100k"),
    ("crafter", "crafter", "crafter"),
    ("dmc", "dm_control", "dmc_proprio"),
    ("minigrid", "minigrid", "minigrid"),
]


@pytest.mark.parametrize(("extra", "package", "page"), EXTRAS)
def test_a_missing_extra_is_one_sentence_and_exit_code_2(extra, package, page, monkeypatch, tmp_path):
    for module in [key for key in sys.modules if key.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    run = f"run_dir={tmp_path / 'run'}"
    result = CliRunner().invoke(app, ["train", "dreamer_v3", f"env={page}", "preset=smoke", run])
    (line,) = result.stderr.strip().splitlines()
    assert result.exit_code == 2 and f'pip install "wmkit[{extra}]"' in line
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f"\n{extra} = [" in text
