"""Environments that raise, die, hang or show NaN: told in a sentence, survived, and no record is lost."""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import SerialEnv
from typer.testing import CliRunner

from support.toy import LENGTH, ToyPolicy, ToySystem, toy_config, toy_parts
from wmkit.data import ReplayStreams
from wmkit.data.repair import not_finite
from wmkit.envs.counting import CountingEnv
from wmkit.envs.guarded import Guard, Guarded, _Cut
from wmkit.envs.parallel import ParallelWorlds
from wmkit.errors import CheckpointError, ConfigError, EnvironmentCrashError, SpecError
from wmkit.training.checkpoints import CheckpointStore
from wmkit.training.collect import with_carry
from wmkit.training.evaluate import evaluate
from wmkit.training.protocol import EvaluationProtocol
from wmkit.training.run import RunDirectory
from wmkit.training.schedule import Interrupt
from wmkit.training.trainer import Trainer, train

HANGING = threading.Event()
FAULTS = ("raise", "shape", "missing", "nan", "inf", "reward", "hang", "die")


class Faulty(CountingEnv):
    """Counts, and goes wrong in one step of its life; the ``reset`` that follows ``resets`` others raises."""

    def __init__(self, fault: str = "", at: int = 10, resets: int = 10**9, seed: int = 0) -> None:
        super().__init__(length=LENGTH)
        self.fault, self.at, self.resets, self.taken = fault, at, resets, 0

    def _reset(self, tensordict=None, **kwargs):
        self.resets -= 1
        if self.resets < 0:
            raise OSError("no world is left")
        return super()._reset(tensordict, **kwargs)

    def _step(self, tensordict):
        out = super()._step(tensordict)
        self.taken += 1
        if self.taken != self.at or not self.fault:
            return out
        if self.fault == "raise":
            raise RuntimeError("the simulator\nis gone")
        if self.fault == "die":
            os._exit(139)
        if self.fault == "hang":
            HANGING.set()
            time.sleep(3600)
        if self.fault == "missing":
            return out.exclude("observation")
        if self.fault == "shape":
            return out.set("observation", torch.zeros(2))
        key = "reward" if self.fault == "reward" else "observation"
        return out.set(key, torch.full((1,), math.inf if self.fault == "inf" else math.nan))


class Unseeded(CountingEnv):
    def _set_seed(self, seed):
        raise OSError("no world is left")


def serial(guard, *creates):
    env = SerialEnv(len(creates), [partial(Guarded, create, i, guard) for i, create in enumerate(creates)])
    env.guard = guard
    return env


def faulty_parts(fault, parallel=False, restarts=5, **faulty):
    def make_env(config, affordance, *, seed, evaluation=False):
        guard = Guard("faulty", timeout=60, restarts=restarts)
        creates = (
            [CountingEnv, CountingEnv] if evaluation else [partial(Faulty, fault, **faulty), CountingEnv]
        )
        return ParallelWorlds(creates, guard) if parallel else serial(guard, *creates)

    return replace(toy_parts(), make_env=make_env)


