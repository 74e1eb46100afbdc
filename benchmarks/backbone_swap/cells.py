"""What is measured, cut into cells: a file each, written at once, not run again."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import corridor
import speed
import torch
import worlds

PARTS = ("recall", "vizdoom", "breakout", "speed")


class Cell(NamedTuple):
    """One result: a file and what makes it."""

    name: str
    function: Callable[..., dict]
    settings: dict[str, Any]
    data: Path | None = None


def plan(args: argparse.Namespace) -> list[Cell]:
    """The cells of the chosen parts, in the order in which they are run."""
    cells: list[Cell] = []
    if "recall" in args.parts:
        lengths = [8, 16] if args.quick else [32, 64, 128, 256, 512]
        settings = {"lengths": lengths, "updates": args.recall_updates, "rows": 8, "tests": 256}
        for seed in range(args.seeds):
            for name in args.backbones:
                cells.append(recall(name, "", {**settings, "seed": seed, "window": None}))
            if "transformer_xl" in args.backbones and not args.quick:
                cells.append(
                    recall("transformer_xl", "_window64", {**settings, "seed": seed, "window": 64})
                )
    for part in [part for part in args.parts if part in worlds.WORLDS]:
        data = args.out / "data" / f"{part}{'_quick' * args.quick}.npz"
        cells.append(Cell(f"{part}/baselines", worlds.baselines, {"context": 8, "horizon": 24}, data))
        settings = {"updates": args.updates, "size": 8, "length": 32, "context": 8, "horizon": 24}
        settings["most"] = 16 if args.quick else None
        for seed in range(args.seeds):
            for name in args.backbones:
                run = partial(worlds.run, name)
                cells.append(Cell(f"{part}/{name}-s{seed}", run, {**settings, "seed": seed}, data))
    if "speed" in args.parts:
        lengths = [16, 32] if args.quick else [64, 128, 256, 512, 1024]
        limits = {"repeats": 1, "patience": 0.0} if args.quick else {"repeats": 5, "patience": 1.0}
        for name in args.backbones:
            cells.append(Cell(f"speed/{name}", partial(speed.run, name), {"lengths": lengths, **limits}))
    return cells


def recall(backbone: str, suffix: str, settings: dict[str, Any]) -> Cell:
    """A cell of the corridor."""
    name = f"recall/{backbone}{suffix}-s{settings['seed']}"
    return Cell(name, partial(corridor.run, backbone), settings)


def finished(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a cell is there, made with these settings."""
    return path.is_file() and json.loads(path.read_text())["settings"] == settings


def run_cell(cell: Cell, out: Path) -> str:
    """Run a cell and write its file at once; returns its name."""
    torch.set_num_threads(1)
    start = time.time()
    result = cell.function(*([cell.data] if cell.data else []), **cell.settings)
    path = out / f"{cell.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"settings": cell.settings, "minutes": (time.time() - start) / 60, **result}
    path.with_suffix(".part").write_text(json.dumps(kept))
    path.with_suffix(".part").replace(path)
    return cell.name


def run(args: argparse.Namespace) -> None:
    """Collect what is not there, then run every cell that is not finished."""
    cells = plan(args)
    for part in [part for part in args.parts if part in worlds.WORLDS]:
        path = args.out / "data" / f"{part}{'_quick' * args.quick}.npz"
        if not path.is_file():
            world = worlds.WORLDS[part]
            say(f"collecting {part}")
            worlds.collect(world, 800 if args.quick else world.records, path)
    cells = [c for c in cells if not finished(args.out / f"{c.name}.json", c.settings)]
    learning = [cell for cell in cells if not cell.name.startswith("speed/")]
    # Fresh processes: torch's threads do not outlive a fork.
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run_cell, cell, args.out) for cell in learning]):
            say(f"finished {done.result()}")
    for cell in cells:  # alone
        if cell.name.startswith("speed/"):
            say(f"finished {run_cell(cell, args.out)}")


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)
