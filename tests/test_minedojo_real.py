"""The real minedojo package, in its own interpreter, against a stand-in for Minecraft.

The interpreter is what ``WMKIT_MINEDOJO_PYTHON`` names or ``wmkit minedojo setup`` made; without one these
tests are skipped. Environments are shared where nothing breaks them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import check_env_specs

from support.malmo import Malmo
from support.merges import write_merges
from wmkit.affordance import MineCLIP
from wmkit.cli.app import read_config
from wmkit.data import ReplayStreams
from wmkit.envs import make_env
from wmkit.envs.guarded import Guard
from wmkit.envs.minedojo.client import MineDojoServer
from wmkit.envs.minedojo.interpreter import MALMO, find_python
from wmkit.envs.minedojo.recording import Recorder, Recording, missing
from wmkit.errors import ConfigError, EnvironmentCrashError
from wmkit.training import affordance_frames, affordance_stage, train

try:
    PYTHON = find_python()
except ConfigError as error:
    pytest.skip(str(error), allow_module_level=True)

LOG = "minedojo/harvest_log_in_plains"
NOOP, ATTACK, LOOK_DOWN, FORWARD, JUMP, USE = 0, 1, 3, 6, 10, 11


def act(env, td, action):
    """One step; what came of it."""
    td.set("action", torch.nn.functional.one_hot(torch.tensor(action), 12))
    return env.step(td)["next"]


def processes(text):
    """Living processes whose command line holds ``text``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():  # empty of one that has ended
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def gone(ask, seconds=30.0):
    """Whether something has gone within a while; the while is how long a slow machine may take."""
    limit = time.monotonic() + seconds
    while ask() and time.monotonic() < limit:
        time.sleep(0.05)
    return not ask()


@pytest.fixture(scope="module")
def malmo():
    with Malmo() as found:
        yield found


@pytest.fixture(scope="module")
def shared(malmo):
    env = make_env(LOG, port=malmo.port, on_success="truncate", numbers=True, fast_reset=2)
    yield env
    env.close()


def test_an_episode_from_reset_to_success(malmo, shared):
    td = shared.reset()
    assert malmo.hellos == 1 and malmo.tokens[-1].endswith(":0:0:1:true")
    frame = td["frame"]
    assert frame[0, :, 7].tolist() == list(range(160))  # right side up
    assert frame[1, 80].tolist() == list(range(256))
    assert td["vitals"].tolist() == [20.0, 20.0, 300.0, 0.0, 5.0, 0.0]
    found = [act(shared, td, action) for action in (LOOK_DOWN, FORWARD, ATTACK, ATTACK, ATTACK)]
    assert found[0]["place"].tolist()[3:] == [0.0, 10.0]  # the camera has bent
    assert "forward 1" in malmo.commands[1] and "forward 0" in malmo.commands[2]
    assert [step["reward"].item() for step in found] == [0.0, 0.0, 0.0, 0.0, 2.0]
    assert shared.report.reward == 1.0 and shared.report.success  # MineDojo's own word
    last = found[-1]
    assert last["success"].item() and last["truncated"].item() and not last["terminated"].item()


def test_resets_by_commands_stand_between_new_worlds(malmo, shared):
    def begins_a_world():
        malmo.commands.clear()
        before = malmo.hellos, len(malmo.missions)
        act(shared, shared.reset(), NOOP)
        new = malmo.hellos - before[0]
        assert new == len(malmo.missions) - before[1]  # a connection and a mission for each
        assert ("/kill" in malmo.chats) == (not new)
        return new

    while not begins_a_world():
        pass
    assert [begins_a_world() for _ in range(6)] == [0, 0, 1, 0, 0, 1]
    assert malmo.disconnects >= 2


def test_a_busy_simulator_is_asked_again(malmo, shared):
    malmo.busy, missions = 1, len(malmo.missions)
    for _ in range(3):
        shared.reset()
    assert malmo.busy == 0 and len(malmo.missions) == missions + 1


def test_death_terminates_and_an_ended_mission_truncates(malmo, shared):
    for fault, flag in (("die", "terminated"), ("done", "truncated")):
        td = shared.reset()
        malmo.faults = dict.fromkeys(range(1, 10_000), fault)
        last = act(shared, td, NOOP)
        malmo.faults = {}
        ends = {key for key in ("terminated", "truncated") if last[key].item()}
        assert ends == {flag} and last["done"].item() and last["reward"].item() == 0.0
    hellos = malmo.hellos
    shared.reset()
    assert malmo.hellos == hellos + 1  # an ended mission takes no commands


