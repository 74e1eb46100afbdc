"""Bars: the time left is that of whatever ends a stage first. The clock stands still unless it is moved."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from support.toy import ToySystem, toy_config, toy_env
from wmkit.training import progress, schedule
from wmkit.training.parts import Parts, make_memory
from wmkit.training.progress import Stages
from wmkit.training.schedule import Deadline
from wmkit.training.trainer import train


class Clock:
    """In place of the module ``time``."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        for module in (progress, schedule):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def stages(terminal=False):
    return Stages(Console(file=io.StringIO(), force_terminal=terminal, width=140), every=0.0)


def test_units_end_a_stage_without_a_limit(clock):
    with stages().stage("train", 100) as stage:
        assert stage.clock() == "-:--"  # nothing is known yet
        stage.start_at(40)
        clock.now = 10.0
        stage.advance(20)
        assert stage.left() == 20.0  # forty more at two a second; what an earlier session did says nothing
        stage.advance(60)
        assert stage.left() == 0.0


def test_the_earlier_of_units_and_time_limit_is_shown(clock):
    deadline = Deadline(10.0)  # 516 seconds of it are for learning, 576 up to the end of playing
    with stages().stage("train", 60_000, limit=deadline.learning_left) as stage:
        assert stage.left() == pytest.approx(516)
        clock.now = 100.0
        stage.advance(1000)
        assert stage.left() == pytest.approx(416)  # not the 5,900 that all steps would take
        clock.now = 515.0
        assert stage.left() == pytest.approx(1)
        stage.advance(58_990)
        assert stage.left() < 1  # and here the steps come first
    with stages().stage("final", 50, "episodes", deadline.playing_left) as stage:
        clock.now = 520.0
        assert stage.left() == pytest.approx(56)
        stage.advance(25)
        assert stage.left() == pytest.approx(5)


def test_compiling_moves_the_limit(clock):
    deadline = Deadline(10.0)
    clock.now, deadline.aside = 100.0, 60.0
    assert deadline.learning_left() == pytest.approx(516 - 40)


def test_a_bar_reads_the_clock_whenever_it_is_drawn(clock):
    """No unit is done meanwhile, as in a long evaluation; at the end it says how long it took."""
    drawn = stages(terminal=True)
    deadline = Deadline(10.0)
    with drawn.stage("train", 60_000, limit=deadline.learning_left) as stage:
        stage.advance(1)
        for now, shown in ((16.0, "8:20"), (456.0, "1:00")):
            clock.now = now
            drawn._progress.refresh()
            assert shown in drawn.console.file.getvalue()
    assert "7:36" in drawn.console.file.getvalue()


def test_what_begins_anew_is_measured_anew(clock):
    with stages().stage("collect", 10) as stage:
        clock.now = 100.0
        stage.reach(10)
        stage.reach(0)
        clock.now = 102.0
        stage.reach(2)
        assert stage.left() == 8.0


def test_every_stage_of_a_run_knows_its_limit(tmp_path, clock):
    """Lines of a log, one for each look: what they promise is what it then takes."""

    class Slow(ToySystem):
        def update(self, batch):
            clock.now += 0.1
            return super().update(batch)

    parts = Parts(toy_env, lambda config, env, device: Slow(), make_memory, lambda *_: None)
    config = toy_config(tmp_path / "run", steps=100_000, time_limit=0.2, train_ratio=1.0, log_every=10_000)
    shown = stages()
    shown.console.file = text = io.StringIO()
    summary = train(config, parts=parts, stages=shown)
    assert summary.steps < 10_000
    lines = [line for line in text.getvalue().splitlines() if line.startswith("train:")]
    left = [line.split(", ")[2].split(" left")[0] for line in lines if " left" in line]
    assert left[0] in ("0:10", "0:09") and left[-1] == "0:00"
    assert "ended after 0:10" in lines[-1] and sorted(left, reverse=True) == left
