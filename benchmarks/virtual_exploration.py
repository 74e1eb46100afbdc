"""Times virtual exploration and says how well its fast mode agrees with the exact one.

    python benchmarks/virtual_exploration.py [--steps 300] [--frames 24] [--threads 1]

Maps are 160 x 256. The embedded scorer is trained for ``--steps`` steps on frames of
``vizdoom/harvest_log_in_plains`` first; agreement is taken over frames of other worlds.
The released code, on one core of a 2-core box: fusion 44 ms, zoom window 23 ms.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from wmkit.affordance import fuse_scores, zoom_window
from wmkit.affordance.labels.virtual_exploration import VirtualExploration
from wmkit.affordance.scorers import ClipSource, EmbeddedScorer, LabelScorer
from wmkit.envs import make_env, task_prompt

SIZE = (160, 256)


def best_of(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least and median seconds of one call."""
    for _ in range(3):
        work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken), sorted(taken)[len(taken) // 2]


def agreement(a: Tensor, b: Tensor) -> str:
    correlation = torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]
    error = (a - b).abs().mean()
    both, either = ((a > 0.5) & (b > 0.5)).sum(), ((a > 0.5) | (b > 0.5)).sum()
    overlap = both / either.clamp_min(1)
    return f"correlation {correlation:.3f}, mean abs error {error:.4f}, IoU at 0.5 {overlap:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scorer", help="folder of a trained embedded scorer, in place of training one")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    name = "vizdoom/harvest_log_in_plains"
    prompt = task_prompt(name)
    env = make_env(name, world="small", max_steps=150)
    other_worlds = ClipSource.from_env(env, prompt, steps=400, seed=77)
    if arguments.scorer:
        embedded, trained = EmbeddedScorer.load(arguments.scorer), "loaded"
    else:
        source = ClipSource.from_env(env, prompt, steps=1600, seed=1)
        embedded, start = EmbeddedScorer(), time.perf_counter()
        metrics = embedded.fit(source, prompt=prompt, steps=arguments.steps)
        trained = f"{time.perf_counter() - start:.0f} s, held-out AUC {metrics['auc']:.3f}"
    visible = other_worlds.covered.nonzero().flatten()
    chosen = visible[torch.linspace(0, len(visible) - 1, min(arguments.frames, len(visible))).long()]
    frames, masks = other_worlds.frames[chosen], other_worlds.masks[chosen]

    exact, fast = VirtualExploration(embedded), VirtualExploration(embedded, mode="fast")
    labels = VirtualExploration(LabelScorer())
    scores = 21.8 + torch.randn(9, 9)
    affordance = exact(frames[:1], [prompt])[0, 0]
    table = Table(
        "what", "least", "median", "note", title=f"virtual exploration, {arguments.threads} thread(s)"
    )
    for label, work, repeats, unit, note in (
        ("fuse 81 scores", lambda: fuse_scores(scores, SIZE), 300, 1e3, "target 0.2 ms"),
        ("zoom window", lambda: zoom_window(affordance), 300, 1e3, "target 1 ms"),
        ("map, labels", lambda: labels(masks[:1], [prompt]), 50, 1e3, "integral image, exact"),
        ("map, embedded, exact", lambda: exact(frames[:1], [prompt]), 10, 1e3, "1216 frames"),
        ("map, embedded, fast", lambda: fast(frames[:1], [prompt]), 20, 1e3, "119 frames"),
    ):
        least, median = best_of(work, repeats)
        table.add_row(label, f"{least * unit:.3f} ms", f"{median * unit:.3f} ms", note)
    console = Console(width=120)
    console.print(table)
    maps = exact(frames, [prompt])[:, 0]
    truth = labels(masks, [prompt])[:, 0]
    console.print(f"embedded scorer trained: {trained}")
    console.print(
        f"fast against exact, {len(frames)} frames with the goal in view: "
        f"{agreement(fast(frames, [prompt])[:, 0], maps)}"
    )
    console.print(f"embedded against labels: {agreement(maps, truth)}")
    console.print(f"labels against the object mask: {agreement(truth, masks[:, 0].float())}")
    windows = zoom_window(maps)
    hits = [
        bool(mask[0, t:b, left:r].any())
        for mask, (t, left, b, r), found in zip(
            masks, windows.box.tolist(), windows.found.tolist(), strict=True
        )
        if found
    ]
    console.print(f"zoom windows of embedded maps that contain the goal: {sum(hits)} of {len(hits)}")


if __name__ == "__main__":
    main()
