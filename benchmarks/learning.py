"""Learning curves of a group of experiments: a preset, a system, a few seeds each.

    python benchmarks/learning.py --group dreamer_v3 --out RUNS            # trains, then reports
    python benchmarks/learning.py --group tokens --out RUNS --only twm_minigrid --jobs 2
    python benchmarks/learning.py --group tokens --out RUNS --report       # reports what is there

Every run is `wmkit train` in a process of its own with one thread. Interrupted, it goes on where it stopped
when started again; what is finished is left alone. Before a report, random actions are played once per
experiment, in the evaluation's environment. Writes docs/results/GROUP.png and GROUP.json and prints a table.

Curves are returns (or successes) of training episodes. Published curves count frames, so where an action is
held for several, the axis does too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from runs import lines, run_all

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results"
COLOURS = ("#2a6f4e", "#d08c2c", "#7a5195", "#3b6fb6", "#b03a48", "#666666")
POINTS, WINDOW = 60, 1 / 8  # of a curve; share of the run whose episodes a point averages


@dataclass(frozen=True)
class Experiment:
    """One system on one task.

    Attributes:
        system: of `wmkit list system`.
        overrides: what makes the run; usually one preset.
        task: experiments of one task share a plot.
        measure: of episodes, `return` or `success`.
        published: a name in learning_published.json.
    """

    system: str
    overrides: tuple[str, ...]
    task: str
    measure: str = "return"
    published: str | None = None


GROUPS = {
    "dreamer_v3": {
        "cartpole": Experiment("dreamer_v3", ("preset=cartpole",), "CartPole"),
        "cartpole_pixels": Experiment("dreamer_v3", ("preset=cartpole_pixels",), "CartPole, pixels"),
        "pendulum": Experiment("dreamer_v3", ("preset=pendulum",), "Pendulum"),
        "cartpole_swingup": Experiment(
            "dreamer_v3", ("preset=cartpole_swingup",), "cartpole swingup", published="cartpole_swingup"
        ),
        "reacher_easy": Experiment(
            "dreamer_v3", ("preset=reacher_easy",), "reacher easy", published="reacher_easy"
        ),
        "minigrid": Experiment("dreamer_v3", ("preset=minigrid",), "MiniGrid, a random start in 6 x 6"),
    },
    "tokens": {
        f"{system}_{name}": Experiment(system, (f"preset={system}/{name}",), task, measure)
        for name, task, measure in (
            ("minigrid", "MiniGrid Empty 5x5", "return"),
            ("atari_small", "Atari Up'n Down", "return"),
        )
        for system in ("twm", "storm")
    },
}


# ------------------------------------------------------------------------------------------------ training


def folder(out: Path, name: str, seed: int) -> Path:
    """Where a run lies."""
    return out / f"{name}-s{seed}"


def command(experiment: Experiment, run: Path, seed: int, extra: list[str]) -> list[str]:
    """The exact command line of one run."""
    if any((run / "checkpoints").glob("*")):
        return ["train", experiment.system, f"resume={run}"]
    line = ["train", experiment.system, *experiment.overrides, f"seed={seed}", "threads=1"]
    return [*line, "training.time_limit=null", *extra, f"run_dir={run}"]


def finished(run: Path) -> bool:
    """Whether a run has had its final evaluation."""
    return any(m["stage"] == "final" for m in lines(run / "metrics.jsonl"))


def train(experiments: dict[str, Experiment], args: argparse.Namespace) -> None:
    """Start every run that is not finished, ``args.jobs`` at a time; the first seeds of all come first."""
    args.out.mkdir(parents=True, exist_ok=True)
    queue = [(name, seed) for seed in range(args.seeds) for name in experiments]
    runs = [(name, seed, folder(args.out, name, seed)) for name, seed in queue]
    commands = {
        run.name: command(experiments[name], run, seed, args.override)
        for name, seed, run in runs
        if not finished(run)
    }
    run_all(commands, args.out, args.jobs)


def play_at_random(experiment: Experiment, path: Path, episodes: int, extra: list[str]) -> dict[str, float]:
    """Means of random play in the evaluation's environment, played once and kept in ``path``."""
    if path.is_file():
        return json.loads(path.read_text())
    import torch

    from wmkit.systems import compose
    from wmkit.training.evaluate import evaluate
    from wmkit.training.parts import make_training_env
    from wmkit.training.protocol import EvaluationProtocol

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = compose(experiment.system, [*experiment.overrides, *extra])
    env = make_training_env(config, None, seed=0, evaluation=True)

    def act(observed: Any) -> Any:
        return observed.set("action", env.full_action_spec["action"].rand())

    protocol = replace(EvaluationProtocol.of(config, episodes), sampled=True)
    found = evaluate(act, env, protocol).episodes
    env.close()
    scores = np.array([[e.episode_return, bool(e.success), e.length] for e in found])
    numbers = dict(zip(("return", "success", "length"), scores.mean(0).tolist(), strict=True))
    numbers |= {"return_std": float(scores[:, 0].std()), "protocol": protocol.record()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(numbers))
    return numbers


