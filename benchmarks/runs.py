"""Trainings in processes of their own, and what they have written: for the drivers beside this file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def run_all(commands: dict[str, list[str]], out: Path, jobs: int) -> None:
    """Run `wmkit` with each command, ``jobs`` at a time, one thread each; output goes to OUT/NAME.log.

    Args:
        commands: arguments of `wmkit` by the name of a run, in the order in which they are started.
        out: where the logs lie.
        jobs: processes side by side.
    """
    queue, running = list(commands.items()), dict[subprocess.Popen, str]()
    try:
        while queue or running:
            while queue and len(running) < jobs:
                name, command = queue.pop(0)
                with (out / f"{name}.log").open("a") as log:
                    program = [sys.executable, "-m", "wmkit", *command]
                    process = subprocess.Popen(
                        program, env={**os.environ, **ONE_THREAD}, stdout=log, stderr=log
                    )
                running[process] = name
                say(f"started {name}")
            time.sleep(2)
            for process in [p for p in running if p.poll() is not None]:
                say(f"ended {running.pop(process)} with exit code {process.returncode}")
    finally:
        for process in running:
            process.terminate()


def lines(path: Path) -> list[dict]:
    """The whole JSON lines of a file, which may still be written to; none if it is not there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)
