"""Two worlds that pay only what is aligned and remembered, learned by every system that can act in them.

    python benchmarks/alignment.py --out RUNS                                # trains, then reports
    python benchmarks/alignment.py --out RUNS --only dreamer_v3 --only twm --world bit
    python benchmarks/alignment.py --out RUNS --report                       # reports what is there

`Sign-v0` pays one if the action is the one that the number on view asks for: with observation, action or
reward moved by one step nothing is earned on average. `Bit-v0` shows a bit at an episode's first step and
pays at its last one. Random actions return 0 in both.

Every run is `wmkit train` in a process of its own with one thread: `preset=minigrid` of its system, but for
the environment and the overrides below. Interrupted, it goes on where it stopped when started again. What
the report needs of a run is kept in docs/results/alignment.json, so that runs may come from several folders.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from runs import lines, run_all

HERE = Path(__file__).parent
KEPT = HERE.parent / "docs" / "results" / "alignment.json"


class Sign(gymnasium.Env):
    """Sixteen steps; at each, a number of -1 or 1 by chance.

    Action 1 answers 1 and action 0 answers -1: the right one pays 1, the wrong one -1. The number that is
    paid for is gone when the reward comes, and the next one does not depend on it. A time limit ends an
    episode.
    """

    observation_space, action_space = Box(-1, 1, (1,), np.float32), Discrete(2)
    best, length = 16.0, 16

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def _show(self) -> np.ndarray:
        self.sign = 2 * int(self.np_random.integers(2)) - 1
        return np.array([self.sign], np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = float(self.sign * (2 * int(action) - 1))
        self.t += 1
        return self._show(), reward, False, self.t >= self.length, {}


class Bit(gymnasium.Env):
    """Eight steps; the first record shows (bit, 1), the others (0, 0).

    The last action pays 1 if it equals the bit and -1 otherwise, and ends the episode; others pay nothing.
    """

    observation_space, action_space = Box(0, 1, (2,), np.float32), Discrete(2)
    best, length = 1.0, 8

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t, self.bit = 0, int(self.np_random.integers(2))
        return np.array([self.bit, 1], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        over = self.t >= self.length
        reward = (1.0 if int(action) == self.bit else -1.0) if over else 0.0
        return np.zeros(2, np.float32), reward, over, False, {}


WORLDS: dict[str, Any] = {"sign": Sign, "bit": Bit}
for _world in WORLDS.values():
    _id = f"{_world.__name__}-v0"
    if _id not in gymnasium.registry:
        gymnasium.register(_id, entry_point=f"alignment:{_world.__name__}", disable_env_checker=True)

SYSTEMS = (
    *("dreamer_v1", "dreamer_v2", "dreamer_v3_2023", "dreamer_v3_2024", "dreamer_v3"),
    *("twm", "storm", "transdreamer"),
)
# What a run has beside its system's preset=minigrid: all runs, those of a world, those of a system.
TASK = ("training.steps=4000", "discount=0.9", "controller.entropy=0.05")
WINDOW = {
    "sign": ("batch.size=32", "batch.length=9", "controller.horizon=3"),
    "bit": ("batch.size=16", "batch.length=18", "controller.horizon=8"),
}
SMALL = ("size.groups=4", "size.deter=64", "size.hidden=64")
APART = ("learning_rate.world_model=3e-3", "learning_rate.actor=1e-3", "learning_rate.critic=1e-3")
OVERRIDES: dict[str, tuple[str, ...]] = {
    "dreamer_v1": ("size=tiny", *SMALL, *APART),
    "dreamer_v2": ("size=tiny", *SMALL, *APART),
    "dreamer_v3_2023": ("size=tiny", *SMALL, *APART),
    "dreamer_v3": (*SMALL, "learning_rate.joint=2e-3", "schedule.learners.joint.optimizer.warmup=100"),
    "dreamer_v3_2024": (*SMALL, "learning_rate.joint=2e-3", "schedule.learners.joint.optimizer.warmup=100"),
    "twm": ("learning_rate.world_model=1e-3", "learning_rate.dynamics=1e-3"),
    # As published its policy reads the state alone, which holds what is on view now.
    "twm/bit": ("actor.in_keys=[state,belief]", "critic.in_keys=[state,belief]", "policy.acts_on=sample"),
    "storm": (),
    # As published it acts on the state that its model expected, before it sees what is on view now.
    "storm/sign": ("policy.acts_on=sample",),
    "transdreamer": ("learning_rate.world_model=3e-3",),
}


def overrides(system: str, world: str) -> list[str]:
    """What makes a run, but for seed, threads and folders."""
    of_world = (*TASK, *WINDOW[world], f"env.name=alignment:{WORLDS[world].__name__}-v0")
    return [
        "preset=minigrid",
        "env=gymnasium",
        *of_world,
        *OVERRIDES[system],
        *OVERRIDES.get(f"{system}/{world}", ()),
    ]


def folder(out: Path, system: str, world: str, seed: int) -> Path:
    """Where a run lies."""
    return out / f"{world}-{system}-s{seed}"


def final(run: Path) -> dict:
    """The metrics of a run's last evaluation; empty before it."""
    return next((m for m in reversed(lines(run / "metrics.jsonl")) if m["stage"] == "final"), {})


