"""Training from recorded data: conversion, windows, statistics, runs from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn
from typer.testing import CliRunner

from support.recorded import convert, fit, minari, steps
from wmkit.cli import app
from wmkit.data import ReplayStreams, to_sequence
from wmkit.data.recorded.convert import read_actions, specs, statistics, write_records
from wmkit.data.within import WithinEpisodes
from wmkit.envs import make_env
from wmkit.errors import WmkitError
from wmkit.nn import Standardise
from wmkit.systems import compose
from wmkit.training.checkpoints import CheckpointStore
from wmkit.training.gather import gather
from wmkit.training.records import teach
from wmkit.training.run import RunDirectory

pytest.importorskip("h5py", reason="the extra data is not installed")


def test_an_interrupted_conversion_goes_on_after_the_last_whole_episode(tmp_path: Path):
    fitted = fit(minari(tmp_path / "set"))
    code, shown = read_actions(fitted), dict(specs(fitted).items())
    whole = ReplayStreams(num_streams=2, capacity=100)
    assert write_records(fitted, whole, code, shown, {})
    asked = iter([False, False, True])
    part = ReplayStreams(tmp_path / "replay", num_streams=2, capacity=100)
    assert not write_records(fitted, part, code, shown, {}, stop=lambda: next(asked))
    part = ReplayStreams(tmp_path / "replay", num_streams=2, capacity=100)
    assert write_records(fitted, part, code, shown, {})
    for stream in range(2):
        assert torch.equal(part.ids(stream), whole.ids(stream))
        assert (part.get(part.ids(stream)) == whole.get(whole.ids(stream))).all()


def test_windows_stay_within_episodes_and_reach_every_one_that_fits():
    generator = torch.Generator().manual_seed(0)
    streams = ReplayStreams(num_streams=2, capacity=80)
    sampler = WithinEpisodes(streams)
    seen = 0
    for _ in range(30):  # rings wrap: episodes are evicted, some of them in part
        n = int(torch.randint(2, 14, (), generator=generator))
        init = torch.arange(n)[:, None] == 0
        streams.extend(TensorDict({"is_init": init, "done": init.flip(0)}, [n]), stream=seen % 2)
        seen += 1
        windows = streams.windows(5)
        if int(sampler.episodes(windows)[2].max()) < 5:
            continue
        starts = sampler.draw(windows, 400, generator)
        batch = streams.get(starts[:, None] + 2 * torch.arange(5))
        assert not batch["is_init"][:, 1:].any()
        fits = set()
        for stream in range(2):
            ids = streams.ids(stream)
            flags = streams.get(ids)["is_init"].view(-1)
            fits |= {int(ids[i]) for i in range(len(ids) - 4) if not flags[i + 1 : i + 5].any()}
        assert set(starts.tolist()) <= fits
        if len(fits) < 20:
            assert set(starts.tolist()) == fits


def test_statistics_are_of_all_records_and_lie_in_a_checkpoint(tmp_path: Path):
    fitted = fit(minari(tmp_path / "set"))
    streams = ReplayStreams(num_streams=1, capacity=100)
    write_records(fitted, streams, read_actions(fitted), dict(specs(fitted).items()), {})
    found = statistics(streams)
    numbers = np.concatenate([steps(e, extra=1)["seen"] for e in range(3)]).astype(np.float64)
    assert found["seen"]["mean"] == pytest.approx([numbers.mean()])
    assert found["seen"]["std"] == pytest.approx([numbers.std()])
    assert sum(found["previous_action"]["mean"]) == pytest.approx(1)
    system, other = (nn.Sequential(Standardise("seen", 1), nn.Linear(1, 1)) for _ in range(2))
    teach(system, found)
    other.load_state_dict(system.state_dict())
    assert other[0](torch.as_tensor(numbers).float()).std(unbiased=False) == pytest.approx(1, abs=1e-4)


def test_what_is_collected_is_what_a_collector_would_have_written(tmp_path: Path):
    gather("counting", tmp_path / "set", episodes=2, options={"pixels": True})
    fitted = fit(tmp_path / "set")
    (rollout,) = to_sequence(make_env("counting", pixels=True).rollout(7).unsqueeze(0))
    for records in convert(fitted):
        for key in ("observation", "pixels", "reward", "is_init", "terminated", "done"):
            assert torch.equal(records[key], rollout[key]), key
        assert records["previous_action"][1:].sum(1).eq(1).all()
    with pytest.raises(WmkitError, match="taken"):
        gather("counting", tmp_path / "set", episodes=1)
    with pytest.raises(WmkitError, match="scripted"):
        gather("counting", tmp_path / "other", policy="scripted", episodes=1)
    assert not (tmp_path / "other").exists()


# ---------------------------------------------------------------------------------------- runs

TINY = ("preset=smoke", "threads=1", "batch.size=2", "batch.length=4")


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.output


def train(system: str, data: Path, run: Path, *overrides: str) -> tuple[int, str]:
    return call("train", system, f"data={data}", f"run_dir={run}", *TINY, *overrides)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of the counting environment, collected from the command line."""
    path = tmp_path_factory.mktemp("data") / "counting"
    code, output = call("data", "collect", "counting", "length=9", "--episodes", 6, "--out", path)
    assert code == 0 and "6 episodes, 54 steps" in output
    return path


