"""Environments that lie, raise, die, hang or never end: a run goes on, or stops in a sentence."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

FAULTS: dict[str, tuple[str, ...]] = {  # what goes wrong, and the overrides beside it
    "nan": ("training.on_bad_value=skip",),
    "nan_stops": (),
    "inf": ("training.on_bad_value=skip",),
    "reward_nan": ("training.on_bad_value=skip",),
    "reward_none": (),
    "reward_two": (),
    "shape": (),
    "missing": (),
    "raise": (),
    "raise_in_reset": (),
    "old_api": (),
    "ints": (),
    "same_array": (),
    "endless": ("training.evaluate_limit=64",),
    "die": ("env.parallel=true",),
    "killed": ("env.parallel=true",),
    "hang": ("env.parallel=true", "env.timeout=2"),
    "raise_in_worker": ("env.parallel=true",),
}
ENGINES = {"vizdoom_killed": signal.SIGKILL, "vizdoom_hung": signal.SIGSTOP}  # what an engine gets
AT = 40  # the step of its life at which a world goes wrong


class World(gymnasium.Env):
    """Ten steps an episode; one thing goes wrong in one step of its life, if not in all."""

    observation_space, action_space = Box(-100, 100, (2,), np.float32), Discrete(2)

    def __init__(self, render_mode: str | None = None, fault: str = "") -> None:
        self.render_mode, self.fault, self.taken, self.resets = render_mode, fault, 0, 0
        self.array = np.zeros(2, np.float32)

    def show(self) -> Any:
        self.array = self.array if self.fault == "same_array" else np.zeros(2, np.float32)
        self.array[:] = self.t, self.taken % 7
        return self.array

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.t, self.resets = 0, self.resets + 1
        if self.fault == "raise_in_reset" and self.resets > 3:
            raise OSError("no world is left")
        return self.show() if self.fault == "old_api" else (self.show(), {})

    def step(self, action: Any) -> Any:
        self.t, self.taken = self.t + 1, self.taken + 1
        over = self.t >= 10 and self.fault != "endless"
        if self.fault == "old_api":
            return self.show(), 1.0, over, {}
        ends: Any = (int(over), 0) if self.fault == "ints" else (over, False)
        now = self.taken == AT
        shown, reward = self._wrong(self.show()) if now else (self.show(), 1.0)
        return shown, reward, *ends, {}

    def _wrong(self, shown: Any) -> tuple[Any, Any]:
        match self.fault:
            case "nan" | "nan_stops":
                return shown * np.nan, 1.0
            case "inf":
                return shown + np.inf, 1.0
            case "reward_nan":
                return shown, float("nan")
            case "reward_none":
                return shown, None
            case "reward_two":
                return shown, np.ones(2)
            case "shape":
                return np.zeros(3, np.float32), 1.0
            case "missing":
                return None, 1.0
            case "raise" | "raise_in_worker":
                raise RuntimeError("the simulator\nis gone")
            case "die":
                os._exit(139)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(3600)
        return shown, 1.0


for _fault in FAULTS:
    _id = f"Bad{_fault.title().replace('_', '')}-v0"
    if _id not in gymnasium.registry:
        gymnasium.register(
            _id, entry_point="trials.worlds:World", kwargs={"fault": _fault}, disable_env_checker=True
        )


def run(trial: Any) -> None:
    """One world a row."""
    from .common import (
        SYSTEM,
        TINY,
        end,
        leftover,
        lost,
        safe,
        start,
    )  # a worker that makes a world needs none of it

    for fault, overrides in FAULTS.items():
        if (trial.options.worlds and fault not in trial.options.worlds) or not trial.begin(fault):
            continue
        folder = trial.folder / fault
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".safe").unlink(missing_ok=True)
        name = f"env.name=trials.worlds:Bad{fault.title().replace('_', '')}-v0"
        steps = ("training.steps=160", "training.prefill=32", "training.final_episodes=1")
        pid = start(folder, "train", SYSTEM, *TINY, *steps, name, *overrides, f"run_dir={folder}")
        found = end(pid, folder, 90) | lost(folder)
        found["records"] += untrue(folder)
        trial.keep(fault, **found, orphans=len(leftover()))
    for fault, number in ENGINES.items():
        if (trial.options.worlds and fault not in trial.options.worlds) or not trial.begin(fault):
            continue
        folder = trial.folder / fault
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".safe").unlink(missing_ok=True)
        steps = ("training.steps=160", "training.prefill=32", "training.final_episodes=1", "env.timeout=10")
        world = ("env=harvest_log_in_plains", "env.num_envs=2")
        pid = start(folder, "train", SYSTEM, *TINY[2:], *world, *steps, f"run_dir={folder}")
        for _ in range(1200):
            if safe(folder) >= AT:
                break
            time.sleep(0.05)
        for engine in engines(pid)[:1]:
            os.kill(engine, number)
        found = end(pid, folder, 90) | lost(folder, limit=30)
        if "made anew" not in folder.with_suffix(".log").read_text():
            found |= {"tracebacks": 1, "said": "the engine was not replaced"}
        trial.keep(fault, **found, orphans=len(leftover()))


def engines(pid: int) -> list[int]:
    """ViZDoom's processes of a training."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            if "-iwad" in Path("/proc", child, "cmdline").read_text():
                found.append(int(child))
    return found


def untrue(folder: Path) -> int:
    """Records that do not show the step of their episode, as these worlds do."""
    if not (folder / "replay" / "schema.json").is_file():
        return 0
    from wmkit.data import ReplayStreams

    streams, wrong = ReplayStreams.open(folder / "replay"), 0
    for stream in range(streams.num_streams):
        records, begin = streams.get(streams.ids(stream)), 0
        for t, first in enumerate(records["is_init"].flatten().tolist()):
            begin = t if first else begin
            wrong += int(records["observation"][t, 0]) != t - begin
    return wrong
