"""LS-Imagine's tasks over the real craftground package, against a stand-in for the game that it starts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

from wmkit.envs import make_env
from wmkit.envs.craftground import COUNTS, commands, to_action
from wmkit.envs.minedojo import TASKS, Keyboard
from wmkit.envs.minedojo.env import MineDojoEnv
from wmkit.errors import ConfigError, EnvironmentCrashError
from wmkit.systems import compose

NOOP, ATTACK, LOOK_DOWN, JUMP = 0, 1, 3, 10


def test_what_wins_is_what_won_in_the_older_game():
    won = {task.target for task in TASKS.values()}
    assert set(COUNTS.values()) <= won
    assert COUNTS["jungle_log"] == "log" and "acacia_log" not in COUNTS
    assert COUNTS["raw_iron"] == "iron_ore" and COUNTS["black_wool"] == "wool"
    typed = commands(TASKS["shear_sheep"], np.random.default_rng(0), quick=True)
    assert any(re.fullmatch(r"summon minecraft:sheep ~-?\d+ ~1 ~-?\d+", line) for line in typed)
    assert "item replace entity @p weapon.mainhand with minecraft:shears" in typed
    assert [to_action(Keyboard().press(i))["attack"] for i in (NOOP, ATTACK)] == [False, True]


def test_its_pages_say_what_minedojos_say():
    for task in TASKS:
        ours, theirs = (
            compose("ls_imagine", [f"env={family}/{task}"]).env for family in ("craftground", "minedojo")
        )
        same = ("max_steps", "on_success", "item_bonus", "sticky_jump", "pitch_limit", "fast_reset")
        assert {key: ours.options[key] for key in same} == {key: theirs.options[key] for key in same}
        assert ours.name == f"craftground/{task}" and theirs.name == f"minedojo/{task}"


def test_without_the_package_it_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "craftground", None)
    with pytest.raises(ConfigError, match=r"wmkit\[craftground\]"):
        make_env("craftground/harvest_sand")


@pytest.fixture
def game(tmp_path, monkeypatch):
    """The package with another program behind ``gradlew``; the file in which that notes what it is told."""
    environment = pytest.importorskip("craftground.environment.environment")
    log = tmp_path / "told.jsonl"
    script = tmp_path / "gradlew"
    stand_in = Path(__file__).parent / "support" / "craftground_game.py"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} {stand_in} {log}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setattr(environment, "resolve_runtime_env_path", lambda version: str(tmp_path))
    monkeypatch.chdir(tmp_path)  # it writes a log there
    return log


def told(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def act(env, td, action):
    td.set("action", torch.nn.functional.one_hot(torch.tensor(action), 12))
    return env.step(td)["next"]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pid, seconds=30.0):
    limit = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < limit:
        time.sleep(0.05)
    return not alive(pid)


def test_an_episode_and_a_reset_by_commands(game):
    env = make_env("craftground/harvest_log_in_plains", port=18200, on_success="truncate", world_seed=7)
    td = env.reset()
    assert td["frame"][0, :, 7].tolist() == list(range(160))  # right side up
    (world,) = [line for line in told(game) if "world" in line]
    assert world["world"] == "7" and world["hud"]
    td = act(env, td, JUMP)
    assert told(game)[-1]["forward"] and told(game)[-1]["jump"]
    rewards = []
    for _ in range(3):
        td = act(env, td, ATTACK)
        rewards.append(td["reward"].item())
    assert rewards == [0.0, 0.0, 2.0] and td["success"].item()
    assert td["truncated"].item() and not td["terminated"].item()
    env.reset()
    assert env.report.inventory == {} and len([line for line in told(game) if "world" in line]) == 1
    typed = [command for line in told(game) for command in line.get("commands", ())]
    assert "fastreset" in [command.strip() for command in typed]
    assert "spreadplayers ~ ~ 0 200 false @p" in typed
    env.close()
    assert ends(world["pid"])


def test_its_specs_are_minedojos(game, monkeypatch):
    env = make_env("craftground/harvest_water_with_bucket", port=18300, max_steps=20, numbers=True)
    check_env_specs(env)
    monkeypatch.setenv("WMKIT_MINEDOJO_PYTHON", sys.executable)  # not started
    other = MineDojoEnv("harvest_water_with_bucket", max_steps=20, numbers=True)
    assert env.observation_spec == other.observation_spec and env.action_spec == other.action_spec
    assert env.report.inventory.get("bucket") == 1
    env.close()


def test_a_game_that_dies_is_a_sentence_and_is_started_again(game):
    env = make_env("craftground/harvest_sand", port=18400)
    td = env.reset()
    pid = told(game)[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EnvironmentCrashError, match="CraftGround failed in step"):
        act(env, td, NOOP)
    act(env, env.reset(), NOOP)
    pids = [line["pid"] for line in told(game) if "pid" in line]
    assert len(pids) == 2
    env.close()
    assert ends(pids[1])


TRAINER = """
import sys
import craftground.environment.environment as environment
environment.resolve_runtime_env_path = lambda version: sys.argv[1]
from wmkit.envs import make_env
env = make_env("craftground/harvest_sand", port=18500)
env.reset()
print("ready", flush=True)
sys.stdin.read()
"""


def test_the_game_ends_with_a_trainer_that_is_killed(game, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as trainer:
        while trainer.stdout.readline().strip() != "ready":
            assert trainer.poll() is None
        pid = told(game)[0]["pid"]
        assert alive(pid)
        trainer.kill()
    assert ends(pid)