def test_specs_hold_for_five_hundred_steps(malmo):
    env = make_env(LOG, port=malmo.port, max_steps=60)
    check_env_specs(env)
    steps, done = 0, 0
    for batch in Collector(env, None, frames_per_batch=100, total_frames=500):
        steps += batch.numel()
        done += int(batch["next", "done"].sum())
        assert batch["next", "frame"].float().std() > 1
    assert steps == 500 and done >= 500 // 60


def test_the_commands_of_a_fast_reset(malmo):
    env = make_env("minedojo/harvest_water_with_bucket", port=malmo.port, on_success="terminate")
    td = env.reset()
    assert env.report.inventory == {"bucket": 1}
    assert re.search(r'<BiomeGenerator[^>]*biome="1"', malmo.missions[-1])  # plains
    for _ in range(3):
        td = act(env, td, USE)
    assert td["success"].item() and td["terminated"].item()
    malmo.commands.clear()
    env.reset()
    assert malmo.chats == [
        "/kill",
        "/spreadplayers ~ ~ 0 200 false @p",
        "/time set 0",
        "/weather normal",
        "/replaceitem entity @p slot.weapon.mainhand minecraft:bucket 1 0",
        "/kill @e[type=item]",
    ]
    assert env.report.inventory == {"bucket": 1}
    env.close()
    assert gone(lambda: malmo.open > 1)


def test_a_sheep_is_summoned_near_by_at_every_reset(malmo):
    env = make_env("minedojo/shear_sheep", port=malmo.port, seed=3)
    places = []
    for _ in range(2):
        malmo.commands.clear()
        env.reset()
        (line,) = [chat for chat in malmo.chats if chat.startswith("/summon")]
        mob, x, y, z = re.fullmatch(r"/summon (\w+) ~(-?\d+) ~(-?\d+) ~(-?\d+)", line).groups()
        assert (mob, y) == ("sheep", "1") and abs(int(x)) <= 15 and abs(int(z)) <= 15
        places.append((x, z))
    assert places[0] != places[1]
    env.close()


def test_one_task_can_be_made_twice_and_plays_by_eight_numbers(malmo):
    recipe = {"id": "harvest_1_log_plains", "fast_reset": False, "height": 160, "width": 256}
    server = MineDojoServer(PYTHON, recipe, port=malmo.port)
    server._ask("make", recipe=recipe)  # the wheel fails here
    server.reset(full=True, seed=None)
    malmo.commands.clear()
    found = [server.step([1, 0, 1, 12, 13, 3, 0, 0]) for _ in range(3)]
    pressed = [line for line in malmo.commands[0].split("\n") if line.endswith(" 1")]
    assert sorted(pressed) == ["attack 1", "forward 1", "jump 1"]
    assert (found[-1].reward, found[-1].success) == (1.0, True)
    with pytest.raises(EnvironmentCrashError, match="MineDojo cannot make task 'no_such_task'"):
        server._ask("make", recipe={**recipe, "id": "no_such_task"})
    assert server.process.poll() is not None


# ---------------------------------------------------------------- what goes wrong

FAULTS = {
    "drop": "Malmo closed the connection or did not answer",
    "hang": "Malmo closed the connection or did not answer",
    "garbage": "JSONDecodeError",
    "short": "ValueError: cannot reshape",
    "missing": "Missing inventory key",
    "kill": "by SIGKILL",
    "stop": "no answer in 3 seconds",
}


