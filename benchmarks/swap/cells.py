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

import torch

from swap import corridor, recall_model, speed, worlds

PARTS = ("recall", "recall_model", "reach", "vizdoom", "battle_zone", "short_window", "speed")
WINDOWED = ("gpt", "transformer_xl")


class Cell(NamedTuple):
    """One result: a file and what makes it."""

    name: str
    function: Callable[..., dict]
    settings: dict[str, Any]
    data: Path | None = None


def plan(args: argparse.Namespace, part: str) -> list[Cell]:
    """The cells of a part, in the order in which they are run."""
    if part == "speed":
        settings: dict[str, Any] = {"lengths": [64, 128, 256, 512, 1024], "repeats": 7, "patience": 1.0}
        if args.quick:
            settings = {"lengths": [16, 32], "repeats": 1, "patience": 0.0}
        return [Cell(f"speed/{name}", partial(speed.run, name), settings) for name in args.backbones]
    if part == "reach":
        settings = {"length": 16 if args.quick else 512, "rows": 16, "seed": 0}
        return [Cell(f"reach/{name}", partial(corridor.reach, name), settings) for name in args.backbones]
    cells: list[Cell] = []
    if part in worlds.WORLDS:
        data = data_file(args, part)
        cells.append(Cell(f"{part}/baselines", worlds.baselines, {"context": 8, "horizon": 24}, data))
        settings = {"updates": args.updates, "size": 4, "length": 32, "context": 8, "horizon": 24}
        settings["most"] = 16 if args.quick else None
        function: Callable[..., dict] = worlds.run
    elif part == "recall_model":
        data, lengths = None, [2, 4] if args.quick else [2, 4, 8, 16, 32, 64, 128, 256, 512]
        settings = {"lengths": lengths, "updates": args.recall_model_updates, "rows": 16, "tests": 256}
        settings["overrides"] = list(recall_model.OVERRIDES)
        function = recall_model.run
    else:
        data, lengths = None, [8, 16] if args.quick else [32, 64, 128, 256, 512]
        settings = {"lengths": lengths, "updates": args.recall_updates, "rows": 16, "tests": 256}
        settings["window"] = args.window if part == "short_window" else None
        function = corridor.run
    names = [name for name in args.backbones if part != "short_window" or name in WINDOWED]
    for seed in range(args.seeds):
        for name in names:
            cells.append(
                Cell(f"{part}/{name}-s{seed}", partial(function, name), {**settings, "seed": seed}, data)
            )
    return cells


def data_file(args: argparse.Namespace, part: str) -> Path:
    """Where the records of a world lie."""
    return args.out / "data" / f"{part}.npz"


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
    """Part by part, run every cell that is not finished; data are collected once."""
    for part in args.parts:
        if part in worlds.WORLDS and not data_file(args, part).is_file():
            world = worlds.WORLDS[part]
            say(f"collecting {part}")
            worlds.collect(world, 800 if args.quick else world.records, data_file(args, part))
        cells = [c for c in plan(args, part) if not finished(args.out / f"{c.name}.json", c.settings)]
        # Fresh processes: torch's threads do not outlive a fork. What takes times runs alone.
        jobs = 1 if part == "speed" else args.jobs
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            for done in as_completed([pool.submit(run_cell, cell, args.out) for cell in cells]):
                say(f"finished {done.result()}")


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)
