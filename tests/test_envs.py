"""The embedded worlds: determinism, exact masks, exact movement, success, crashes, clean directories."""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

from wmkit import registry
from wmkit.envs import (
    TASKS,
    CountingEnv,
    VizdoomEnv,
    VizdoomSimulator,
    make_env,
    read_options,
    task_prompt,
)
from wmkit.envs.guarded import Guard
from wmkit.envs.vizdoom.engine import Engine
from wmkit.envs.vizdoom.meadow import WALK
from wmkit.envs.vizdoom.simulator import shrink
from wmkit.envs.vizdoom.tasks import ACTORS
from wmkit.envs.vizdoom.walker import MaskWalker, measure, random_policy
from wmkit.errors import ConfigError, EnvironmentCrashError
from wmkit.registry import register
from wmkit.systems import compose
from wmkit.training.parts import make_training_env

LOG = "vizdoom/harvest_log_in_plains"


@pytest.fixture
def simulator(request):
    """Simulators that are closed after the test: ``simulator(task, **options)``."""
    made = []

    def make(task="harvest_log_in_plains", **options):
        made.append(VizdoomSimulator(task, **({"world": "small"} | options)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def pose(simulator):
    return simulator._state.game_variables


def engines(process: int | str = "self") -> list[int]:
    """Engines started by a process; threads and processes that end meanwhile are left out."""
    found = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for pid in children.read_text().split():
                with suppress(OSError):
                    if "-iwad" in Path("/proc", pid, "cmdline").read_text():
                        found.append(int(pid))
    return found


def command(process: int) -> str:
    return Path("/proc", str(process), "cmdline").read_text()


# --- the toy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"pixels": True, "truncate": True}, {"action": "continuous"}])
def test_counting_env_counts(options):
    env = CountingEnv(**options)
    check_env_specs(env, seed=0)
    rollout = env.rollout(16, break_when_any_done=False)
    expected = torch.tensor([*range(1, 8), *range(1, 8), 1, 2.0])
    assert torch.equal(rollout["next", "observation"].flatten(), expected)
    assert torch.equal(rollout["next", "reward"], rollout["next", "observation"])
    assert torch.equal(rollout["next", "done"].flatten(), expected == 7)
    end = "truncated" if options.get("truncate") else "terminated"
    assert torch.equal(rollout["next", end], rollout["next", "done"])
    if "pixels" in options:
        assert (rollout["next", "pixels"].float().mean((1, 2, 3)) == expected).all()


# --- the simulator -------------------------------------------------------------------------------


def test_same_seed_same_episodes_whatever_came_before(simulator):
    """Sheep wander by the engine's own generator, so they show whether that is seeded too."""
    actions = np.random.default_rng(0).integers(0, 12, (2, 40))
    first, second = simulator("shear_sheep", seed=5), simulator("shear_sheep", seed=5)

    def episode(one, row, steps):
        frames = [one.reset()["frame"], *(one.step(int(a))["frame"] for a in actions[row, :steps])]
        return np.stack(frames)

    episode(first, 0, 40)
    episode(second, 1, 7)  # another history
    ours = episode(first, 0, 40)
    assert np.array_equal(ours, episode(second, 0, 40))
    again = pickle.loads(pickle.dumps(second))  # what a worker process gets
    again.reset(seed=5)
    assert np.array_equal(ours, episode(again, 0, 40))
    assert not np.array_equal(ours[0], second.reset()["frame"])
    again.close()


@pytest.mark.parametrize("task", TASKS)
def test_goal_mask_is_the_engines_labels_buffer(task, simulator):
    """The masks read from the palette equal, pixel for pixel, what the engine says each actor covers."""
    one = simulator(task, world="full", seed=2)
    one._engine = Engine(objects=task == "shear_sheep", labels=True)
    out = one.reset()
    seen = set()
    for action in np.random.default_rng(1).choice([4, 5, 6, 10, 2, 3], 60).tolist():
        truth: dict[str, np.ndarray] = {}
        for label in one._state.labels:
            if label.object_name in ACTORS:
                kind = ACTORS[label.object_name].kind
                truth[kind] = truth.get(kind, False) | (one._state.labels_buffer == label.value)
        truth = {kind: mask for kind, mask in truth.items() if mask.any()}
        ours = one.labels()
        assert truth.keys() == ours.keys()
        assert all(np.array_equal(truth[kind], ours[kind]) for kind in truth)
        assert np.array_equal(out["goal_mask"][0], truth.get(one.task.kind, np.zeros((160, 256), bool)))
        seen |= truth.keys()
        out = one.step(action)
    assert len(seen) >= 3


def test_movement_is_exact_and_stops_at_once(simulator):
    one = simulator(seed=3, sticky_jump=1)
    one.reset()
    start = pose(one)
    one.step(7)
    one.step(6)  # back and forth
    assert np.allclose(pose(one)[:3], start[:3], atol=0.1)
    one.step(5)
    assert (pose(one)[3] - start[3] + 10) % 360 == pytest.approx(0, abs=0.01)  # right is clockwise
    one.step(7)
    there = pose(one)
    assert math.dist(there[:2], start[:2]) == pytest.approx(WALK, abs=0.1)
    one.step(0)
    assert np.array_equal(pose(one), there)  # no sliding
    for _ in range(9):
        one.step(2)
    assert pose(one)[4] == pytest.approx(-30, abs=0.1)  # looking up, clamped
    for _ in range(9):
        one.step(3)
    assert pose(one)[4] == pytest.approx(50, abs=0.1)


def test_a_jump_holds_jump_and_forward_for_ten_steps(simulator):
    one = simulator(world="full", seed=1)
    one.reset()
    path = [pose(one)]
    for action in (10, *[0] * 12):
        one.step(action)
        path.append(pose(one))
    moved = [math.dist(a[:2], b[:2]) > 1 for a, b in pairwise(path)]
    assert moved == [True] * 10 + [False] * 3
    assert max(p[2] for p in path) > 32  # clears a plateau


def test_pixels_are_the_bilinear_reduction():
    frame = np.random.default_rng(0).integers(0, 256, (3, 160, 256), dtype=np.uint8)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(frame)[None].float(), (64, 64), mode="bilinear", align_corners=False
    )
    assert torch.equal(torch.floor(wanted[0] + 0.5).byte(), torch.from_numpy(shrink(frame)))


@pytest.mark.parametrize("task", TASKS)
def test_tasks_are_neither_trivial_nor_hopeless(task, simulator):
    """A small sample; docs/results/worlds.md has the large one."""
    assert measure(simulator(task, seed=50), MaskWalker(task), 10).successes >= 8
    idle = simulator(task, seed=60, frames=False, masks=False)
    assert measure(idle, random_policy(0), 10).successes <= 4


def test_only_the_right_action_on_the_goal_wins(simulator):
    one = simulator(seed=50, success_terminates=False)
    walker, out = MaskWalker("harvest_log_in_plains"), one.reset()
    assert one.step(1)["reward"] == 0  # nothing in reach
    while not one.on_target():
        out = one.step(walker(out["goal_mask"]))
    assert not one.step(11)["success"]
    out = one.step(1)
    assert out["reward"] == 1 and out["success"] and not out["terminated"]
    out = one.step(1)
    assert out["reward"] == 0 and out["success"]  # the item stays in the bag; it is paid once


def test_a_dead_engine_names_its_world_and_a_reset_recovers(simulator):
    one = simulator(seed=11)
    frame = one.reset()["frame"]
    for pid in engines():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(EnvironmentCrashError, match=r"harvest_log_in_plains.*small.*seed 11.*episode 0"):
        for _ in range(3):
            one.step(6)
    assert np.array_equal(one.reset(seed=11)["frame"], frame)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_an_engine_that_dies_or_hangs_is_replaced_and_its_episode_closed():
    """Also where a call keeps Python itself from running (a reset), and where nothing waits but an end."""
    guard = Guard(LOG, timeout=60, restarts=5)
    env = make_env(LOG, num_envs=2, guard=guard, world="small", frames=False, masks=False)
    data = env.reset()

    def strike(number, patience=60.0):
        one = env._envs[0]._env.simulator
        one.wait_at_most(patience)
        os.kill(next(pid for pid in engines() if one._engine._folder in command(pid)), number)

    for number, patience, words in (
        (signal.SIGKILL, 60.0, "Unexpected ViZDoom instance crash"),
        (signal.SIGSTOP, 0.5, "no answer in"),
    ):
        data = env.step_and_maybe_reset(env.rand_action(data))[1]
        strike(number, patience)
        now, data = env.step_and_maybe_reset(env.rand_action(data))
        reward, truncated = now["next", "reward"].flatten(), now["next", "truncated"].flatten()
        assert reward.isnan().tolist() == truncated.tolist() == [True, False]
        assert words in guard.drain()[0].text
    assert not env.rollout(3)["next", "reward"].isnan().any()
    strike(signal.SIGSTOP, 0.5)
    assert not env.rollout(3)["next", "reward"].isnan().any()  # it begins with a reset
    assert "failed in reset" in guard.drain()[0].text and guard.over is None
    strike(signal.SIGSTOP)
    env.close()
    deadline = time.monotonic() + 60
    while engines() and time.monotonic() < deadline:  # the kernel takes its time
        time.sleep(0.05)
    assert not engines()


def test_no_files_and_no_engine_are_left_behind(tmp_path):
    """Neither by closing, nor by forgetting to, nor by being killed."""
    script = (
        "import os, sys\n"
        "from wmkit.envs import VizdoomSimulator\n"
        "a, b = (VizdoomSimulator('mine_iron_ore', world='small') for _ in range(2))\n"
        "a.reset(); b.reset(); a.close()\n"
        "print(b._engine._game.get_instance_id())\n"
        "if sys.argv[1] == 'kill': os.kill(os.getpid(), 9)\n"
    )
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary)}
    for end in ("forget", "kill"):
        # The engines inherit the pipe: reading to its end waits until they are gone.
        ended = subprocess.run(
            [sys.executable, "-c", script, end], cwd=home, env=environment, capture_output=True, timeout=300
        )
        memory = f"ViZDoom*{ended.stdout.decode().split()[-1]}"
        assert not list(home.iterdir())
        for _ in range(1200):
            if not list(temporary.glob("wmkit-*")) and not list(Path("/dev/shm").glob(memory)):
                break
            signal.sigtimedwait([], 0.05)
        assert not list(temporary.glob("wmkit-*")) and not list(Path("/dev/shm").glob(memory))


