"""What a run leaves on disk: checkpoints, its directory, refusals, interrupts and kills it goes on from."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from support.toy import ToySystem, queued_config, toy_config, toy_env, toy_parts
from wmkit.errors import CheckpointError, ConfigError, NonFiniteLossError
from wmkit.training.checkpoints import CheckpointStore, rng_state, set_rng_state
from wmkit.training.keeping import restore_system
from wmkit.training.parts import make_memory
from wmkit.training.run import RunDirectory
from wmkit.training.trainer import train


def test_a_checkpoint_of_another_shape_names_the_parameter(tmp_path):
    store = CheckpointStore(tmp_path)
    path = store.save(1, {"system": ToySystem(width=2).state_dict()})
    with pytest.raises(CheckpointError, match=r"'line.weight'"):
        restore_system(ToySystem(), store.load(path)["system"], "old run")


def test_checkpoints_keep_the_newest_two_and_the_best(tmp_path):
    store = CheckpointStore(tmp_path)
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.2), (4, None), (4, None), (4, 0.3)):
        store.save(step, {"step": step}, score)
    assert list(store.steps()) == [2, 3, 4]
    assert store.load(store.best())["step"] == 2 and store.meta(store.latest())["score"] == 0.3
    newest = store.latest()
    (newest / "state.json").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.load(newest)
    (newest / "meta.json").write_text("")
    for name in ("step-mine", "step-000000000005-mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_text("{}")
    assert store.best().name == "step-000000000002-000"  # what cannot be read has no score
    store.save(5, {"step": 5})
    assert (tmp_path / "step-mine").exists() and list(store.steps()) == [2, 4, 5]


def test_random_states_come_back():
    state = rng_state()
    first = (torch.rand(3), __import__("random").random(), __import__("numpy").random.rand())
    set_rng_state(state)
    assert torch.equal(torch.rand(3), first[0])
    assert (__import__("random").random(), __import__("numpy").random.rand()) == first[1:]


def test_run_directories_repair_half_written_lines_and_are_not_overwritten(tmp_path, monkeypatch):
    config = toy_config(tmp_path / "run")
    run = RunDirectory.create(config)
    run.log(5, "train", {"loss": float("nan")})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "sta')
    again = RunDirectory.open(run.path)
    assert [line["step"] for line in again.metrics()] == [5]
    assert (run.path / "metrics.jsonl").read_text().endswith('"sta')  # reading mends nothing: it may go on
    again.log(7, "train", {"loss": 1.0})
    assert [line["loss"] for line in again.metrics()] == [None, 1.0]
    with (run.path / "metrics.jsonl").open("a") as file:  # another process is in the middle of a line
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write('{"step": 8, "stage": "train", ')
        file.flush()
        third = threading.Thread(target=RunDirectory.open(run.path).log, args=(9, "train", {"loss": 2.0}))
        third.start()
        third.join(0.3)
        file.write('"wall": 0.0, "loss": 1.5}\n')
    third.join()
    assert [line["loss"] for line in again.metrics()] == [None, 1.0, 1.5, 2.0]
    whole = (run.path / "metrics.jsonl").read_bytes()
    for damage in (b"what?", b"[1, 2]", b'{"a": 1}', b'{"step": \xff}'):
        (run.path / "metrics.jsonl").write_bytes(whole + damage + b"\n")
        with pytest.raises(CheckpointError, match=r"line 5 of .*metrics.jsonl"):
            RunDirectory.open(run.path)
    (run.path / "metrics.jsonl").write_bytes(whole)
    with pytest.raises(ConfigError, match="is taken"):
        RunDirectory.create(config)
    monkeypatch.chdir(tmp_path)
    config.run_dir = None
    monkeypatch.setattr("wmkit.training.run.default_name", lambda config: "toy")  # in one second
    assert [RunDirectory.create(config).path.name for _ in range(3)] == ["toy", "toy-2", "toy-3"]
    with pytest.raises(CheckpointError, match=r"found no config\.yaml"):
        RunDirectory.open(tmp_path)
    for text in ("a: [", "[1]", "\x00", "system: toy"):
        (run.path / "config.yaml").write_text(text)
        with pytest.raises(CheckpointError, match=r"config.yaml' cannot be read"):
            RunDirectory.open(run.path)


# ---- real processes, real signals ---------------------------------------------------------------------

SCRIPT = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from support.toy import queued_config, toy_parts
    from wmkit.training.trainer import train
    folder = Path({folder!r})
    config = queued_config(folder, steps=int(sys.argv[1]))
    config.resume = sys.argv[2] if len(sys.argv) > 2 else None
    summary = train(config, parts=toy_parts(pause=0.003, drawn=folder / "drawn.jsonl"))
    sys.exit(130 if summary.interrupted else 0)
"""


