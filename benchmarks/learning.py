"""Learning curves of a group of experiments: a preset, a system, a few seeds each.

    python benchmarks/learning.py --group dreamer_v3 --out RUNS            # trains, then reports
    python benchmarks/learning.py --group tokens --out RUNS --only twm_minigrid --jobs 2
    python benchmarks/learning.py --group tokens --out RUNS --report       # reports what is there

Every run is `wmkit train` in a process of its own with one thread. Interrupted, it goes on where it stopped
when started again; what is finished is left alone. Before a report, random actions are played once per
experiment, in the evaluation's environment. Writes docs/results/GROUP.png and GROUP.json and prints a table.

What the report needs of a run is kept in GROUP.json, seed by seed: runs may come from several folders and
machines, one after the other.

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
from runs import lines, run_all, say

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results"
COLOURS = ("#2a6f4e", "#d08c2c", "#7a5195", "#3b6fb6", "#b03a48", "#666666")
POINTS, WINDOW = 60, 1 / 8  # of a curve; share of the run whose episodes a point averages
SETTINGS = ("size", "backbone", "env", "training", "batch", "discount", "learning_rate")
SETTINGS += ("controller", "behaviour")  # its older name
# Of these, what says how a run is carried out and watched, not what it learns.
ASIDE = {
    f"training.{name}"
    for name in (
        *("time_limit", "log_every", "check_every", "checkpoint_every", "report", "cuda_graph", "compile"),
        *("evaluate_every", "evaluate_episodes", "final_episodes"),
    )
} | {"env.parallel"}


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
    "dreamer_v1_v2": {
        f"{system}_{name}": Experiment(system, (f"preset={name}", *extra), task)
        for name, task in (("pendulum", "Pendulum"), ("minigrid", "MiniGrid, a random start in 6 x 6"))
        for system, extra in (
            ("dreamer_v1", ("size=tiny",)),
            ("dreamer_v2", ("size=tiny",)),
            ("dreamer_v3_2024", ()),
        )
    },
    "tokens": {
        f"{system}_{name}": Experiment(system, (f"preset={system}/{name}",), task, measure)
        for name, task, measure in (
            ("minigrid", "MiniGrid Empty 5x5", "return"),
            ("atari_small", "Atari Assault", "return"),
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


# ---------------------------------------------------------------------------------------------- collecting


def newest(run: Path, stage: str) -> dict:
    """The last metrics of a stage."""
    return next((m for m in reversed(lines(run / "metrics.jsonl")) if m["stage"] == stage), {})


def settings_of(config: Any) -> dict[str, Any]:
    """What makes two runs comparable, of a resolved configuration; seed, machine and folders do not."""
    whole: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else key)
        else:
            whole[path] = value

    walk({key: value for key, value in config.items() if key in SETTINGS}, "")
    return {key: value for key, value in whole.items() if key not in ASIDE}


def differing(some: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """Settings that differ; what only one side knows is an option that came later, at its default."""
    return sorted(key for key in some.keys() & others.keys() if some[key] != others[key])


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


def digits(value: float) -> float:
    """Three digits that count."""
    return float(f"{value:.3g}")


def record(experiment: Experiment, run: Path, budget: int) -> dict:
    """What is kept of one run."""
    key = {"success": "success_rate"}.get(experiment.measure, experiment.measure)
    steps, values = training_episodes(run, experiment.measure)
    final, last = newest(run, "final"), newest(run, "train")
    grid = np.linspace(0, budget, POINTS + 1)[1:]
    points = curve(run, experiment.measure, grid)
    return {
        "steps": last.get("step", 0),
        "updates": int(last.get("updates", 0)),
        "minutes": round(last.get("wall", 0) / 60),
        "end": digits(values[steps > steps.max() * (1 - WINDOW)].mean()) if len(steps) else None,
        "evaluation": digits(final[f"eval/{key}"]) if final else None,
        "protocol": final.get("protocol"),
        "curve": [None if np.isnan(value) else digits(value) for value in points],
    }


def collect(experiments: dict[str, Experiment], args: argparse.Namespace, kept: dict[str, dict]) -> None:
    """Put what lies in ``args.out`` into what is kept, seed by seed.

    Seeds of an experiment whose settings have changed since are dropped, and a finished run is not given up
    for one that is not.
    """
    from omegaconf import OmegaConf

    for name, experiment in experiments.items():
        for seed in range(args.seeds):
            run = folder(args.out, name, seed)
            if not (run / "episodes.jsonl").is_file():
                continue
            config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=True)
            found = settings_of(config)
            there = kept.get(name)
            changed = [] if there is None else differing(found, there["settings"])
            if changed:
                say(f"{name}: what was kept is dropped, its settings differ in {', '.join(changed)}")
            if there is None or changed:
                random = play_at_random(
                    experiment, args.out / f"random-{name}.json", args.random_episodes, args.override
                )
                there = kept[name] = {
                    "system": experiment.system,
                    "measure": experiment.measure,
                    "frames_a_step": int(found.get("env.options.action_repeat", 1)),
                    "random": digits(random[experiment.measure]),
                    "settings": found,
                    "seeds": {},
                }
            before = there["seeds"].get(str(seed))
            if before is None or before["evaluation"] is None or finished(run):
                there["seeds"][str(seed)] = record(experiment, run, found["training.steps"])


# ------------------------------------------------------------------------------------------------ reporting


def report(
    group: dict[str, Experiment], experiments: dict[str, Experiment], args: argparse.Namespace
) -> None:
    """Bring the kept numbers up to date, plot the curves, print the table."""
    path = RESULTS / f"{args.group}.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    collect(experiments, args, kept)
    kept = {name: kept[name] for name in group if name in kept}
    if not kept:
        print("no runs yet")
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")
    draw({name: group[name] for name in kept}, kept, RESULTS / f"{args.group}.png")
    machine = platform.processor() or platform.machine()
    print(f"machine: {machine}, {os.cpu_count()} cores, one thread per run\n{table(kept)}")
    from wmkit.training.protocol import EvaluationProtocol

    for name, numbers in kept.items():
        played = {seed: s["protocol"] for seed, s in numbers["seeds"].items() if s["protocol"]}
        lines = {seed: str(EvaluationProtocol.read(protocol)) for seed, protocol in played.items()}
        for line in dict.fromkeys(lines.values()):
            seeds = ", ".join(seed for seed, other in lines.items() if other == line)
            print(f"{name}, seed {seeds}: {line}")


def draw(experiments: dict[str, Experiment], kept: dict[str, dict], path: Path) -> None:
    """One plot per task: a thin line per seed, a bold one for their mean where all have come so far."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    published = json.loads((HERE / "learning_published.json").read_text())
    tasks = list(dict.fromkeys(experiment.task for experiment in experiments.values()))
    columns = min(3, len(tasks))
    shape = -(-len(tasks) // columns), columns
    size = (1 + 4 * columns, 0.3 + 3.2 * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, dpi=120, squeeze=False)
    for task, axis in zip(tasks, axes.flat, strict=False):
        names = [name for name, experiment in experiments.items() if experiment.task == task]
        for name, colour in zip(names, COLOURS, strict=False):
            experiment, numbers = experiments[name], kept[name]
            repeat, budget = numbers["frames_a_step"], numbers["settings"]["training.steps"]
            frames = np.linspace(0, budget * repeat, POINTS + 1)[1:]
            found = np.array([seed["curve"] for seed in numbers["seeds"].values()], float)
            axis.plot(frames, found.T, color=colour, lw=0.8, alpha=0.45)
            label = f"{experiment.system} ({len(found)} seed{'s' * (len(found) > 1)})"
            axis.plot(frames, found.mean(0), color=colour, lw=2, label=label)
            axis.axhline(numbers["random"], color="black", lw=0.9, ls=":")
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
    figure.savefig(path)


def table(kept: dict[str, dict]) -> str:
    """One Markdown row per experiment; what differs from seed to seed stands in the order of the seeds."""
    head = ["run", "seeds", "steps", "updates", "random", "end of training", "evaluation", "minutes"]
    rows = [head, ["---"] * len(head)]
    for name, numbers in kept.items():
        seeds = [seed for _, seed in sorted(numbers["seeds"].items(), key=lambda item: int(item[0]))]

        def column(key: str, seeds: list[dict] = seeds) -> str:
            values = [seed[key] for seed in seeds]
            texts = ["–" if v is None else f"{v:,}" if isinstance(v, int) else f"{v:g}" for v in values]
            return texts[0] if len(set(texts)) == 1 else ", ".join(texts)

        end = [column(key) for key in ("steps", "updates")]
        rest = [column(key) for key in ("end", "evaluation", "minutes")]
        rows.append([name, str(len(seeds)), *end, f"{numbers['random']:g}", *rest])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


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
    group = GROUPS[args.group]
    if unknown := set(args.only or ()) - set(group):
        parser.error(f"no experiment {', '.join(sorted(unknown))}: wanted some of {', '.join(group)}")
    experiments = {name: e for name, e in group.items() if name in (args.only or group)}
    if not args.report:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the runs as well
        train(experiments, args)
    report(group, experiments, args)


if __name__ == "__main__":
    main()
