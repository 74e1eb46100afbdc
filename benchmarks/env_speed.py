"""Steps per second of the embedded worlds, and how often two simple policies win.

    python benchmarks/env_speed.py                     # speed
    python benchmarks/env_speed.py --episodes 300      # success of the random and the mask-walking policy

Speed is measured on one core's worth of work: the simulator and its engine take turns, and never run at the
same time. "best" is the fastest of the chunks (what an idle machine gives), "median" the middle one.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import torch

from wmkit.envs import TASKS, VizdoomEnv, VizdoomSimulator
from wmkit.envs.vizdoom.walker import MaskWalker, measure, random_policy

CHUNK = 50  # steps


def speed(step: Callable[[], object], chunks: int) -> tuple[float, float]:
    """Best and median steps per second."""
    rates = []
    for _ in range(chunks):
        start = time.perf_counter()
        for _ in range(CHUNK):
            step()
        rates.append(CHUNK / (time.perf_counter() - start))
    return max(rates), float(np.median(rates))


def simulator_step(simulator: VizdoomSimulator) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    simulator.reset()

    def step() -> None:
        out = simulator.step(int(rng.integers(12)))
        if out["terminated"][0] or out["truncated"][0]:
            simulator.reset()

    return step


def torchrl_step(env: VizdoomEnv) -> Callable[[], object]:
    actions = torch.eye(12, dtype=torch.int64)
    rng = np.random.default_rng(0)
    carry = [env.reset()]

    def step() -> None:
        _, carry[0] = env.step_and_maybe_reset(carry[0].set("action", actions[int(rng.integers(12))]))

    return step


def print_speed(chunks: int) -> None:
    print("| world | outputs | path | best, steps/s | median |\n|---|---|---|---:|---:|")
    quiet = {"frames": False, "masks": False}
    for world in ("small", "full"):
        for outputs, options in (("frame, goal_mask, pixels", {}), ("pixels", quiet)):
            simulator = VizdoomSimulator("harvest_log_in_plains", world=world, **options)
            env = VizdoomEnv("harvest_log_in_plains", world=world, **options)
            for path, step in (("simulator", simulator_step(simulator)), ("TorchRL", torchrl_step(env))):
                best, median = speed(step, chunks)
                print(f"| {world} | {outputs} | {path} | {best:,.0f} | {median:,.0f} |", flush=True)
            simulator.close()
            env.close()


def interval(wins: int, episodes: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate."""
    rate, n = wins / episodes, episodes
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def print_success(worlds: list[str], episodes: int, walks: int, seed: int) -> None:
    print(
        "| world | task | policy | success | 95 % interval | steps to success |\n|---|---|---|---:|---|---:|"
    )
    for world in worlds:
        for task in TASKS:
            for name, policy, count in (
                ("random", random_policy(1), episodes),
                ("walker", MaskWalker(task), walks),
            ):
                simulator = VizdoomSimulator(
                    task, world=world, seed=seed, frames=False, masks=name == "walker"
                )
                result = measure(simulator, policy, count)
                simulator.close()
                low, high = interval(result.successes, count)
                wins = f"{100 * result.rate:.1f} % ({result.successes} of {count})"
                print(
                    f"| {world} | {task} | {name} | {wins} "
                    f"| {100 * low:.1f} to {100 * high:.1f} % | {result.steps:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=120, help=f"of {CHUNK} steps, for the speed")
    parser.add_argument(
        "--episodes", type=int, default=0, help="measure success instead: random episodes per task"
    )
    parser.add_argument("--walks", type=int, default=None, help="episodes of the walker (default: as many)")
    parser.add_argument("--worlds", nargs="+", default=["small", "full"])
    parser.add_argument("--seed", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.episodes:
        print_success(args.worlds, args.episodes, args.walks or args.episodes, args.seed)
    else:
        print_speed(args.chunks)