def refused(config, parts, error=ConfigError):
    with pytest.raises(error):
        train(config, parts=parts)


def test_a_refused_run_leaves_nothing_behind_but_what_was_there(tmp_path):
    def refuse(*_):
        raise ConfigError("no")

    def open_env(*args, **kwargs):
        opened.append(toy_env(*args, **kwargs))
        return opened[-1]

    opened, folder = [], tmp_path / "runs" / "first"
    unfit = replace(toy_parts(), build=refuse, make_env=open_env)
    refused(toy_config(folder), unfit)
    assert not (tmp_path / "runs").exists()
    assert [env.is_closed for env in opened] == [True]  # or processes of environments would go on
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    refused(toy_config(folder), unfit)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]

    def fit_then_refuse(config, run, stages):
        (run.folder("affordance") / "model").write_text("an hour's work")
        raise ConfigError("no")

    refused(toy_config(folder), replace(toy_parts(), prepare_affordance=fit_then_refuse))
    assert {path.name for path in folder.iterdir()} == {"notes.txt", "config.yaml", "affordance"}
    refused(toy_config(tmp_path / "nan"), toy_parts(nan_at=1), NonFiniteLossError)
    assert (tmp_path / "nan" / "config.yaml").exists() and any((tmp_path / "nan" / "replay").iterdir())


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path):
    train(toy_config(tmp_path / "run", steps=40), parts=toy_parts())
    kept = (tmp_path / "run" / "config.yaml").read_text()
    config = toy_config(tmp_path / "run", steps=80, replay={"capacity": 500})
    config.resume = str(tmp_path / "run")
    refused(config, toy_parts(), CheckpointError)
    assert (tmp_path / "run" / "config.yaml").read_text() == kept
    config.training.replay.capacity = 1000
    train(config, parts=toy_parts())
    assert RunDirectory.open(tmp_path / "run").config.training.steps == 80


def test_what_is_missing_from_a_replay_is_said(tmp_path, capsys):
    train(toy_config(tmp_path / "run"), parts=toy_parts())
    config = toy_config(tmp_path / "run", steps=200)
    config.resume = str(tmp_path / "run")
    replay = tmp_path / "run" / "replay"
    (replay / "schema.json").rename(tmp_path / "schema.json")
    kept = {path: path.read_bytes() for path in replay.rglob("*") if path.is_file()}
    refused(config, toy_parts(), CheckpointError)
    assert kept == {path: path.read_bytes() for path in replay.rglob("*") if path.is_file()}
    capsys.readouterr()
    replay.rename(tmp_path / "elsewhere")
    assert train(config, parts=toy_parts()).steps == 200
    said = " ".join(capsys.readouterr().err.split())
    assert "is not whole: found 0 steps, wanted the 160 that its checkpoint knows of" in said
    assert train(config, parts=toy_parts()).steps == 200
    assert "nothing is left to learn: found 200 steps" in " ".join(capsys.readouterr().err.split())