def test_info_shows_keys_lengths_and_a_strip(tmp_path: Path):
    path = minari(tmp_path / "set")
    code, output = call("data", "info", path, "--strip", tmp_path / "strip.png")
    assert code == 0 and (tmp_path / "strip.png").stat().st_size > 100
    for word in ("Minari", "image", "uint8 [8, 8, 3]", "float32 [1]", "5 to 10 records", "one of 3"):
        assert word in output
    code, output = call("data", "info", tmp_path / "nothing")
    assert code == 2 and "not there" in output


def test_dreamer_v3_learns_from_records_without_an_environment(counted: Path, tmp_path: Path):
    run = tmp_path / "run"
    code, output = call(
        "train", "dreamer_v3", f"data={counted}", f"run_dir={run}", "size=tiny", *TINY, "data.updates=3"
    )
    assert code == 0 and "3 updates" in output, output
    assert (run / "report.html").exists() and not (run / "episodes.jsonl").exists()
    said = json.loads((run / "records.json").read_text())
    assert said["complete"] and said["episodes"] == 6 and said["statistics"]["observation"]["mean"] == [4.5]
    streams = ReplayStreams.open(run / "replay")
    assert len(streams) == 60 and not streams.get(streams.ids(0))["belief"].isnan().any()
    counted_away = counted.rename(counted.with_name("away"))  # a run needs its data set once
    try:
        code, output = call("train", "dreamer_v3", f"resume={run}", "data.updates=5")
        assert code == 0 and "5 updates" in output, output
        code, output = call("train", "dreamer_v3", f"resume={run}", "data.frame_skip=2")
        assert code == 2 and "data.frame_skip is 2: wanted 1" in output
    finally:
        counted_away.rename(counted)
    assert [line["step"] for line in RunDirectory.open(run).metrics("train")][-1] == 5
    code, output = call("eval", run)
    assert code == 2 and "no environment" in output
    code, output = call("data", "info", run)
    assert code == 0 and "wmkit replay" in output


def test_a_run_that_was_stopped_learns_what_one_that_was_not_does(counted: Path, tmp_path: Path):
    plain = ("size=tiny", "training.report=false", "data.windows=across")
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert train("dreamer_v3", counted, once, *plain, "data.updates=5")[0] == 0
    assert train("dreamer_v3", counted, twice, *plain, "data.updates=2")[0] == 0
    assert call("train", "dreamer_v3", f"resume={twice}", "data.updates=5")[0] == 0
    stores = [CheckpointStore(run / "checkpoints") for run in (once, twice)]
    one, two = (store.load(store.latest())["system"] for store in stores)
    assert one.keys() == two.keys()
    weights = [key for key, value in one.items() if isinstance(value, torch.Tensor)]
    assert weights and all(torch.equal(one[key], two[key]) for key in weights)


def test_storm_starts_from_a_run_s_replay_is_evaluated_and_goes_on_live(counted: Path, tmp_path: Path):
    run = tmp_path / "run"
    where = ("env=gym", "env.name=counting", "+env.options.length=9", "env.num_envs=2")
    live = ("data.updates=2", "data.live=true", "data.windows=across", "training.steps=24")
    final = ("training.report=false", "training.final_episodes=2", "training.collect_length=3")
    code, output = train("storm", counted, run, "size=micro", "batch.length=10", *where, *live, *final)
    assert code == 0 and "2 updates" in output and "environment steps    24" in output, output
    assert {line["stage"] for line in RunDirectory.open(run).metrics()} == {"train", "final"}
    streams = ReplayStreams.open(run / "replay")
    assert streams.total_steps == 54 + 24
    for stream in range(2):  # every number still says when it was made
        records = streams.get(streams.ids(stream))
        assert torch.equal(records["observation"], records["reward"])


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["env=gym", "env.name=counting", "+env.options.pixels=true"], "'pixels'"),
        (["env=gym", "env.name=counting", "+env.options.num_actions=5"], "one of 3, wanted one of 5"),
        (["batch.length=40"], "too short"),
        (["data.frame_skip=5", "data.actions=block"], "choices"),
    ],
)
def test_what_does_not_fit_a_run_is_said_and_nothing_is_left(
    overrides: list[str], wanted: str, counted: Path, tmp_path: Path
):
    run = tmp_path / "run"
    code, output = call(
        "train", "dreamer_v3", f"data={counted}", f"run_dir={run}", "size=tiny", *TINY, *overrides
    )
    assert code == 2 and wanted in output, output
    assert not run.exists()


def test_an_environment_is_kept_where_it_was_chosen():
    assert compose("dreamer_v3", ["data=x"]).env is None
    assert compose("dreamer_v3", ["data=x", "env=two_rooms"]).env.name == "two_rooms"
    assert compose("dreamer_v3", ["data=x", "preset=pendulum"]).env.name == "Pendulum-v1"
    assert "data" not in compose("dreamer_v3")
    for wrong in (["data.frame_skip=2"], ["data=x", "data.live=true"], ["data=x", "data.frames=2"]):
        with pytest.raises(WmkitError, match="data"):
            compose("dreamer_v3", wrong)
    with pytest.raises(WmkitError, match="ls_imagine"):
        compose("ls_imagine", ["data=x"])