# ------------------------------------------------------------------------------------------------ reporting


def newest(run: Path, stage: str) -> dict:
    """The last metrics of a stage."""
    return next((m for m in reversed(lines(run / "metrics.jsonl")) if m["stage"] == stage), {})


def setting(run: Path, name: str, default: Any) -> Any:
    """One number of a run's configuration."""
    from omegaconf import OmegaConf

    value = OmegaConf.select(OmegaConf.load(run / "config.yaml"), name)
    return default if value is None else value


def training_episodes(run: Path, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Step at which each training episode ended, and what it brought."""
    episodes = [e for e in lines(run / "episodes.jsonl") if e["stage"] in ("prefill", "train")]
    return np.array([e["step"] for e in episodes]), np.array([float(e[measure] or 0) for e in episodes])


def curve(run: Path, measure: str, grid: np.ndarray) -> np.ndarray:
    """Mean over the episodes that ended in the window before each grid point; not a number where none did."""
    steps, values = training_episodes(run, measure)
    window = grid[-1] * WINDOW
    inside = [(steps > point - window) & (steps <= point) for point in grid]
    reached = steps.max(initial=0) + window / 2
    seen = [i.any() and point <= reached for i, point in zip(inside, grid, strict=True)]
    return np.array([values[i].mean() if s else np.nan for i, s in zip(inside, seen, strict=True)])


def summary(name: str, experiment: Experiment, runs: list[Path], random: dict[str, float]) -> dict:
    """One row of the table."""
    key = {"success": "success_rate"}.get(experiment.measure, experiment.measure)
    played = [training_episodes(run, experiment.measure) for run in runs]
    ends = [values[steps > steps.max() * (1 - WINDOW)].mean() for steps, values in played if len(steps)]
    final, last = ([newest(run, stage) for run in runs] for stage in ("final", "train"))
    return {
        "run": name,
        "system": experiment.system,
        "measure": experiment.measure,
        "seeds": len(runs),
        "steps": [m.get("step") for m in last],
        "updates": [int(m.get("updates", 0)) for m in last],
        "random": digits(random[experiment.measure]),
        "end of training": [digits(value) for value in ends],
        "evaluation": [digits(m[f"eval/{key}"]) if m else None for m in final],
        "protocol": next((m["protocol"] for m in final if "protocol" in m), None),
        "minutes": [round(m.get("wall", 0) / 60) for m in last],
    }


def digits(value: float) -> float:
    """Three digits that count."""
    return float(f"{value:.3g}")


def report(experiments: dict[str, Experiment], args: argparse.Namespace) -> None:
    """Plot the curves, write the numbers, print the table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from wmkit.training.protocol import EvaluationProtocol

    published = json.loads((HERE / "learning_published.json").read_text())
    seeds = range(args.seeds)
    there = {name: [folder(args.out, name, seed) for seed in seeds] for name in experiments}
    there = {
        name: [run for run in runs if (run / "episodes.jsonl").is_file()] for name, runs in there.items()
    }
    there = {name: runs for name, runs in there.items() if runs}
    tasks = list(dict.fromkeys(experiments[name].task for name in there))
    if not tasks:
        print("no runs yet")
        return
    columns = min(3, len(tasks))
    shape = -(-len(tasks) // columns), columns
    size = (1 + 4 * columns, 0.3 + 3.2 * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, dpi=120, squeeze=False)
    rows, curves = [], {}
    for task, axis in zip(tasks, axes.flat, strict=False):
        names = [name for name in there if experiments[name].task == task]
        for name, colour in zip(names, COLOURS, strict=False):
            experiment, runs = experiments[name], there[name]
            random = play_at_random(
                experiment, args.out / f"random-{name}.json", args.random_episodes, args.override
            )
            rows.append(summary(name, experiment, runs, random))
            repeat = int(setting(runs[0], "env.options.action_repeat", 1))
            budget = int(setting(runs[0], "training.steps", 0))
            grid = np.linspace(0, budget, POINTS + 1)[1:]
            found = np.stack([curve(run, experiment.measure, grid) for run in runs])
            curves[name] = {"steps": grid.round().tolist(), "seeds": [rounded(c) for c in found]}
            axis.plot(grid * repeat, found.T, color=colour, lw=0.8, alpha=0.45)
            counts = (~np.isnan(found)).sum(0)
            mean = np.where(counts == len(runs), np.nansum(found, 0) / np.maximum(counts, 1), np.nan)
            label = f"{experiment.system} ({len(runs)} seed{'s' * (len(runs) > 1)})"
            axis.plot(grid * repeat, mean, color=colour, lw=2, label=label)
            axis.axhline(random[experiment.measure], color="black", lw=0.9, ls=":")
            if experiment.published:
                other = published[experiment.published]
                inside = [(s, v) for s, v in zip(*other["curve"], strict=True) if s <= budget * repeat]
                axis.plot(*zip(*inside, strict=True), "k--", lw=1, marker=".", label=other["label"])
        axis.plot([], [], "k:", lw=0.9, label="random actions")
        axis.set_title(task, fontsize=10)
        axis.set_xlabel("environment steps" if repeat == 1 else f"frames ({repeat} a step)", fontsize=8)
        axis.set_ylabel(f"{experiments[names[0]].measure} of training episodes", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7, frameon=False)
    for axis in axes.flat[len(tasks) :]:
        axis.set_axis_off()
    figure.tight_layout()
    RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(RESULTS / f"{args.group}.png")
    text = json.dumps({"runs": rows, "curves": curves}, indent=1)
    (RESULTS / f"{args.group}.json").write_text(text + "\n")
    machine = platform.processor() or platform.machine()
    print(f"machine: {machine}, {os.cpu_count()} cores, one thread per run\n{markdown(rows)}")
    for row in rows:
        if row["protocol"]:
            print(f"{row['run']}: {EvaluationProtocol.read(row['protocol'])}")


def rounded(values: np.ndarray) -> list[float | None]:
    """For JSON, which knows no NaN."""
    return [None if np.isnan(value) else digits(value) for value in values]


def markdown(rows: list[dict]) -> str:
    """The rows as a Markdown table."""

    def cell(value: object) -> str:
        if isinstance(value, list):
            return ", ".join(map(cell, value))
        if isinstance(value, (int, float)):
            return f"{value:,}" if isinstance(value, int) else f"{value:g}"
        return "–" if value is None else str(value)

    head = [key for key in rows[0] if key != "protocol"]
    body = [[cell(row[key]) for key in head] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *body])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--group", choices=GROUPS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="where the runs lie")
    parser.add_argument("--only", action="append", help="an experiment of the group; may be repeated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--random-episodes", type=int, default=100, help="of random play")
    parser.add_argument("--override", action="append", default=[], help="for every run, e.g. batch.size=16")
    parser.add_argument("--report", action="store_true", help="only report")
    args = parser.parse_args()
    args.out = args.out.resolve()
    experiments = GROUPS[args.group]
    if unknown := set(args.only or ()) - set(experiments):
        parser.error(f"no experiment {', '.join(sorted(unknown))}: wanted some of {', '.join(experiments)}")
    experiments = {name: e for name, e in experiments.items() if name in (args.only or experiments)}
    if not args.report:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the runs as well
        train(experiments, args)
    report(experiments, args)


if __name__ == "__main__":
    main()
