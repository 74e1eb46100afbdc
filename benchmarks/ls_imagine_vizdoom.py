"""LS-Imagine, two ablations and DreamerV3 on an embedded world: same parts, size and budget.

    python benchmarks/ls_imagine_vizdoom.py --out runs/comparison            # trains, then reports
    python benchmarks/ls_imagine_vizdoom.py --out runs/comparison --report   # reports what is there

Every run is `wmkit train` in a process of its own with one thread; two run side by side on two cores.
Interrupted, it goes on where it stopped when started again, also to a larger ``--steps``. The affordance
model is fitted once and shared by the systems that read one. Writes a table and plots to docs/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
from runs import ONE_THREAD, lines, run_all

VARIANTS = {
    "ls_imagine": ("ls_imagine", []),
    "dreamer_v3_2023": ("dreamer_v3_2023", []),
    "ls_imagine without jumps": ("ls_imagine", ["controller.hooks.gate.prob=0"]),
    "ls_imagine without intrinsic reward": ("ls_imagine", ["controller.rewards.intrinsic_reward=0"]),
}
COLOURS = dict(zip(VARIANTS, ("#2a6f4e", "#d08c2c", "#7a5195", "#666666"), strict=True))
RESULTS = Path(__file__).parents[1] / "docs" / "results"


def folder(out: Path, variant: str, seed: int) -> Path:
    """Where a run lies."""
    return out / f"{variant.replace(' ', '_')}-s{seed}"


def command(variant: str, seed: int, out: Path, args: argparse.Namespace) -> list[str]:
    """The exact command line of one run."""
    system, overrides = VARIANTS[variant]
    run = folder(out, variant, seed)
    if any((run / "checkpoints").glob("*")):
        return ["train", system, f"resume={run}", f"training.steps={args.steps}"]
    line = ["train", system, f"env={args.env}", f"seed={seed}", "threads=1", f"training.steps={args.steps}"]
    line += [
        "training.time_limit=null",
        "training.evaluate_every=0",
        f"training.final_episodes={args.episodes}",
    ]
    if system == "ls_imagine":
        line.append(f"affordance.model={out / 'affordance' / 'affordance' / 'model'}")
    return [*line, *overrides, *args.override, f"run_dir={run}"]


def finished(run: Path, steps: int) -> bool:
    """Whether a run has been evaluated after that many steps."""
    return any(m["stage"] == "final" and m["step"] >= steps for m in lines(run / "metrics.jsonl"))


def train(out: Path, args: argparse.Namespace) -> None:
    """Start every run that is not finished, ``args.jobs`` at a time."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "affordance" / "affordance" / "model" / "config.json").is_file():
        fit = ["affordance", "fit", f"env={args.env}", f"run_dir={out / 'affordance'}"]
        subprocess.run([sys.executable, "-m", "wmkit", *fit], env={**os.environ, **ONE_THREAD}, check=True)
    groups = list(VARIANTS)[:2], list(VARIANTS)[2:]  # the two systems first, then the ablations
    queue = [(v, s) for group in groups for s in range(args.seeds) for v in group]
    runs = [(v, s, folder(out, v, s)) for v, s in queue]
    commands = {run.name: command(v, s, out, args) for v, s, run in runs if not finished(run, args.steps)}
    run_all(commands, out, args.jobs)


def newest(logs: list[list[dict]], stage: str) -> list[dict]:
    """The last line of a stage from every log that has one."""
    found = ([m for m in log if m["stage"] == stage] for log in logs)
    return [entries[-1] for entries in found if entries]


def training_episodes(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Step at which each training episode ended, and whether it was won."""
    episodes = [e for e in lines(run / "episodes.jsonl") if e["stage"] in ("prefill", "train")]
    return np.array([e["step"] for e in episodes]), np.array([e["success"] for e in episodes], dtype=float)


def curve(run: Path, grid: np.ndarray, window: float) -> np.ndarray:
    """Success rate of the episodes that ended within ``window`` steps before each grid point.

    Not a number where the run has not been yet.
    """
    steps, success = training_episodes(run)
    inside = [(steps > point - window) & (steps <= point) for point in grid]
    reached = [point >= window and point <= steps.max() + window / 16 for point in grid]
    return np.array(
        [success[i].mean() if r and i.any() else np.nan for i, r in zip(inside, reached, strict=True)]
    )


def report(out: Path, args: argparse.Namespace) -> None:
    """Plot the curves and print the table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grid = np.linspace(0, args.steps, 33)[1:]
    window = args.steps / 8
    figure, axis = plt.subplots(figsize=(7, 4), dpi=120)
    rows = []
    for variant in VARIANTS:
        runs = [folder(out, variant, s) for s in range(args.seeds)]
        runs = [run for run in runs if (run / "episodes.jsonl").is_file()]
        if not runs:
            continue
        curves = np.stack([curve(run, grid, window) for run in runs])
        colour, label = COLOURS[variant], f"{variant} ({len(runs)})"
        axis.plot(grid, curves.T, color=colour, lw=0.9, alpha=0.5)
        axis.plot(grid, curves.mean(0), label=label, color=colour, lw=2)  # while all seeds run
        logs = [lines(run / "metrics.jsonl") for run in runs]
        final, last = newest(logs, "final"), newest(logs, "train")
        played = [training_episodes(run) for run in runs]
        rates = [success[steps > steps.max() - window].mean() for steps, success in played]
        rows.append(
            {
                "variant": variant,
                "seeds": len(runs),
                "steps": [int(steps.max()) for steps, _ in played],
                "updates": [int(m["updates"]) for m in last],
                "success at the end of training": np.round(rates, 2).tolist(),
                "success in evaluation": [round(m["eval/success_rate"], 2) for m in final],
                "imagined jump rate": [round(m.get("jump_rate", 0.0), 4) for m in last],
                "minutes": [round(m["wall"] / 60) for m in last],
            }
        )
    axis.axhline(args.random, color="black", lw=0.8, ls=":", label=f"random policy ({args.random:.0%})")
    axis.set(
        xlabel="environment steps",
        ylabel="success rate of training episodes",
        ylim=(0, 1),
        xlim=(0, args.steps),
    )
    axis.set_title(f"{args.env}: a thin line per seed, a bold one for their mean", fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(RESULTS / "ls_imagine_vizdoom.png")
    (RESULTS / "ls_imagine_vizdoom.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(
        f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread per run"
    )
    print(markdown(rows))


def markdown(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    if not rows:
        return "no runs yet"

    def cell(value: object) -> str:
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    head = list(rows[0])
    body = [[cell(row[key]) for key in head] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *body])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where the runs lie")
    parser.add_argument("--env", default="harvest_log_in_plains")
    parser.add_argument("--steps", type=int, default=60_000, help="environment steps per run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=50, help="of the final evaluation")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--random", type=float, default=0.08, help="measured success of a random policy")
    parser.add_argument("--override", action="append", default=[], help="for every run, e.g. batch.size=16")
    parser.add_argument("--report", action="store_true", help="only report")
    args = parser.parse_args()
    if not args.report:
        train(args.out.resolve(), args)
    report(args.out.resolve(), args)


if __name__ == "__main__":
    main()
