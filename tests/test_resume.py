"""A run that was stopped and taken up again is the run that was not stopped, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from wmkit.cli.app import read_config
from wmkit.data import ReplayStreams
from wmkit.systems.system import System
from wmkit.training.checkpoints import CheckpointStore
from wmkit.training.trainer import train

COMMON = (
    *("env=gym", "threads=1", "batch.size=4", "controller.horizon=3", "training.steps=72"),
    *("training.prefill=40", "training.train_ratio=16", "training.collect_length=3", "training.log_every=16"),
    *("training.evaluate_every=16", "training.evaluate_episodes=1", "training.evaluate_limit=9"),
    *("training.checkpoint_every=24", "training.final_episodes=1", "training.report=false"),
)
SYSTEMS = {
    "dreamer_v3": (
        *(
            "preset=paper",
            "size.deter=16",
            "size.groups=4",
            "size.classes=4",
            "size.hidden=8",
            "size.units=8",
        ),
        *("size.depth=2", "batch.length=8", "training.prefill_windows=0", "training.prefill_actions=random"),
    ),
    "twm": (
        "preset=smoke",
        "size=twm/micro",
        "batch.length=10",
        "controller.starts.count=4",
        "training.pretrain=10",
    ),
}


def configured(system: str, folder: Path, env: str, count: int, *more: str) -> Any:
    named = (f"env.name={env}", f"env.num_envs={count}", f"run_dir={folder}")
    return read_config(system, [*SYSTEMS[system], *COMMON, *named, *more])


def same(ours: Any, other: Any, place: str = "") -> None:
    """Two states hold the same bits."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, other), place
    elif isinstance(ours, Mapping):
        assert ours.keys() == other.keys(), place
        for key in ours:
            same(ours[key], other[key], f"{place}/{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(other), place
        for i, (one, two) in enumerate(zip(ours, other, strict=True)):
            same(one, two, f"{place}/{i}")
    else:
        assert ours == other, (place, ours, other)


def lines(folder: Path, name: str) -> list[dict]:
    """Lines of a log without what a clock says."""
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    timed = ("wall", "speed/")
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in found]


def equal_runs(whole: Path, stopped: Path) -> None:
    """Weights, moments, counts, chance, replay and logs; a stop may add a line of means beside the others."""
    states = []
    for folder in (whole, stopped):
        store = CheckpointStore(folder / "checkpoints")
        states.append(store.load(store.latest()))
    same(*states)
    replays = [ReplayStreams.open(folder / "replay") for folder in (whole, stopped)]
    for stream in range(replays[0].num_streams):
        same(*(replay.get(replay.ids(stream)).to_dict() for replay in replays), place=f"stream {stream}")
    assert lines(whole, "episodes.jsonl") == lines(stopped, "episodes.jsonl")
    wanted, found = lines(whole, "metrics.jsonl"), lines(stopped, "metrics.jsonl")
    assert [line for line in found if line in wanted] == wanted


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("system", SYSTEMS)
def test_interrupted(tmp_path, monkeypatch, system, count):
    """By Ctrl-C in the middle of updates, in mid-episode, twice."""
    train(configured(system, tmp_path / "whole", "CartPole-v1", count))
    update, stops = System.update, [5, 12]

    def counted(self, *batches):
        counted.made += 1
        if stops and counted.made == stops[0]:
            stops.pop(0)
            signal.raise_signal(signal.SIGINT)
        return update(self, *batches)

    counted.made = 0
    monkeypatch.setattr(System, "update", counted)
    folder = tmp_path / "stopped"
    assert train(configured(system, folder, "CartPole-v1", count)).interrupted
    assert train(read_config(system, [f"resume={folder}"])).interrupted
    assert not train(read_config(system, [f"resume={folder}"])).interrupted
    equal_runs(tmp_path / "whole", folder)


KILLED = """
import os, signal, sys
from wmkit.training.checkpoints import CheckpointStore
save, saves = CheckpointStore.save, []

def saved(*arguments, **options):
    path = save(*arguments, **options)
    saves.append(path)
    if len(saves) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return path

CheckpointStore.save = saved
sys.path.insert(0, sys.argv[1])
from test_resume import configured
from wmkit.training.trainer import train
from pathlib import Path
train(configured(sys.argv[2], Path(sys.argv[3]), "Pendulum-v1", 2))
"""


def test_killed_at_a_checkpoint(tmp_path, system="dreamer_v3"):
    """By SIGKILL; in an environment whose actions are scaled."""
    folder = tmp_path / "stopped"
    arguments = [sys.executable, "-c", KILLED, str(Path(__file__).parent), system, str(folder)]
    found = subprocess.run(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert found.returncode == -signal.SIGKILL, found.stderr
    train(configured(system, tmp_path / "whole", "Pendulum-v1", 2))
    train(read_config(system, [f"resume={folder}"]))
    equal_runs(tmp_path / "whole", folder)