def test_a_fault_ends_its_episode_and_another_simulator_goes_on():
    with Malmo() as malmo:
        guard = Guard(LOG, restarts=len(FAULTS))
        env = make_env(LOG, num_envs=1, guard=guard, port=malmo.port, step_timeout=3.0)
        for fault, said in FAULTS.items():
            td = env.reset()
            one = env._envs[0]
            act_in = partial(act_batch, env)
            td = act_in(td)
            before, server = td["pixels"].clone(), one.simulator
            if fault in ("kill", "stop"):
                os.kill(server.process.pid, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
            else:
                malmo.faults = dict.fromkeys(range(1, 10_000), fault)
            last = act_in(td)
            malmo.faults = {}
            assert last["truncated"].all() and not last["terminated"].any() and last["reward"].isnan().all()
            assert torch.equal(last["pixels"], before)  # the last good one
            (told,) = guard.drain()
            assert said in told.text and "step 2 (2 of its episode)" in told.text
            assert gone(lambda server=server: server.process.poll() is None)
        assert guard.over is None
        env.close()
    assert gone(lambda: malmo.open)


def act_batch(env, td):
    td.set("action", torch.nn.functional.one_hot(torch.tensor([NOOP]), 12))
    return env.step(td)["next"]


def test_what_never_worked_is_a_sentence():
    closed = Malmo()
    closed.close()
    env = make_env(LOG, port=closed.port)
    with pytest.raises(EnvironmentCrashError, match="failed in reset: found ConnectionRefusedError"):
        env.reset()
    env.close()
    with Malmo(faults={0: "hang"}) as malmo:
        env = make_env(LOG, port=malmo.port, reset_timeout=2.0)
        with pytest.raises(
            EnvironmentCrashError, match="failed in reset: found SimulatorError: Malmo did not answer in time"
        ):
            env.reset()
        env.close()


# ---------------------------------------------------------------- what is left behind

LAUNCH = """#!/bin/sh
exec {python} {malmo} "$@"
"""
TRAINER = """
import os, sys, torch
from wmkit.cli.app import read_config
from wmkit.data import ReplayStreams
from wmkit.envs import make_env
env = make_env("minedojo/harvest_log_in_plains")
td = env.reset()
print(env.simulator.process.pid, flush=True)
while True:
    td.set("action", torch.nn.functional.one_hot(torch.tensor(0), 12))
    td = env.step(td)["next"]
"""


@pytest.fixture
def minecraft(tmp_path, monkeypatch):
    """A folder of Malmo's whose Minecraft is the stand-in, and a folder for what is temporary."""
    folder = tmp_path / "Minecraft"
    folder.mkdir()
    script = folder / "launchClient.sh"
    stand_in = Path(__file__).parent / "support" / "malmo.py"
    script.write_text(LAUNCH.format(python=sys.executable, malmo=stand_in))
    script.chmod(0o755)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv(MALMO, str(folder))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    return temporary


def running(minecraft):
    """The Minecraft that was started, by its temporary folder in the command line."""
    return processes(str(minecraft))


def test_minecraft_is_started_and_ended(minecraft):
    env = make_env(LOG)
    td = env.reset()
    assert running(minecraft) and act(env, td, NOOP)["frame"].any()
    env.close()
    assert gone(lambda: running(minecraft)) and gone(lambda: list(minecraft.iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
@pytest.mark.parametrize("victim", ["server", "trainer"])
def test_nothing_outlives_a_kill(minecraft, tmp_path, victim):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as trainer:
        server = int(trainer.stdout.readline())
        assert running(minecraft)
        os.kill(server if victim == "server" else trainer.pid, signal.SIGKILL)
        said = trainer.stderr.read()
    assert ("EnvironmentCrashError" in said) == (victim == "server")
    assert gone(lambda: running(minecraft)) and gone(lambda: Path(f"/proc/{server}").exists())
    assert gone(lambda: list(minecraft.iterdir()))


# ---------------------------------------------------------------- runs

RUN = (
    *("env=minedojo/harvest_log_in_plains", "preset=smoke", "size=tiny", "env.options.max_steps=20"),
    *(
        "training.prefill=64",
        "training.time_limit=null",
        "training.report=false",
        "training.checkpoint_every=32",
    ),
)


def transitions(run):
    """How many transitions the replay of a run holds, by stream."""
    streams = ReplayStreams.open(run / "replay")
    return [int((~streams.get(streams.ids(i))["is_init"]).sum()) for i in range(streams.num_streams)]


@pytest.mark.slow
def test_a_run_survives_its_simulator_and_its_trainer(tmp_path):
    run = tmp_path / "run"
    with Malmo(faults={30: "drop"}) as malmo:
        overrides = [*RUN, f"env.options.port={malmo.port}", f"run_dir={run}", "training.steps=100000"]
        command = [sys.executable, "-m", "wmkit", "train", "dreamer_v3_2023", *overrides]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as trainer:
            while not list(run.glob("checkpoints/step-*")):
                assert trainer.poll() is None
                time.sleep(0.1)
            trainer.kill()
            said = trainer.stderr.read()
        assert "is made anew (1 of 5 an hour) and its episode closed as truncated" in " ".join(said.split())
        assert gone(lambda: malmo.open)  # both simulators went with it
        before = sum(transitions(run))
        episodes = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
        cut = sum(line.get("cut", False) for line in episodes)
        assert cut == 1 and before >= 64 - cut
        steps = 2 * (before // 2 + 40)
        config = read_config("dreamer_v3_2023", [f"resume={run}", f"training.steps={steps}"])
        summary = train(config)
        assert summary.steps >= steps
        assert sum(transitions(run)) == summary.steps - cut  # nothing else is missing
        assert gone(lambda: malmo.open)


def small_mineclip(folder):
    """Overrides for a random MineCLIP of 32 numbers, saved in a folder."""
    sizes = dict(width=32, layers=1, heads=2, dim=32, text_width=32, text_layers=1, text_heads=2)
    merges = write_merges(folder / "merges.txt.gz")
    MineCLIP(resolution=(32, 64), **sizes, time_layers=1, time_heads=2).save(folder / "mineclip")
    return (
        "affordance=mineclip",
        f"affordance.scorer.path={folder / 'mineclip'}",
        f"affordance.scorer.merges={merges}",
        *("~affordance.unet.fusion=constant_query", "affordance.unet.name=small"),
    )


def test_ls_imagine_goes_through_every_stage_and_walks_once(tmp_path, monkeypatch):
    """Frames, labels by MineCLIP, U-Net, prefill, training, evaluation; stopped before its labels."""
    monkeypatch.setattr(affordance_frames, "PART", 3)
    run, stages = tmp_path / "run", small_mineclip(tmp_path)
    budget = ("affordance.frames=4", "affordance.save_every=2", "env.num_envs=1", "training.prefill=48")
    with Malmo(faults={4: "drop"}) as malmo:
        overrides = [*RUN, *stages, *budget, "training.steps=80", "training.final_episodes=1"]
        overrides += [f"env.options.port={malmo.port}", f"run_dir={run}", "training.report=true"]
        with monkeypatch.context() as patch:
            patch.setattr(affordance_stage, "label", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                train(read_config("ls_imagine", overrides))
        assert [len(np.load(file)) for file in sorted(run.glob("affordance/data-*/*"))] == [3, 1]
        monkeypatch.setattr("wmkit.affordance.unet.dataset.collect_frames", lambda *_: pytest.fail("again"))
        summary = train(read_config("ls_imagine", [f"resume={run}"]))
        assert gone(lambda: malmo.open)
    assert summary.steps >= 80 and summary.updates and (run / "report.html").is_file()
    assert not list(run.glob("affordance/data-*")) and (run / "affordance/model/config.json").is_file()


# ---------------------------------------------------------------- what is recorded


def test_a_recorded_episode_plays_again(malmo, tmp_path):
    """What the game said goes through MineDojo a second time, and comes out the same."""
    env = make_env("minedojo/shear_sheep", port=malmo.port, raw=True, hud="inpaint")
    reports = []
    with Recorder(tmp_path / "episode.zip", "shear_sheep", {"name": "minedojo"}) as recorder:
        td = env.reset()
        for action in (None, LOOK_DOWN, ATTACK, ATTACK, ATTACK):
            if action is not None:
                td = act(env, td, action)
            reports.append(env.report)
            recorder.add(env.given if action is not None else None, env.report)
    env.close()
    shown = reports[0].frame
    assert shown[0, :81, 0].tolist() == list(range(81))  # the sky is as it was
    assert shown[0, 140, 200] < 130 and shown[0, 140, 10] == 140  # hot bar and hand are painted over
    moments = list(Recording.open(tmp_path / "episode.zip").moments())
    assert moments[-1].action == {"attack": 1} and missing(moments[0].raw)[0] == []

    def as_sent(moment):
        return moment.raw, moment.frame.transpose(1, 2, 0)[::-1].tobytes()

    told = [as_sent(moments[0]), *map(as_sent, moments)]  # a sheep is summoned in a step of its own
    with Malmo(recording=told) as player:
        env = make_env("minedojo/shear_sheep", port=player.port)
        td = env.reset()
        for i, moment in enumerate(moments):
            if i:
                td = act(env, td, NOOP)
            assert np.array_equal(td["frame"].numpy(), moment.frame)
            assert (env.report.inventory, env.report.place) == (reports[i].inventory, reports[i].place)
        env.close()


# ---------------------------------------------------------------- side by side


@pytest.mark.slow
def test_workers_play_side_by_side_and_a_killed_one_is_replaced(malmo):
    guard = Guard(LOG, timeout=120, restarts=2)
    env = make_env(LOG, num_envs=2, parallel=True, guard=guard, port=malmo.port)
    td = env.rollout(6, break_when_any_done=False)
    assert td.batch_size == (2, 6) and td["next", "frame"].float().std() > 1
    td = env.reset()
    os.kill(env._workers[1].pid, signal.SIGKILL)
    last = env.step(td.set("action", env.action_spec.rand()))["next"]
    assert last["truncated"].flatten().tolist() == [False, True]
    assert env.rollout(3)["next", "reward"].isfinite().all() and guard.over is None
    env.close()
    assert gone(lambda: malmo.open > 1)


def test_in_this_process_it_says_what_is_wanted():
    env = make_env(LOG, server=False, port=1)
    if importlib.util.find_spec("minedojo") is None:
        with pytest.raises(ConfigError, match="cannot be played in this process: found ModuleNotFoundError"):
            env.reset()
    env.close()