def train(runs: list[tuple[str, str, int]], args: argparse.Namespace) -> None:
    """Start every run that is not finished, ``args.jobs`` at a time."""
    args.out.mkdir(parents=True, exist_ok=True)
    commands = {}
    for system, world, seed in runs:
        run = folder(args.out, system, world, seed)
        if final(run):
            continue
        line = ["train", system, *overrides(system, world), f"seed={seed}", "threads=1"]
        line += ["training.time_limit=null", "training.report=false", f"run_dir={run}"]
        begun = any((run / "checkpoints").glob("*"))
        commands[run.name] = ["train", system, f"resume={run}"] if begun else line
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    run_all(commands, args.out, args.jobs)


def collect(runs: list[tuple[str, str, int]], args: argparse.Namespace) -> dict[str, dict]:
    """What is kept, with what lies in ``args.out`` put in; runs made with other overrides are dropped."""
    kept: dict[str, dict] = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    for system, world, seed in runs:
        run = folder(args.out, system, world, seed)
        if not (end := final(run)):
            continue
        last = next(m for m in reversed(lines(run / "metrics.jsonl")) if m["stage"] == "train")
        made = overrides(system, world)
        there = kept.get(f"{world}/{system}")
        if there is None or there["overrides"] != made:
            there = kept[f"{world}/{system}"] = {"overrides": made, "seeds": {}}
        there["seeds"][str(seed)] = {
            "return": round(end["eval/return"], 3),
            "steps": last["step"],
            "updates": int(last["updates"]),
            "minutes": round(last["wall"] / 60, 1),
        }
    return {f"{w}/{s}": kept[f"{w}/{s}"] for w in WORLDS for s in SYSTEMS if f"{w}/{s}" in kept}


def table(kept: dict[str, dict]) -> str:
    """One Markdown row per system and world; what differs from seed to seed stands in the order of the seeds.

    Overrides that all runs of a world share are left out.
    """
    head = ["world", "system", "return", "random", "best", "steps", "updates", "minutes", "beside the preset"]
    rows = [head, ["---"] * len(head)]
    for name, numbers in kept.items():
        world, system = name.split("/")
        seeds = [numbers["seeds"][seed] for seed in sorted(numbers["seeds"], key=int)]
        cells = {
            key: [f"{seed[key]:,}" for seed in seeds] for key in ("return", "steps", "updates", "minutes")
        }
        text = {
            key: ", ".join(v if len(set(v)) > 1 or key == "return" else v[:1]) for key, v in cells.items()
        }
        shared = ("preset", "env", *(o.split("=")[0] for o in (*TASK, *WINDOW[world])), "env.name")
        own = " ".join(f"`{o}`" for o in numbers["overrides"] if o.split("=")[0] not in shared)
        best = f"{WORLDS[world].best:g}"
        rows.append(
            [world, system, text["return"], "0", best, text["steps"], text["updates"], text["minutes"], own]
        )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where the runs lie")
    parser.add_argument("--only", action="append", choices=SYSTEMS, help="a system; may be repeated")
    parser.add_argument("--world", action="append", choices=tuple(WORLDS), help="may be repeated")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--report", action="store_true", help="only report")
    args = parser.parse_args()
    args.out = args.out.resolve()
    runs = [
        (system, world, seed)
        for seed in range(args.seeds)
        for world in args.world or WORLDS
        for system in args.only or SYSTEMS
    ]
    if not args.report:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the runs as well
        train(runs, args)
    kept = collect(runs, args)
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    print(table(kept))


if __name__ == "__main__":
    main()
