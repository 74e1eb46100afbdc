"""Files that were damaged, or that somebody else wrote: one sentence, and nothing outside is touched."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from support.streams import records, verify
from support.torn import KEYS, flip, replica, tears
from support.toy import LENGTH, toy_config, toy_parts
from wmkit.data import ReplayStreams
from wmkit.errors import CheckpointError, NonFiniteLossError, SpecError, WmkitError
from wmkit.training import RunDirectory, checkpoint_files, write_report
from wmkit.training.checkpoints import CheckpointStore
from wmkit.training.report.evidence import save_evidence
from wmkit.training.trainer import train


def old_checkpoint(folder: Path, state: dict) -> None:
    """As they were before there were checksums."""
    folder.mkdir(parents=True)
    torch.save(state, folder / "state.pt")
    (folder / "meta.json").write_text(json.dumps({"step": state["step"], "score": None}))


def test_what_a_checkpoint_holds_comes_back(tmp_path):
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-3)
    layer(torch.ones(1, 3, 5, 5)).sum().backward()
    optimiser.step()
    whole = torch.arange(6.0)
    state = {
        "system": {**layer.state_dict(), "_extra_state": optimiser.state_dict()},
        "shared": [whole, whole, whole[2:4], whole.view(2, 3).T, whole[:0], torch.tensor(3)],
        "odd": {"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}, 3: ("x", None, True, float("inf"))},
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    store = CheckpointStore(tmp_path)
    found = store.load(store.save(1, state))
    assert found["odd"][3] == ("x", None, True, float("inf"))
    leaves, wanted = tree_flatten(found), tree_flatten(state)
    assert leaves[1] == wanted[1]
    for one, other in zip(leaves[0], wanted[0], strict=True):
        assert torch.equal(one, other) if isinstance(other, torch.Tensor) else one == other
    moments = found["system"]["_extra_state"]["state"][0]["exp_avg"]
    assert moments.stride() == layer.weight.stride()
    assert not list(tmp_path.rglob("*.pt"))
    with pytest.raises(TypeError, match="'odd'"):
        store.save(2, {"odd": object()})


@pytest.mark.parametrize("old", [False, True])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, old):
    """One bit of any file, at a hundred places; then the file gone; then all of them."""
    said: list[str] = []
    store = CheckpointStore(tmp_path / "kept", say=said.append)
    for step in (1, 2, 3):
        state = {"step": step, "system": {"weight": torch.full((50,), float(step))}}
        if old:
            old_checkpoint(store.folder / f"step-{step:012d}-000", state)
        else:
            store.save(step, state, score=step / 10)
    newest, before = store.latest(), list(store.steps().values())[-2]
    assert store.load(newest)["step"] == 3 and not said
    kept = {path: path.read_bytes() for path in newest.iterdir() if not (old and path.name == "meta.json")}
    for path, data in kept.items():
        weight = data.find(torch.full((1,), 3.0).numpy().tobytes())  # of an archive, what stands in it
        for place in [weight] if old else range(0, len(data), max(1, len(data) // 40)):
            flip(path, place)
            assert store.latest() == before, (path, place)
            with pytest.raises(CheckpointError, match=newest.name):
                store.load(newest)
            path.write_bytes(data)
        path.unlink()
        assert store.latest() == before
        path.write_bytes(data)
    assert (
        store.latest() == newest and newest.name in said[0] and before.name in said[0] and "\n" not in said[0]
    )

    flip(path, max(weight, 0))
    assert store.latest() == before
    store.save(2, {"step": 2})  # it goes on from there
    assert store.load(store.latest())["step"] == 2 and (store.folder / f"damaged-{newest.name}").is_dir()
    for path in store.folder.glob("step-*"):
        next(path.glob("state.*")).write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        store.latest()
    assert CheckpointStore(tmp_path / "none").latest() is None


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    store = CheckpointStore(tmp_path)
    state = {"system": {"line": {"weight": torch.tensor([1.0, float("nan")])}}}
    with pytest.raises(NonFiniteLossError, match="'system/line/weight'"):
        store.save(1, state)
    assert not list(tmp_path.iterdir())
    folder = tmp_path / "step-000000000001-000"
    folder.mkdir()
    checkpoint_files.write(folder, state, {"step": 1, "score": None})
    with pytest.raises(CheckpointError, match="NaN in tensor 'system/line/weight'"):
        store.load(store.latest())
    shutil.rmtree(folder)
    old_checkpoint(folder, {**state, "step": 1})
    with pytest.raises(CheckpointError, match="NaN in tensor 'system/line/weight'"):
        store.load(store.latest())


# ---- a whole run, one file at a time -------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of the toy, with evidence that it would not have left."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(toy_config(folder, steps=80, evaluate_every=40, replay={"capacity": 200}), parts=toy_parts())
    image, flags = np.zeros((2, 3, 4, 4, 3), np.uint8), np.ones((2, 3), bool)
    arrays = {"real": image, "imagined": image, "context": np.array(1), "jump": flags}
    save_evidence(RunDirectory.open(folder), "imagination", **arrays, jump_steps=flags.astype(np.float32))
    return folder


def report(config) -> None:
    write_report(RunDirectory.open(config.run_dir))


@pytest.mark.parametrize("part", ["metrics", "episodes", "evidence", "checkpoints", "replay"])
def test_no_torn_or_false_file_ends_in_a_traceback(tmp_path, run, part):
    """Each is read, or refused in one sentence that names the file; nothing appears beside the run.

    (The toy's optimiser believes what it is given; wmkit's learners check theirs.)
    """
    wrong = [tear for tear in tears(run) if tear.file.startswith(part) and "optimiser" not in tear.how]
    assert len(wrong) > 20
    for tear in random.Random(part).sample(wrong, min(24, len(wrong))):
        copy = replica(run, tmp_path / "in" / "run")
        tear(copy)
        config = toy_config(copy, steps=88, final_episodes=0, replay={"capacity": 200})
        config.resume = str(copy)
        for reads in (report, lambda config: train(config, parts=toy_parts())):
            try:
                reads(config)
            except (WmkitError, PermissionError) as error:
                said = str(error)
                assert "\n" not in said and len(said) < 1500, (tear, said)
                assert part in said or "of a checkpoint" in said, (tear, said)
        assert [path.name for path in copy.parent.iterdir()] == ["run"], tear
        shutil.rmtree(copy.parent)


@pytest.mark.parametrize("key", KEYS)
def test_no_key_of_a_schema_leaves_its_folder(tmp_path, key):
    """Neither one that a file names nor one that an environment has."""
    folder = tmp_path / "in" / "replay"
    ReplayStreams(folder, num_streams=1, capacity=20).extend(records(0, 9), 0)
    schema = json.loads((folder / "schema.json").read_text())
    schema["fields"][0]["key"] = key
    (folder / "schema.json").write_text(json.dumps(schema))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="'key' of"):
        ReplayStreams.open(folder)
    assert sorted(tmp_path.rglob("*")) == before
    data = records(0, 9)
    data.set(("sub", key), data["reward"])
    if key != "counters":
        with pytest.raises(SpecError, match="cannot be the name of a file"):
            ReplayStreams(tmp_path / "new", num_streams=1, capacity=20).extend(data, 0)


def test_a_replay_whose_files_are_links_is_refused(tmp_path):
    outside = tmp_path / "outside"
    for link, place in (("reward.memmap", "mine"), ("zoomed", "")):
        folder = tmp_path / f"in {link}"
        ReplayStreams(folder, num_streams=1, capacity=20).extend(records(0, 9), 0)
        outside.mkdir()
        (folder / link).rename(outside / (place or "all"))
        (folder / link).symlink_to(outside / (place or "all"))
        with pytest.raises(CheckpointError, match="found a link"):
            ReplayStreams.open(folder)
        shutil.rmtree(outside)


# ---- a full disk ----------------------------------------------------------------------------------------


def test_a_full_disk_stops_a_run_in_one_sentence_and_it_goes_on(tmp_path, monkeypatch):
    """Also where the disk knows no reservations; then with room again, no record lost."""
    folder, real = tmp_path / "run", os.posix_fallocate
    monkeypatch.setattr("wmkit.data.storage.STEP", 400)
    config = toy_config(folder, steps=400)
    taken = [0]

    def fallocate(handle, start, size):
        taken[0] += size
        if taken[0] > limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle, start, size)

    limit = 9000
    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    with pytest.raises(CheckpointError, match=r"replay/.*no room on its disk: .*No space left.*resume"):
        train(config, parts=toy_parts())
    held = ReplayStreams.open(folder / "replay").total_steps
    assert 0 < held < 400
    config.resume = str(folder)
    with pytest.raises(CheckpointError, match="no room"):
        train(config, parts=toy_parts())
    assert ReplayStreams.open(folder / "replay").total_steps in range(held, held + 8)

    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "no such thing here")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    free = shutil.disk_usage(folder)
    monkeypatch.setattr("wmkit.data.storage.shutil.disk_usage", lambda _: free._replace(free=100))
    with pytest.raises(CheckpointError, match="no room"):
        train(config, parts=toy_parts())
    monkeypatch.setattr("wmkit.data.storage.shutil.disk_usage", lambda _: free)
    assert train(config, parts=toy_parts()).steps >= 400
    streams = ReplayStreams.open(folder / "replay")
    for stream in range(2):
        found = streams.get(streams.ids(stream))
        assert torch.equal(found["observation"], found["reward"])
    assert streams.total_steps >= 400


def test_a_replay_takes_its_disk_as_it_grows(tmp_path):
    streams = ReplayStreams(tmp_path, num_streams=2, capacity=400_000, sparse={"zoomed": 0.01})
    whole = sum(streams.options.bytes_by_key(streams.options.fields(records(0, 1))).values())
    streams.extend(records(0, 10), 0)
    used = [sum(512 * path.stat().st_blocks for path in tmp_path.rglob("*.memmap"))]
    streams.extend(records(0, 3), 1)
    verify(streams)
    used.append(sum(512 * path.stat().st_blocks for path in tmp_path.rglob("*.memmap")))
    assert used[0] < used[1] < whole / 8


# ---- lines of episodes ------------------------------------------------------------------------------------

KILLED = """
    import os, random, signal, sys, threading, time
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from support.toy import toy_config, toy_parts
    from wmkit.training import run, trainer
    from wmkit.training.memory import ReplayMemory
    folder, seed = Path({folder!r}), int(sys.argv[1])
    chance = random.Random(seed)
    calls = [chance.randrange(3, 40)]

    def deadly(name, function):
        def call(*args, **options):
            calls[0] -= 1
            if calls[0] == 0 and chance.random() < 0.5:
                os.kill(os.getpid(), signal.SIGKILL)
            found = function(*args, **options)
            if calls[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return found
        return call

    ReplayMemory.write = deadly("write", ReplayMemory.write)
    run.RunDirectory.append = deadly("append", run.RunDirectory.append)
    config = toy_config(folder, steps=100000, replay={{"capacity": 20000}}, evaluate_every=0)
    config.resume = str(folder) if (folder / "config.yaml").exists() else None
    trainer.train(config, parts=toy_parts())
"""


def test_no_line_of_an_episode_is_lost_or_doubled_by_kills(tmp_path):
    """Before and after each write to replay and each line: episodes that replay holds whole have one line."""
    folder = tmp_path / "run"
    script = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent), folder=str(folder))
    for seed in range(3):
        done = subprocess.run([sys.executable, "-c", script, str(seed)], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    config = toy_config(folder, steps=0, final_episodes=0, replay={"capacity": 20_000})
    config.resume = str(folder)
    train(config, parts=toy_parts())
    streams, ended = ReplayStreams.open(folder / "replay"), 0
    for stream in range(2):
        found = streams.get(streams.ids(stream))
        ended += int((found["terminated"] & (found["reward"] == LENGTH)).sum())
    lines = [line for line in RunDirectory.open(folder).episodes() if line["stage"] in ("prefill", "train")]
    assert len(lines) == ended > 8 and {line["length"] for line in lines} == {LENGTH}
    assert not (folder / ".episodes.owed").exists()
