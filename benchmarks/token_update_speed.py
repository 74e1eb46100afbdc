"""One training update of TWM or STORM beside the same update in plain PyTorch, and beside the official codes.

    python benchmarks/update_speed.py --system twm --json twm.json
    python benchmarks/update_speed.py --system storm --threads 2

On a CPU, TWM with a tenth of its windows and starts (10 x 16 and 40) and STORM with an eighth (2 x 64 and
128): lengths, horizons and networks are the published ones. On CUDA all of them. Two comparisons:

* a plain side in the same process, in turn (:mod:`token_update_plain`): the cost structure of the official
  codes, whose arithmetic agrees with theirs to a few per cent (it is printed);
* seconds of the official codes themselves, **measured on another machine** with two cores. Only a ratio on
  one machine says how much faster an update is.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from token_update_plain import pieces
from torchrl.data import Composite, OneHot, UnboundedDiscrete

import wmkit
from wmkit.fast import keep_freed_memory

PARTS = ("world model", "imagination", "actor-critic")
ACTIONS = 18
# Windows and starts of the published batch, and the share of it that a CPU is given.
BATCHES = {"twm": (100, 400, 10), "storm": (16, 1024, 8)}
CHANNELS = {"twm": 1, "storm": 3}  # of one frame
# Seconds of the official codes at that share, measured on another machine with two cores, and their GFLOP.
OFFICIAL_S = {"twm": (0.97, 0.88, 0.06, 1.92), "storm": (0.66, 1.77, 0.19, 2.62)}
OFFICIAL_GFLOP = {"twm": (107.9, 91.4, 9.9), "storm": (52.4, 183.0, 27.5)}
ENDS = "imagination ends with what the heads say of all its states at once"
NOTES = {
    "twm": [ENDS],
    "storm": [ENDS, "imagination begins with the encoding of the windows that dreams start in"],
}


def build(args: argparse.Namespace, rows: int, starts: int) -> tuple[Any, Any]:
    """The published system with fewer windows and starts, and a batch."""
    shape = (CHANNELS[args.system], 64, 64)
    system = wmkit.build(
        args.system,
        observation_spec=Composite(pixels=UnboundedDiscrete(shape, dtype=torch.uint8)),
        action_spec=OneHot(ACTIONS),
        overrides=[
            *("size=paper", "preset=full", "training.pretrain=0"),
            *(f"batch.size={rows}", f"controller.starts.count={starts}"),
        ],
    )
    return system.to(args.device), [x.to(args.device) for x in system.example_batches()]


class Clock:
    """Seconds of named pieces; on CUDA the device has finished them."""

    def __init__(self, device: str) -> None:
        self.cuda, self.seconds = device == "cuda", dict[str, float]()

    @contextmanager
    def __call__(self, name: str) -> Any:
        begin = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - begin

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, whose seconds are noted."""

        def timed(*args: Any, **options: Any) -> Any:
            with self(name):
                return work(*args, **options)

        return timed


def wmkit_side(system: Any, batches: list[Any], clock: Clock) -> Callable[[], dict[str, float]]:
    """One update of ours; seconds of its parts, which are timed where they stand."""
    schedule, controller = system.schedule, system.controller
    learn, learn_model = schedule.learn, clock.around("world model", schedule.learn)
    schedule.learn = lambda names, losses: (learn if "actor" in losses else learn_model)(names, losses)
    system._score = clock.around("world model", system._score)
    for name in ("starts", "dream", "outcome"):
        setattr(controller, name, clock.around("imagination", getattr(controller, name)))

    def update() -> dict[str, float]:
        clock.seconds.clear()
        with clock("update"):
            system.update(*batches)
        seconds = dict(clock.seconds)
        seconds["actor-critic"] = seconds["update"] - seconds["world model"] - seconds["imagination"]
        return seconds

    return update


def plain_side(parts: dict[str, Callable[[], None]], clock: Clock) -> Callable[[], dict[str, float]]:
    """One update of the plain side; seconds of its parts."""

    def update() -> dict[str, float]:
        clock.seconds.clear()
        for name, part in parts.items():
            with clock(name):
                part()
        return clock.seconds | {"update": sum(clock.seconds.values())}

    return update


def arithmetic(counter: Any, update: Callable[[], object]) -> float:
    """GFLOP of one update."""
    with counter() as count:
        update()
    return count.total / 1e9


def report(system: str, medians: dict[str, dict[str, float]], cuda: bool) -> None:
    """Print seconds and ratios."""
    plain = "plain" in medians
    heads = ["wmkit, s", *(["plain, s", "ratio"] if plain else [])]
    heads += [] if cuda else ["official, s, measured on another machine", "ratio to it"]
    print(f"| part | {' | '.join(heads)} |\n| --- |{' ---: |' * len(heads)}")
    for name, official in zip((*PARTS, "update"), OFFICIAL_S[system], strict=True):
        ours = medians["wmkit"][name]
        cells = [f"{ours:.3f}"]
        if plain:
            cells += [f"{medians['plain'][name]:.3f}", f"{ours / medians['plain'][name]:.2f}"]
        if not cuda:
            cells += [f"{official:.2f}", f"{ours / official:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


def run(args: argparse.Namespace, counter: Any) -> dict[str, Any]:
    """Measure and print; ``counter`` counts FLOPs (:class:`update_speed.FlopCounter`).

    Returns what ``--json`` holds.
    """
    keep_freed_memory()  # as `wmkit train` does, for both sides
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    cuda = args.device == "cuda"
    rows, starts, share = BATCHES[args.system]
    if not cuda:
        rows, starts = rows // share, starts // share
    system, batches = build(args, rows, starts)
    clock = Clock(args.device)
    ours = wmkit_side(system, batches, clock)
    sides = {"wmkit": ours}
    if not cuda and args.against != "nothing":
        sides["plain"] = plain_side(pieces(args.system, rows, starts), clock)
    machine = {
        "machine": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        **{package: version(package) for package in ("torch", "torchrl", "tensordict")},
        "load": round(os.getloadavg()[0], 2),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{args.system}: {rows} windows, {starts} starts\n")
    for _ in range(args.warm_up):
        for update in sides.values():
            update()
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(args.repeats):
        order = list(sides)[:: 1 if turn % 2 == 0 else -1]
        for name in order:
            seen[name].append(sides[name]())
    keys = (*PARTS, "update")
    medians = {
        name: {key: statistics.median(x[key] for x in runs) for key in keys} for name, runs in seen.items()
    }
    report(args.system, medians, cuda)
    flops = {} if cuda else {name: arithmetic(counter, update) for name, update in sides.items()}
    official = OFFICIAL_GFLOP[args.system]
    if flops:
        text = ", ".join(f"{name} {value:.0f}" for name, value in flops.items())
        print(f"\nGFLOP of an update: {text}, the official code {sum(official):.0f}")
    notes = NOTES[args.system]
    print("\n" + "\n".join(f"- {note}" for note in notes))
    return {
        "settings": {k: v for k, v in vars(args).items() if k != "json"}
        | {"against": "plain" if "plain" in sides else "nothing"},
        "machine": machine,
        "windows": rows,
        "starts": starts,
        "medians_s": medians,
        "seconds": seen,
        "official_s_on_another_machine": dict(zip(keys, OFFICIAL_S[args.system], strict=True)),
        "gflop": flops,
        "official_gflop": dict(zip(PARTS, official, strict=True)),
        "notes": notes,
    }
