"""SIGKILL at random moments of one training, which is then counted, and taken up again."""

from __future__ import annotations

import os
import random
import time

from .common import SYSTEM, TINY, Trial, end, kill, leftover, lost, safe, start

LONG = [
    *(
        "training.steps=10000000",
        "training.prefill=64",
        "training.checkpoint_every=64",
        "training.log_every=64",
    ),
    *("training.replay.capacity=400000", "training.train_ratio=2"),
]


def run(trial: Trial) -> None:
    """One kill a row: a third while it starts, the others while it plays and learns; some with workers."""
    folder = trial.folder / "run"
    for i in range(trial.options.kills):
        if not trial.begin(f"kill {i}"):
            continue
        chance = random.Random(i)
        resumed = (folder / "config.yaml").is_file()
        where = [f"resume={folder}", LONG[0]] if resumed else [*TINY, *LONG, f"run_dir={folder}"]
        before = safe(folder)
        workers = i % 20 == 10
        pid = start(folder, "train", SYSTEM, *where, f"env.parallel={str(workers).lower()}")
        ended = False
        if i % 3 != 1:  # until it plays
            deadline = time.monotonic() + 60
            while safe(folder) == before and time.monotonic() < deadline and not ended:
                time.sleep(0.002)
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        time.sleep(chance.uniform(0, 1))
        if ended or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            found = end(pid, folder, 1)
            found["tracebacks"] = 1  # it was to go on
        else:
            kill(pid)
            found = {"code": -9, "tracebacks": 0, "said": ""}
        orphans = len(leftover()) if workers else 0
        trial.keep(f"kill {i}", **found, **lost(folder), resumed=resumed, orphans=orphans)
    # The last: what is left can be played to an end.
    name = f"to the end after {trial.options.kills}"
    if (folder / "config.yaml").is_file() and trial.begin(name):
        whole = lost(folder)["held"]
        pid = start(folder, "train", SYSTEM, f"resume={folder}", f"training.steps={whole + 64}")
        trial.keep(name, **end(pid, folder, 120), **lost(folder))