# --- through TorchRL -----------------------------------------------------------------------------


def test_specs_and_options():
    env = make_env(LOG, world="small", max_steps=8)
    check_env_specs(env, seed=0)
    rollout = env.rollout(8)
    assert rollout["next", "truncated"][-1] and not rollout["next", "terminated"].any()
    env.close()
    env = make_env(LOG, world="small", frames=False, masks=False)
    assert not {"frame", "goal_mask"} & set(env.reset().keys())
    env.close()


def test_set_seed_restarts_the_stream():
    env = VizdoomEnv("harvest_sand", world="small", max_steps=3, frames=False, masks=False, seed=4)
    ours = torch.stack([env.reset()["pixels"] for _ in range(3)])
    env.set_seed(4)
    assert torch.equal(ours, torch.stack([env.reset()["pixels"] for _ in range(3)]))
    env.close()


@pytest.mark.slow
def test_parallel_equals_serial_and_names_the_world_that_died():
    options = {"num_envs": 2, "seed": 20, "world": "small", "max_steps": 6, "masks": False}
    serial, parallel = make_env(LOG, **options), make_env(LOG, parallel=True, **options)
    assert torch.equal(serial.reset()["frame"], parallel.reset()["frame"])
    serial.close()
    assert parallel.rollout(10, break_when_any_done=False).shape == (2, 10)
    (victim,) = engines(parallel._workers[1].pid)
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(EnvironmentCrashError, match="seed 21"):
        parallel.rollout(2)