def test_a_disk_that_takes_no_checkpoint_says_so(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(1, {"step": 1})

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("wmkit.training.checkpoint_files.save_file", full)
    with pytest.raises(CheckpointError, match=r"step-000000000002-000'"):
        store.save(2, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000001-000"]


@pytest.fixture
def start():
    """Start a run in a process of its own, which does not outlive the test."""
    processes = []

    def start(folder: Path, *arguments: str) -> subprocess.Popen:
        script = textwrap.dedent(SCRIPT).format(tests=str(Path(__file__).parent), folder=str(folder))
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", script, *arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def reached(folder: Path) -> int:
    """The last step in the metrics of a run, which may go on meanwhile."""
    lines = RunDirectory.open(folder).metrics() if (folder / "config.yaml").exists() else ()
    return max((line["step"] for line in lines), default=0)


def wait_for_training(process: subprocess.Popen, folder: Path, step: int) -> None:
    for _ in range(6000):
        if reached(folder) >= step:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("the run did not get going")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_with_a_checkpoint(tmp_path, number):
    class Interrupted(ToySystem):
        def update(self, batch):
            if self.count == 5:
                signal.raise_signal(number)
            return super().update(batch)

    parts = replace(toy_parts(), build=lambda config, env, device: Interrupted())
    summary = train(toy_config(tmp_path / "run"), parts=parts)
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    counters = store.load(store.latest())["counters"]
    assert summary.interrupted and 6 <= summary.updates < 68
    assert (counters["step"], counters["updates"]) == (summary.steps, summary.updates)


def test_killed_and_interrupted_runs_go_on(tmp_path, start):
    """By SIGKILL, which leaves a checkpoint behind, then by SIGTERM, which writes one; then to the end."""
    folder = tmp_path / "run"
    store = CheckpointStore(folder / "checkpoints")
    process = start(folder, "1000000")
    wait_for_training(process, folder, 120)
    config = queued_config(folder, 200)
    config.resume = str(folder)
    with pytest.raises(CheckpointError, match="another process"):
        train(config, parts=toy_parts())
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = store.load(store.latest())["counters"]
    memory = make_memory(queued_config(folder, 0), RunDirectory.open(folder), ToySystem(), 2)
    assert memory.env_steps >= killed["replay_steps"]

    on = reached(folder) + 160
    process = start(folder, "1000000", str(folder))
    wait_for_training(process, folder, on)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 130, process.stderr.read()
    before = store.load(store.latest())["counters"]
    # What was owed at the kill is not made up for, what was taken since is paid: no burst.
    taken = before["replay_steps"] - memory.env_steps
    assert abs(before["updates"] - killed["updates"] - taken / 16) <= 1

    process = start(folder, str(before["step"] + 160), str(folder))
    assert process.wait(timeout=300) == 0, process.stderr.read()
    after = store.load(store.latest())["counters"]
    assert after["step"] - before["step"] in range(160, 168)
    assert after["updates"] - before["updates"] in range(9, 12)  # one per 16 steps
    assert after["replay_steps"] == after["step"]

    # Updates that survived drew every new window of each stream once, in order, over all three processes.
    lines = [json.loads(line) for line in (folder / "drawn.jsonl").read_text().splitlines()]
    pids = list(dict.fromkeys(pid for pid, _ in lines))
    counts = [c["updates"] for c in (killed, before, after)]
    kept = []
    for pid, number in zip(pids, (b - a for a, b in pairwise([0, *counts])), strict=True):
        kept += [starts for own, starts in lines if own == pid][:number]
    assert len(kept) == after["updates"]
    for stream in range(2):
        own = [i // 2 for starts in kept for i in starts if i % 2 == stream]
        assert own == list(range(0, 5 * len(own), 5)) and len(own) > 10

    memory = make_memory(queued_config(folder, 0), RunDirectory.open(folder), ToySystem(), 2)
    for stream in range(2):
        records = memory.streams.get(memory.streams.ids(stream))
        assert torch.equal(records["observation"], records["reward"]), "a record was torn"
