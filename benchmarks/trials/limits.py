"""A disk that takes no more, and a training that goes on for long."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from .common import SYSTEM, TINY, Trial, end, leftover, lost, safe, start

# Bytes that no file of the run may grow beyond, from the first to what checkpoints and replay need.
LIMITS = (1_000, 10_000, 30_000, 60_000, 100_000, 200_000, 400_000)


def disk(trial: Trial) -> None:
    """One limit a row: a run that meets it, and the same with room again."""
    for limit in LIMITS[-trial.options.limits :]:
        if not trial.begin(f"{limit:,} bytes"):
            continue
        folder = trial.folder / f"run{limit}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".safe").unlink(missing_ok=True)
        play = ("training.steps=1000", "training.train_ratio=0.2", "training.checkpoint_every=500")
        more = (*play, "training.replay.capacity=8000", f"run_dir={folder}")
        found = end(start(folder, "train", SYSTEM, *TINY, *more, limit=limit), folder, 90)
        missing = lost(folder)
        codes, tracebacks, said = [found["code"]], found["tracebacks"], found["said"]
        if (folder / "config.yaml").is_file():
            last = ("training.steps=1064", "training.final_episodes=1")
            again = end(start(folder, "train", SYSTEM, f"resume={folder}", *last), folder, 90)
            codes, tracebacks = [*codes, again["code"]], tracebacks + again["tracebacks"]
            said += f" | {again['said']}" * again["tracebacks"]
            missing = {key: max(value, missing[key]) for key, value in lost(folder).items()}
        trial.keep(f"{limit:,} bytes", codes=codes, tracebacks=tracebacks, said=said, **missing)


def memory(pid: int) -> float:
    """Resident megabytes of a process that are no file's; the pages of replay are the disk's."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def soak(trial: Trial) -> None:
    """One row: a tiny system that plays and learns, its memory sampled from a tenth of its steps on."""
    if not trial.begin("soak"):
        return
    folder, steps = trial.folder / "run", trial.options.soak
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".safe").unlink(missing_ok=True)
    long = (f"training.steps={steps}", "training.train_ratio=0.2", "training.log_every=1000")
    long += (
        f"training.checkpoint_every={max(steps // 20, 64)}",
        f"training.replay.capacity={2 * steps + 1000}",
    )
    pid = start(folder, "train", SYSTEM, *TINY, *long, f"run_dir={folder}")
    deadline, samples = time.monotonic() + 60 * trial.options.minutes, list[tuple[int, float]]()
    stopped = False
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        (trial.out / "soak.now").write_text("soak")
        if used := memory(pid):
            samples.append((safe(folder), round(used, 1)))
        if time.monotonic() > deadline and not stopped:
            os.kill(pid, signal.SIGTERM)
            stopped = True
        time.sleep(min(1.0, 3 * trial.options.minutes))
    found = end(pid, folder, 60)
    played = safe(folder)
    settled = [used for step, used in samples if step >= played / 10] or [0.0]
    thinned = samples[:: max(1, len(samples) // 40)]
    trial.keep(
        "soak",
        **found,
        **lost(folder),
        steps=played,
        memory=[settled[0], settled[-1], max(settled)],
        samples=thinned,
        orphans=len(leftover()),
    )