@pytest.fixture
def rooms(monkeypatch, tmp_path):
    """Ids of gymnasium's with a namespace, without a version, in a module, and like a name of wmkit's."""
    cartpole = "gymnasium.envs.classic_control.cartpole:CartPoleEnv"
    names = ("rooms/Small-v0", "rooms/Bare", "counting/Small-v0", "Own-v0")
    for name in names:
        gymnasium.register(name, entry_point=cartpole, max_episode_steps=9)
    module = tmp_path / "rooms_to_import.py"
    module.write_text(
        f"import gymnasium\ngymnasium.register('rooms/Late-v0', {cartpole!r}, max_episode_steps=9)"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop(module.stem, None)
    for name in (*names, "rooms/Late-v0"):
        gymnasium.registry.pop(name, None)


@pytest.mark.parametrize("name", ["rooms/Small-v0", "rooms/Bare", "rooms_to_import:rooms/Late-v0"])
def test_any_registered_id_of_gymnasium_stands_alone(rooms, name):
    config = compose("dreamer_v3", ["env=gymnasium", f"env.name={name}", "env.num_envs=1"])
    env = make_training_env(config, None, seed=0)
    assert env.rollout(3)["observation"].shape[-1] == 4
    env.close()
    assert read_options(name)["max_steps"] == 9


def test_names_of_wmkit_go_before_ids_of_gymnasium(rooms, monkeypatch):
    monkeypatch.setitem(registry._targets["env"], "Own-v0", _own)
    assert "pixels" in make_env("Own-v0").observation_spec.keys()
    with pytest.raises(ConfigError, match="'counting/Small-v0'"):
        make_env("counting/Small-v0")
    assert make_env("gym/counting/Small-v0").observation_spec["observation"].shape == (4,)


def test_gymnasium_by_name():
    env = make_env("gym/CartPole-v1", num_envs=2, seed=1)
    assert env.rollout(3)["observation"].shape == (2, 3, 4)
    assert task_prompt("gym/CartPole-v1") == "CartPole v1"
    env.close()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vizdoom/harvest_wood", {}, "did you mean"),
        ("nowhere", {}, "unknown"),
        (LOG, {"world": "huge"}, "small, full"),
        (LOG, {"colour": 1}, "colour"),
        (LOG, {"max_steps": 0}, "at least 1"),
        ("counting", {"colour": 1}, "colour"),
        ("counting", {"num_envs": 0}, "at least 1"),
        ("counting", {"length": "x"}, "options.length is 'x': wanted a whole number"),
        ("gym/Nothing-v0", {}, "gym/Nothing-v0"),
        ("nothing/Here-v0", {}, "gym/nothing/Here-v0.*install the package"),
        ("CartPole", {}, "wanted 'CartPole-v1'; in a run write env=gymnasium env.name=CartPole-v1"),
        ("CartPole-v1", {"world": "full"}, "that its page was chosen .env=gymnasium env.name=CartPole-v1"),
        ("harvest_sand", {}, "in a run write env=harvest_sand"),
        ("Blackjack-v1", {}, r"found observations Tuple\(.*\), wanted arrays.*or set env.pixels=true"),
    ],
)
def test_bad_names_and_options_are_one_sentence(name, options, words):
    with pytest.raises(ConfigError, match=words) as error:
        make_env(name, **options)
    assert "\n" not in str(error.value)


def _own(*, seed):
    return CountingEnv(pixels=True)


def _stubborn(*, seed, **options):
    return int(options["side"])


def test_what_only_the_constructor_knows_of_its_options_is_one_sentence_too():
    register("env", "stubborn", _stubborn)
    with pytest.raises(ConfigError, match=r"'stubborn' .*'side': 'x'") as error:
        make_env("stubborn", side="x")
    assert isinstance(error.value.__cause__, ValueError)
