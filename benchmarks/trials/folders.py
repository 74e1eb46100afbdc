"""Run folders of strangers, and files that were torn: nothing executes, each is read or refused."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

from support.hostile import MODULE, SECRET, hostile_folders, write_module
from support.torn import replica, tears

from .common import SHORT, SYSTEM, TINY, Trial, call


def whole(trial: Trial) -> Path:
    """A finished run."""
    folder = trial.out / "whole"
    if not (folder / "checkpoints").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        found = call("train", SYSTEM, *TINY, *SHORT, f"run_dir={folder}", seconds=120)
        assert found["code"] == 0, found
    return folder


def hostile(trial: Trial) -> None:
    """One folder a row: the report, and one more command that opens it."""
    trial.begin("")
    run, marks, code = whole(trial), trial.folder / "marks", trial.folder / "path"
    shutil.rmtree(marks, ignore_errors=True)
    shutil.rmtree(trial.folder / "in", ignore_errors=True)
    write_module(code, marks)
    sys.path.insert(0, str(code))
    os.environ[SECRET] = "opensesame"
    try:
        for i, folder in enumerate(hostile_folders(trial.folder / "in", run, marks)[: trial.options.folders]):
            if not trial.begin(folder.name):
                continue
            resume = (SYSTEM, f"resume={folder}", "training.steps=72")
            ways = (
                ("eval", folder, "--episodes", 1),
                ("imagine", folder),
                ("train", *resume),
                ("doctor", *resume),
            )
            before, found = (
                sorted(folder.rglob("*")),
                [call(*way) for way in (("report", folder), ways[i % 4])],
            )
            executed = [*(path.name for path in marks.iterdir()), *(m for m in (MODULE,) if m in sys.modules)]
            told = any("opensesame" in f["said"] for f in found) or any(
                b"opensesame" in path.read_bytes() for path in folder.rglob("*.html")
            )
            trial.keep(
                folder.name,
                codes=[f["code"] for f in found],
                tracebacks=sum(f["tracebacks"] for f in found),
                executions=len(executed) + told + (sorted(folder.rglob("*")) != before),
                said=" | ".join(f["said"] for f in found if f["tracebacks"]),
            )
            for mark in marks.iterdir():
                mark.unlink()
            sys.modules.pop(MODULE, None)
    finally:
        sys.path.remove(str(code))
        del os.environ[SECRET]


def torn(trial: Trial) -> None:
    """One tear a row: the report, then the run goes on for some steps."""
    trial.begin("")
    run, place = whole(trial), trial.folder / "in"
    wanted = list(enumerate(tears(run)))
    wanted = random.Random(0).sample(wanted, min(trial.options.torn, len(wanted)))
    for i, tear in wanted:
        if not trial.begin(f"{i} {tear}"):
            continue
        shutil.rmtree(place, ignore_errors=True)
        copy = replica(run, place / "run")
        tear(copy)
        resume = ("train", SYSTEM, f"resume={copy}", "training.steps=72", "training.final_episodes=0")
        found = [call("report", copy), call(*resume)]
        outside = [path.name for path in place.iterdir()] != ["run"]
        trial.keep(
            f"{i} {tear}",
            codes=[f["code"] for f in found],
            tracebacks=sum(f["tracebacks"] for f in found),
            executions=int(outside),
            said=" | ".join(f["said"] for f in found if f["tracebacks"]),
        )
    shutil.rmtree(place, ignore_errors=True)