def kept(folder):
    """What the replay of a run holds, by stream."""
    streams = ReplayStreams.open(folder / "replay")
    return [streams.get(streams.ids(stream)) for stream in range(streams.num_streams)]


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("hang", "die")])
def test_a_fault_closes_its_episode_and_the_run_goes_on(tmp_path, capsys, fault):
    config = toy_config(tmp_path / "run", on_bad_value="skip")
    summary = train(config, parts=faulty_parts(fault, restarts=9))
    assert (summary.steps, summary.updates) == (160, (160 - 24) * 4 // 8)
    said = " ".join(capsys.readouterr().err.split())
    assert "environment 0 ('faulty')" in said and "step 10 (3 of its episode)" in said
    assert ("RuntimeError: the simulator is gone" in said) == (fault == "raise")
    ours, other = kept(tmp_path / "run")
    for records in (ours, other):
        assert torch.equal(records["observation"], records["reward"])  # none is false, none is shifted
    cut = [e for e in RunDirectory.open(tmp_path / "run").episodes() if "cut" in e]
    assert {(e["length"], e["return"]) for e in cut} == {(2, 3.0)}
    assert len(cut) == (1 if fault in ("nan", "inf", "reward") else 8)  # one made anew fails again
    assert [int((~records["is_init"]).sum()) for records in (ours, other)] == [80 - len(cut), 80]
    closed = int((ours["done"] & ~ours["terminated"]).sum())
    assert len(cut) - closed in (0, 1)  # the last is closed by the record that follows it


def test_what_stops_a_run_is_a_sentence_and_is_saved(tmp_path):
    for name, parts, error, words in (
        ("nan", faulty_parts("nan"), SpecError, "'observation'.*on_bad_value=skip"),
        ("raise", faulty_parts("raise", restarts=0), EnvironmentCrashError, "RuntimeError: the simulator"),
        ("reset", faulty_parts("", resets=3, restarts=1), EnvironmentCrashError, "OSError: no world is left"),
    ):
        folder = tmp_path / name
        with pytest.raises(error, match=rf"environment 0.*{words}.*\(saved in .*resume="):
            train(toy_config(folder), parts=parts)
        before = sum(len(records) for records in kept(folder))
        counters = CheckpointStore(folder / "checkpoints").load(
            CheckpointStore(folder / "checkpoints").latest()
        )
        assert (
            counters["counters"]["replay_steps"] == sum(int((~r["is_init"]).sum()) for r in kept(folder)) > 0
        )
        config = toy_config(folder)
        config.resume = str(folder)
        assert train(config, parts=faulty_parts("")).steps == 160
        assert sum(len(records) for records in kept(folder)) > before


def test_one_that_never_worked_is_not_made_anew():
    guard = Guard("faulty", restarts=5)
    env = serial(guard, partial(Faulty, "raise", at=1))
    env.rollout(3, break_when_any_done=False)
    assert "not made one good step" in guard.over and not guard.drain()
    with pytest.raises(EnvironmentCrashError, match="OSError"):
        serial(Guard("faulty", restarts=5), partial(Faulty, resets=0)).reset()
    env = serial(Guard("faulty", restarts=5), CountingEnv, Unseeded)
    env.set_seed(1)
    with pytest.raises(EnvironmentCrashError, match="being seeded: found OSError"):
        env.reset()
    with pytest.raises(ConfigError, match=r"batch of its own: found batch size \[3\]"):
        Guarded(lambda: SerialEnv(3, CountingEnv), 0, guard)


def test_restarts_are_counted_by_the_hour():
    now = [0.0]
    guard = Guard("any", restarts=2, clock=lambda: now[0])
    assert [guard.failed(0, "step 1", "nothing") for _ in range(2)] == [True, True]
    now[0] = 3599.0
    assert not guard.failed(0, "step 1", "nothing") and guard.over
    now[0] = 3600.0
    assert guard.failed(0, "step 1", "nothing")


def test_workers_that_die_and_hang_are_replaced():
    guard = Guard("faulty", timeout=8, restarts=5)
    env = ParallelWorlds([partial(Faulty, "die"), partial(Faulty, "hang", at=12), CountingEnv], guard)
    batch = env.rollout(21, break_when_any_done=False)
    came = batch["next", "reward"].isfinite()
    assert [(~came[i]).nonzero()[:, 0].tolist() for i in range(3)] == [[9, 19], [11], []]
    assert torch.equal(batch["next", "observation"][came], batch["next", "reward"][came])
    assert batch["next", "truncated"][~came].all() and guard.over is None
    texts = [fault.text for fault in guard.drain()]
    assert "exit code 139" in texts[0] and "no answer in 8 seconds" in texts[1] and len(texts) == 3
    pids = [worker.pid for worker in env._workers]
    os.kill(pids[2], signal.SIGKILL)
    env.rollout(1)
    assert "by SIGKILL" in guard.drain()[0].text
    pids = [worker.pid for worker in env._workers]
    env.close()
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(EnvironmentCrashError, match="closed"):
        env.reset()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


TRAINER = """
    import subprocess, sys, time
    from functools import partial
    from wmkit.envs.counting import CountingEnv
    from wmkit.envs.guarded import Guard
    from wmkit.envs.parallel import ParallelWorlds

    class Simulator(CountingEnv):
        def _step(self, tensordict):
            print(subprocess.Popen(["sleep", "1000"]).pid, flush=True)
            time.sleep(1000)

    if __name__ == "__main__":
        env = ParallelWorlds([Simulator], Guard("sleeping"))
        print(env._workers[0].pid, flush=True)
        env.rollout(2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_nothing_outlives_a_killed_trainer(tmp_path):
    """The worker hangs in a step, and has a process of its own."""
    script = tmp_path / "trainer.py"
    script.write_text(textwrap.dedent(TRAINER))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    ) as trainer:
        pids = [int(trainer.stdout.readline()) for _ in range(2)]  # a worker and its child
        children = Path(f"/proc/{trainer.pid}/task/{trainer.pid}/children").read_text().split()
        trainer.kill()
    deadline = time.monotonic() + 60
    while any(alive(int(pid)) for pid in (*pids, *children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(int(pid)) for pid in (*pids, *children))  # the tracker of multiprocessing as well
    assert not list(temporary.iterdir())


def test_the_first_interrupt_ends_a_step_that_hangs(tmp_path):
    config = toy_config(tmp_path / "run")
    trainer = Trainer(config, RunDirectory.create(config), parts=faulty_parts("hang", at=40))
    HANGING.clear()

    def interrupt():
        HANGING.wait()
        time.sleep(0.5)  # a signal that comes before the sleep has begun does not end it
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    summary = trainer.train()
    assert summary.interrupted and summary.steps == 80
    ours, other = kept(tmp_path / "run")
    assert (int((~ours["is_init"]).sum()), int((~other["is_init"]).sum())) == (39, 39)


def test_the_first_interrupt_is_noticed_by_a_call_that_begins_after_it():
    interrupt, guard = Interrupt(), Guard("late")
    interrupt.PATIENCE = 0.1
    interrupt.busy = lambda: guard.busy
    guard.stopping = lambda: interrupt.requested
    with interrupt.watching():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(_Cut), guard.calling():
            time.sleep(600)
    assert guard.cut and pickle.loads(pickle.dumps(Guard("any"))).restarts == 0


def test_an_interrupt_ends_no_call_of_another_thread():
    guard, seen = Guard("ahead"), []  # it would end the update that goes on beside it, and with it the run

    def call():
        with guard.calling():
            seen.append(guard.busy)

    call()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert seen == [1, None]


def test_an_episode_that_failed_counts_in_no_evaluation():
    policy = ToyPolicy(3)
    env = with_carry(serial(Guard("faulty", restarts=5), partial(Faulty, "nan"), CountingEnv), policy)
    played = evaluate(policy, env, EvaluationProtocol("counting", 6))
    assert [e.episode_return for e in played.episodes] == [28.0, 28.0, 28.0, 28.0, 28.0] and played.whole
    assert str(played.protocol).startswith("5 of 6 episodes")


def test_an_episode_without_an_end_is_cut_in_an_evaluation(tmp_path):
    def endless(config, affordance, *, seed, evaluation=False):
        return serial(Guard("endless"), *[partial(CountingEnv, length=200 if evaluation else LENGTH)] * 2)

    parts = replace(toy_parts(), make_env=endless)
    summary = train(toy_config(tmp_path / "run", evaluate_limit=20, evaluate_every=0), parts=parts)
    assert summary.episodes == 3 and "3 cut before their end" in summary.protocol
    assert [e["length"] for e in RunDirectory.open(summary.run).episodes("final")] == [20, 20, 20]


def test_an_interrupt_drops_no_update(tmp_path):
    """Four updates are due after every batch; the interrupt comes in the second of them."""

    class Interrupted(ToySystem):
        def update(self, batch):
            if self.count == 9:
                signal.raise_signal(signal.SIGINT)
            return super().update(batch)

    parts = replace(toy_parts(), build=lambda config, env, device: Interrupted())
    first = train(toy_config(tmp_path / "run"), parts=parts)
    assert first.interrupted and first.updates == 10
    config = toy_config(tmp_path / "run")
    config.resume = first.run
    assert train(config, parts=toy_parts()).updates == (160 - 24) * 4 // 8


def test_a_replay_that_holds_nan_is_named_and_cleaned(tmp_path):
    from wmkit.cli.app import app

    folder = tmp_path / "run"
    train(toy_config(folder, steps=80), parts=toy_parts())
    before = kept(folder)
    streams = ReplayStreams.open(folder / "replay")
    bad = [2 * 12, 2 * 13, 2 * 3 + 1]  # two that follow each other, and one of the other environment
    streams.patch(torch.tensor(bad), TensorDict({"observation": torch.full((3, 1), math.nan)}, [3]))
    streams.patch(torch.tensor([2 * 14]), TensorDict({"belief": torch.full((1, 1), math.nan)}, [1]))
    config = toy_config(folder, steps=160)
    config.resume = str(folder)
    with pytest.raises(CheckpointError, match=r"found 3 such records, in 'observation'.*check .* --repair"):
        train(config, parts=toy_parts())
    run = CliRunner().invoke
    assert run(app, ["data", "check", str(folder)]).exit_code == 2
    result = run(app, ["data", "check", str(folder), "--repair"])
    assert result.exit_code == 0, result.output
    assert run(app, ["data", "check", str(folder)]).exit_code == 0
    assert len(list((folder / "repaired").iterdir())) == 1
    after = kept(folder)
    for stream, (old, new) in enumerate(zip(before, after, strict=True)):
        changed = {i // 2 for i in bad if i % 2 == stream}
        beside = changed | {i + 1 for i in changed}
        for i in range(len(old)):
            assert i in beside or torch.equal(old["observation"][i], new["observation"][i])
            assert i in beside or torch.equal(old["reward"][i], new["reward"][i])
            if i in beside:
                assert new["is_init"][i] and new["reward"][i] == 0
            if i + 1 in changed:
                assert new["done"][i]
    assert not not_finite(ReplayStreams.open(folder / "replay"), latents=True)
