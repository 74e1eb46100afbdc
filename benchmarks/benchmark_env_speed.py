"""Environment steps per second of processor time, at each page's defaults, random actions.

    python benchmarks/benchmark_env_speed.py [--seconds 5] [page ...]

Counts the time of the process on all its threads, so that other work on the machine hardly shows.
"""

from __future__ import annotations

import argparse
import time

import torch

from wmkit.envs import make_env
from wmkit.errors import WmkitError
from wmkit.systems import compose

PAGES = {
    "gymnasium": [],
    "gymnasium (pixels)": ["env.pixels=true"],
    "atari100k": [],
    "atari": [],
    "crafter": [],
    "dmc_proprio": [],
    "dmc_vision": [],
    "dmc_vision (shadows=false)": ["env.options.shadows=false"],
    "minigrid": [],
    "minigrid (pixels)": ["env.pixels=true"],
}


def measure(page: str, overrides: list[str], seconds: float) -> tuple[float, float]:
    """Steps per second of processor time without and with the resets that they needed."""
    block = compose("dreamer_v3", [f"env={page.split()[0]}", *overrides]).env
    env = make_env(block.name, **block.options)
    current = env.reset()
    for _ in range(20):
        current = env.step_and_maybe_reset(env.rand_action(current))[1]
    steps = 0
    stepping = resetting = 0.0
    while stepping + resetting < seconds:
        current = env.rand_action(current)
        begin = time.process_time()
        stepped = env.step(current)["next"]
        middle = time.process_time()
        current = env.reset() if stepped["done"] else stepped
        stepping, resetting = stepping + middle - begin, resetting + time.process_time() - middle
        steps += 1
    env.close()
    return steps / stepping, steps / (stepping + resetting)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", default=list(PAGES))
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'page':<28} {'steps/s':>9} {'with resets':>12}")
    for page in arguments.pages:
        try:
            alone, together = measure(page, PAGES[page], arguments.seconds)
        except WmkitError as error:
            print(f"{page:<28} {error}")
        else:
            print(f"{page:<28} {alone:>9,.0f} {together:>12,.0f}", flush=True)


if __name__ == "__main__":
    main()
