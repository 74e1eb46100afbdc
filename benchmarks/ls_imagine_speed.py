"""What LS-Imagine's parts cost on this machine, in one table.

    python benchmarks/ls_imagine_speed.py [--threads 2] [--json FILE]

The column `released` holds what the released code takes for the same work on a 2-core CPU box (figures of
the specification; the update at size small, 16 x 32, 15 % of positions zoomed). Medians after warm-up, wall
clock. Run it on a quiet machine: two threads that share their cores with other work take many times longer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, OneHot, Unbounded, UnboundedDiscrete
from torchrl.envs.utils import ExplorationType, set_exploration_type

import wmkit
from wmkit.affordance import SmallUNet, SwinUNet, VirtualExploration, fuse_scores, zoom_window
from wmkit.affordance.scorers import LabelScorer
from wmkit.affordance.transform import AffordanceTransform
from wmkit.data import ReplayStreams
from wmkit.objectives import Scene
from wmkit.optim import Loss

RELEASED_MS = {
    "fuse 81 scores": 44.0,
    "search the zoom window": 23.0,
    "one update, small, 16x32": 4900.0,
    "  world model": 1100.0,
    "  behaviour": 3800.0,
}
PIXELS = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))


def median_ms(work: Callable[[], object], repeats: int, warm_up: int = 2) -> float:
    """Median wall-clock milliseconds of ``work``."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def affordance_rows() -> dict[str, float]:
    """Virtual exploration, U-Nets, transform."""
    scores, mask = torch.randn(9, 9) + 21.8, torch.zeros(1, 1, 160, 256, dtype=torch.bool)
    mask[..., 60:100, 100:150] = True
    frames = torch.randint(0, 256, (4, 3, 160, 256), dtype=torch.uint8)
    blob = fuse_scores(scores, (160, 256))
    explore = VirtualExploration(LabelScorer())
    small, swin = SmallUNet().eval(), SwinUNet().eval()
    text = torch.randn(512)
    transform = AffordanceTransform(small, text)
    views = TensorDict(
        {"frame": frames, "pixels": frames[..., :64, :64], "reward": torch.zeros(4, 1)}
        | {key: torch.zeros(4, 1, dtype=torch.bool) for key in ("is_init", "done", "terminated")},
        [4],
    ).unsqueeze(1)  # [4, 1]: one step of four environments
    return {
        "fuse 81 scores": median_ms(lambda: fuse_scores(scores, (160, 256)), 200),
        "search the zoom window": median_ms(lambda: zoom_window(blob), 200),
        "virtual exploration, labels, exact": median_ms(lambda: explore(mask, ["Cut a tree"]), 50),
        "small U-Net, one frame": median_ms(lambda: small.predict(frames[:1], text), 50),
        "small U-Net, four frames": median_ms(lambda: small.predict(frames, text), 50),
        "Swin-UNet (published size), one frame": median_ms(lambda: swin.predict(frames[:1], text), 5),
        "transform, four environments": median_ms(lambda: transform(views.clone()), 30),
    }


def replay_rows() -> dict[str, float]:
    """Drawing one batch of 16 x 32 from streams on disk-like memory."""
    system = wmkit.build("ls_imagine", observation_spec=PIXELS, action_spec=OneHot(12), overrides=OVERRIDES)
    streams = ReplayStreams(num_streams=1, capacity=4096)
    for seed in range(4):
        streams.extend(system.example_batch(seed).reshape(-1), 0)
    batch = streams.sample(16, 32)
    return {"replay sample, 16x32": median_ms(lambda: streams.sample(16, 32, out=batch), 50)}


OVERRIDES = ["size=small", "batch.size=16", "batch.length=32"]


def update_rows() -> dict[str, float]:
    """One update at size small, whole and in parts; one acting step."""
    system = wmkit.build("ls_imagine", observation_spec=PIXELS, action_spec=OneHot(12), overrides=OVERRIDES)
    batch, schedule = system.example_batch(), system.schedule

    def score(scene: Scene) -> dict[str, Loss]:
        losses = {}
        for objective in system.objectives.values():
            for name, term in objective.terms(scene).items():
                losses[name] = Loss(objective.weights[name] * term.loss, term.group)
        return losses

    scene = system.scene(batch)
    with torch.no_grad():
        score(scene)  # jumps leave starts of their own

    def world_model() -> None:
        schedule.learn(["world_model"], score(system.scene(batch)))

    def behaviour() -> None:
        terms = system.controller.learn(scene, schedule.slow).terms
        losses = {name: Loss(term.loss, term.group) for name, term in terms.items()}
        schedule.learn(["actor", "critic"], losses)

    first = batch[:1, 0].select("pixels", "affordance")
    first.update({"is_init": torch.ones(1, 1, dtype=torch.bool), "previous_action": torch.zeros(1, 12)})
    dynamics = system.world_model.dynamics
    first.update({"state": torch.zeros(1, dynamics.state_dim), "belief": torch.zeros(1, dynamics.belief_dim)})
    return {
        "one update, small, 16x32": median_ms(lambda: system.update(batch), 5),
        "  world model": median_ms(world_model, 5),
        "  behaviour": median_ms(behaviour, 5),
        "one acting step, small": median_ms(lambda: system.policy(first.clone()), 100),
    }


def acting_rows() -> dict[str, float]:
    """One acting step of dreamer_v3 at size 1m, one environment: a walker's 24 numbers, or an image."""
    sizes = {"height": 1, "orientations": 14, "velocity": 9}
    numbers = Composite({key: Unbounded((size,)) for key, size in sizes.items()})
    rows = {}
    for seen, observation, action in (
        ("24 numbers", numbers, Bounded(-1, 1, (6,))),
        ("3 x 64 x 64", PIXELS, OneHot(6)),
    ):
        system = wmkit.build(
            "dreamer_v3", observation_spec=observation, action_spec=action, overrides=["size=1m"]
        )
        policy, dynamics = system.policy, system.world_model.dynamics
        carried = {"state": dynamics.state_dim, "belief": dynamics.belief_dim}
        first = observation.rand((1,)).update({key: torch.zeros(1, size) for key, size in carried.items()})
        first.update({"is_init": torch.zeros(1, 1, dtype=torch.bool), "previous_action": torch.randn(1, 6)})
        name = f"one acting step, dreamer_v3 1m, {seen}"
        act = partial(policy, first)
        with set_exploration_type(ExplorationType.RANDOM):
            rows[f"{name}, fused"] = median_ms(act, 200, 30)
            policy._fused.step = lambda: None
            rows[f"{name}, part by part"] = median_ms(act, 200, 30)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, ",
        end="",
    )
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}\n")
    rows = affordance_rows() | replay_rows() | update_rows() | acting_rows()
    print("| part | ms | released, ms | ratio |\n| --- | ---: | ---: | ---: |")
    for name, ms in rows.items():
        released = RELEASED_MS.get(name)
        peer = f"{released:.0f} | {ms / released:.3f}" if released else "– | –"
        print(f"| {name.strip()} | {ms:.2f} | {peer} |")
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "ms": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
