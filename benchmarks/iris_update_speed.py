"""One update of IRIS at its published size beside the same operations done plainly, on one core.

    python benchmarks/iris_update_speed.py --share 16 --rounds 3

Of the published batches (256 frames, 64 windows of 20, 64 starts) one in ``--share`` is taken; sizes, lengths
and horizon are the published ones. The perceptual loss is left out of both sides. They run in turn in one
process; seconds are the processor's, of which the least is shown. ``iris_update_plain`` is the other side.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from iris_update_plain import ACTIONS, pieces
from torchrl.data import Composite, OneHot, UnboundedDiscrete
from update_speed import FlopCounter

import wmkit
from wmkit.fast import keep_freed_memory

Pieces = dict[str, Callable[[], Any]]


def wmkit_pieces(share: int, overrides: list[str]) -> Pieces:
    """The three learners of an update of ours, one after another."""
    system = wmkit.build(
        "iris",
        observation_spec=Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8)),
        action_spec=OneHot(ACTIONS),
        overrides=[
            *("size=paper", "preset=full", f"batch.size={64 // share}"),
            f"controller.starts.count={64 // share}",
            f"schedule.batches.frames.size={256 // share}",
            *overrides,
        ],
    )
    batches, system.schedule.phases = system.example_batches(), ()  # all learners have begun

    def learn(name: str) -> Callable[[], Any]:
        def update() -> Any:
            system.schedule.order = ((name,),)
            return system.update(*batches)

        return update

    return {name: learn(name) for name in ("tokenizer", "dynamics", "agent")}


def seconds(work: Callable[[], Any]) -> float:
    """Of the processor."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def measure(sides: dict[str, Pieces], rounds: int) -> dict[str, dict[str, float]]:
    """The least seconds of each piece of each side; the sides take turns."""
    found: dict[str, dict[str, float]] = {side: {} for side in sides}
    for _ in range(rounds):
        for side, parts in sides.items():
            for name, work in parts.items():
                found[side][name] = min(seconds(work), found[side].get(name, float("inf")))
    return found


def arithmetic(parts: Pieces) -> dict[str, float]:
    """GFLOP of each piece, a product and a sum as two."""
    found = {}
    for name, work in parts.items():
        with FlopCounter() as counter:
            work()
        found[name] = counter.total / 1e9
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=int, default=16, choices=(4, 8, 16, 32, 64))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="of the page, as at_once=true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as `wmkit train` does, for both sides
    sides: dict[str, Pieces] = {
        "plain": pieces(256 // args.share, 64 // args.share, 64 // args.share),
        "wmkit": wmkit_pieces(args.share, args.overrides),
    }
    flops = {side: arithmetic(parts) for side, parts in sides.items()}
    found = measure(sides, args.rounds)
    for table in (flops, found):
        for side in table.values():
            side["update"] = sum(side.values())
    where = f"{args.threads} thread, {platform.machine()}, torch {torch.__version__}"
    print(f"1/{args.share} of the published batches, {where}")
    print(f"{'':12} {'plain s':>9} {'wmkit s':>9} {'ratio':>7} {'plain GFLOP':>12} {'wmkit GFLOP':>12}")
    for name in (*sides["plain"], "update"):
        plain, ours = found["plain"][name], found["wmkit"][name]
        both = f"{flops['plain'][name]:12.1f} {flops['wmkit'][name]:12.1f}"
        print(f"{name:12} {plain:9.2f} {ours:9.2f} {plain / ours:7.2f} {both}")
    if args.json:
        args.json.write_text(json.dumps({"seconds": found, "gflop": flops, "share": args.share}, indent=1))


if __name__ == "__main__":
    main()
