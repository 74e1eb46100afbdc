"""Every figure that needs a GPU, in one run: updates of wmkit and of TorchRL, eager, compiled, captured.

    python benchmarks/gpu_suite.py                        # everything; compiling takes most of it
    python benchmarks/gpu_suite.py --skip-done            # go on where a run ended
    python benchmarks/gpu_suite.py --only graph           # cells with that part in their name
    python benchmarks/gpu_suite.py --device cpu --tiny    # whether every cell runs, in minutes

A cell is one side (`wmkit` or `torchrl`), one system, one mode and one precision. It runs in a process of its
own with a time limit, and the JSON file is written after each (`gpu_suite.json` in the current folder, or
`--json PATH`): one that fails is an entry with its error. An update is everything from a batch on the device
to changed weights: losses, imagination, gradients, optimiser, slow critic. Times are medians between CUDA
events (on a CPU of the clock), after a warm-up; the time of warming up, compiling and recording has its own
column.

    eager       as it is written
    graph       one CUDA graph (`wmkit.optim.CapturedUpdate`); TorchRL captures losses and gradients
    compiled    one graph of the compiler (`fullgraph=True`); TorchRL compiles losses and gradients
    both        compiled, then captured; TorchRL's default on CUDA

`float32` lets products run in TF32, `bfloat16` is autocast over float32 weights. Targets on an H100: 6 ms for
dreamer_v3 1m on numbers, 12 ms for 12m on images, both at most half of TorchRL's best in the same run; 50 ms
for twm, 35 ms for storm.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

MODES = ("eager", "graph", "compiled", "both")
ATTRIBUTES = ("side", "system", "size", "obs", "mode", "precision")


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    side: str
    system: str
    size: str
    obs: str
    mode: str
    precision: str

    @property
    def name(self) -> str:
        """How results are filed, e.g. ``wmkit/dreamer_v3/1m/proprio/graph/float32``."""
        return "/".join(asdict(self).values())

    @property
    def compiles(self) -> bool:
        """Whether a compiler works on it for minutes."""
        return self.mode in ("compiled", "both")


@dataclass(frozen=True)
class Target:
    """What a row of the issue asks for: milliseconds, and perhaps a ratio to TorchRL's best."""

    system: str
    size: str
    obs: str
    milliseconds: float
    ratio: float | None = None


TARGETS = (
    Target("dreamer_v3", "1m", "proprio", 6.0, 0.5),
    Target("dreamer_v3", "12m", "vision", 12.0, 0.5),
    Target("twm", "paper", "vision", 50.0),
    Target("storm", "paper", "vision", 35.0),
)


def cells() -> list[Cell]:
    """All of them, those that no compiler is needed for first."""
    found = []
    for mode in MODES:
        for target in TARGETS:
            if mode in ("compiled", "both") and target.system != "dreamer_v3":
                continue  # Adam's step is not traced
            place = (target.system, target.size, target.obs)
            precisions = ("float32", "bfloat16") if mode in ("graph", "both") else ("float32",)
            for side in ("wmkit", "torchrl") if target.ratio else ("wmkit",):
                found += [Cell(side, *place, mode, precision) for precision in precisions]
    return found


# -- one cell, in its own process -----------------------------------------------------------------------


def overrides(cell: Cell, tiny: bool) -> list[str]:
    """Of the page, at full size or so small that a CPU runs every cell."""
    published = ["preset=full", "training.pretrain=0"]
    if not tiny:
        return [f"size={cell.size}", *published]
    shape = {
        "dreamer_v3": ["batch.size=2", "batch.length=3", "controller.horizon=2"],
        "twm": ["batch.size=2", "batch.length=4", "controller.horizon=2", "controller.starts.count=4"],
        "storm": ["batch.size=2", "batch.length=12", "controller.horizon=2", "controller.starts.count=4"],
    }
    return ["size=tiny", *published, *shape[cell.system]]


def wmkit_update(cell: Cell, args: argparse.Namespace) -> tuple[Callable[[], Any], dict[str, Any]]:
    """wmkit's update of one batch, and what there is to say about it."""
    import torch
    from torchrl.data import Composite, OneHot, Unbounded, UnboundedDiscrete

    import wmkit
    from wmkit.optim import CapturedUpdate

    spaces = {
        "proprio": {"observation": Unbounded((24,))},
        "vision": {"pixels": UnboundedDiscrete((3, 64, 64), dtype=torch.uint8)},
    }
    system = wmkit.build(
        cell.system,
        observation_spec=Composite(spaces[cell.obs]),
        action_spec=OneHot(6),
        overrides=overrides(cell, args.tiny),
    ).to(args.device)
    batch, *dreams = system.example_batches()
    dynamics = system.world_model.dynamics
    if system.context and cell.system == "dreamer_v3":
        for name, width in {"state": dynamics.state_dim, "belief": dynamics.belief_dim}.items():
            batch[name] = torch.zeros(*batch.shape, width)
    batches = [x.to(args.device) for x in (batch, *dreams)]
    update = CapturedUpdate(
        system,
        compiled=args.backend if cell.compiles else False,
        autocast=torch.bfloat16 if cell.precision == "bfloat16" else None,
        record=cell.mode in ("graph", "both"),
    )
    parameters = sum(p.numel() for p in system.parameters() if p.requires_grad)
    facts = {
        "parameters": parameters,
        "batch": list(system.batch_shape),
        "overrides": overrides(cell, args.tiny),
    }
    return lambda: update(*batches), facts


def torchrl_update(cell: Cell, args: argparse.Namespace) -> tuple[Callable[[], Any], dict[str, Any]]:
    """TorchRL's update of the same batch, assembled as in ``update_speed.py``."""
    import torch
    import update_speed as peer
    from omegaconf import OmegaConf
    from torchrl.trainers.algorithms import DreamerV3OptimizationStepper

    size = "tiny" if args.tiny else cell.size
    shape = (2, 3) if args.tiny else (16, 64)
    options = argparse.Namespace(
        system=cell.system, size=size, obs=cell.obs, codec="pooled", batch=shape[0], length=shape[1],
        compile=False,
    )  # fmt: skip
    system, batch = peer.build_wmkit(options)
    numbers = OmegaConf.load(str(files("wmkit.systems") / "conf" / "size" / f"{size}.yaml"))
    sample = peer.torchrl_sample(system, batch, peer.SPACES[cell.obs][0]).to(args.device)
    with torch.device(args.device):  # moved later, its environment and slow critic would stay behind
        side = peer.TorchRL(options, numbers)
    on_gpu = torch.device(args.device).type == "cuda"
    stepper = DreamerV3OptimizationStepper(
        side.loss,
        side.optimizer,
        side.slow,
        compile_train_step=cell.compiles and args.backend == "inductor",
        cudagraph=cell.mode in ("graph", "both") and on_gpu,
        warmup_steps=3,
        mixed_precision=cell.precision == "bfloat16",
    )
    stepper.warmup(sample)
    parameters = sum(p.numel() for p in side.loss.parameters() if p.requires_grad)
    return lambda: stepper.step(None, sample), {"parameters": parameters, "batch": list(sample.shape)}


def measure(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of an update, in this process."""
    import torch

    on_gpu = torch.device(args.device).type == "cuda"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    begin = time.perf_counter()
    make = wmkit_update if cell.side == "wmkit" else torchrl_update
    update, facts = make(cell, args)
    first = None
    for _ in range(args.warm_up):
        result = update()
        if first is None:
            wait()
            first = time.perf_counter() - begin
    wait()
    ready = time.perf_counter() - begin
    times = []
    for _ in range(args.repeats):
        if on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = update()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            clock = time.perf_counter()
            result = update()
            times.append(1e3 * (time.perf_counter() - clock))
    begin = time.perf_counter()
    for _ in range(args.repeats):  # without waiting in between, as training runs
        result = update()
    wait()
    in_a_row = 1e3 * (time.perf_counter() - begin) / args.repeats
    losses = {
        key: value for key, value in result.items() if isinstance(value, torch.Tensor) and not value.ndim
    }
    broken = sorted(str(key) for key, value in losses.items() if not torch.isfinite(value))
    if broken:
        raise FloatingPointError(f"not finite after {args.warm_up + 2 * args.repeats} updates: {broken}")
    return {
        "milliseconds": statistics.median(times),
        "fastest": min(times),
        "slowest": max(times),
        "in_a_row": in_a_row,
        "first_update_s": first,
        "ready_s": ready,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "reserved_memory_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None,
        **facts,
    }


def run_cell(name: str, args: argparse.Namespace) -> None:
    """Measure one cell and write it to ``--out``."""
    cell = Cell(*name.split("/"))
    try:
        entry = {"status": "ok", **measure(cell, args)}
    except Exception as error:
        lines = str(error).splitlines() or [""]
        entry = {"status": "failed", "error": f"{type(error).__name__}: {lines[0]}"}
        entry["traceback"] = traceback.format_exc()[-4000:]
    args.out.write_text(json.dumps(entry))


# -- all cells ------------------------------------------------------------------------------------------


def machine(device: str) -> dict[str, Any]:
    """What it ran on."""
    import torch

    found: dict[str, Any] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    found |= {package: version(package) for package in ("torch", "torchrl", "tensordict")}
    if torch.device(device).type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        found |= {"gpu": facts.name, "gpu_memory_gib": round(facts.total_memory / 2**30, 1)}
        found |= {"cuda": torch.version.cuda, "capability": f"{facts.major}.{facts.minor}"}
    return found


def start(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Run a cell in its own process."""
    limit = args.compile_limit if cell.compiles else args.limit
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "cell.json"
        command = [sys.executable, __file__, "--cell", cell.name, "--out", str(out), "--device", args.device]
        command += ["--repeats", str(args.repeats), "--warm-up", str(args.warm_up), "--backend", args.backend]
        command += ["--tiny"] if args.tiny else []
        begin = time.perf_counter()
        try:
            done = subprocess.run(command, timeout=limit, capture_output=True, text=True, check=False)
            if out.exists():
                entry = json.loads(out.read_text())
            else:
                entry = {"status": "died", "error": f"exit status {done.returncode}: {done.stderr[-2000:]}"}
        except subprocess.TimeoutExpired:
            entry = {"status": "too slow", "error": f"not done in {limit:.0f} s"}
    return {**asdict(cell), **entry, "took_s": round(time.perf_counter() - begin, 1)}


def table(results: dict[str, dict[str, Any]]) -> str:
    """What was measured, as a table."""
    lines = ["| system | observation | side | mode | precision | ms | in a row, ms | ready after, s | GiB |"]
    lines.append("|---|---|---|---|---|---:|---:|---:|---:|")
    for entry in sorted(results.values(), key=lambda x: [x[k] for k in ("system", "size", "obs", "side")]):
        row = f"| {entry['system']} {entry['size']} | {entry['obs']} | {entry['side']} | {entry['mode']} "
        row += f"| {entry['precision']} "
        if entry["status"] == "ok":
            memory = entry["peak_memory_gib"]
            row += f"| {entry['milliseconds']:.2f} | {entry['in_a_row']:.2f} | {entry['ready_s']:.0f} "
            row += f"| {'–' if memory is None else f'{memory:.2f}'} |"
        else:
            row += f"| {entry['status']} | | | |"
        lines.append(row)
    return "\n".join(lines)


def verdicts(results: dict[str, dict[str, Any]]) -> list[str]:
    """Each target beside the best that was measured for it."""

    def best(side: str, target: Target) -> dict[str, Any] | None:
        place = {"side": side, "system": target.system, "size": target.size, "obs": target.obs}
        fitting = [
            entry
            for entry in results.values()
            if entry["status"] == "ok" and all(entry[key] == value for key, value in place.items())
        ]
        return min(fitting, key=lambda entry: entry["milliseconds"], default=None)

    lines = []
    for target in TARGETS:
        place = f"{target.system} {target.size} {target.obs}"
        ours, theirs = best("wmkit", target), best("torchrl", target)
        if ours is None:
            lines.append(f"{place}: not measured; target {target.milliseconds:g} ms")
            continue
        line = f"{place}: {ours['milliseconds']:.2f} ms ({ours['mode']}, {ours['precision']})"
        line += f"; target {target.milliseconds:g} ms"
        if target.ratio and theirs is not None:
            line += f"; {ours['milliseconds'] / theirs['milliseconds']:.2f} of TorchRL's best "
            line += f"({theirs['mode']}, {theirs['precision']}); target {target.ratio:g}"
        lines.append(line)
    return lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("gpu_suite.json"),
        help="written after every cell; gpu_suite.json, in the current folder, if not given",
    )
    parser.add_argument(
        "--only", nargs="*", default=[], help="words that a cell's name must hold, all of them"
    )
    parser.add_argument("--skip-done", action="store_true", help="keep what --json holds of this machine")
    parser.add_argument("--list", action="store_true", help="name the cells and stop")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes; times then mean nothing")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=8, help="updates before the clock; a graph takes four")
    parser.add_argument(
        "--backend", default="inductor", help="of the compiler; eager checks the tracing alone"
    )
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for a cell")
    parser.add_argument("--compile-limit", type=float, default=1500.0, help="seconds for one that compiles")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.cell:
        run_cell(args.cell, args)
        return
    chosen = [cell for cell in cells() if all(word in cell.name.split("/") for word in args.only)]
    if args.list:
        print("\n".join(cell.name for cell in chosen))
        return
    record: dict[str, Any] = {"machine": machine(args.device), "tiny": args.tiny, "cells": {}}
    if args.skip_done and args.json.exists():
        earlier = json.loads(args.json.read_text())
        if (earlier["machine"], earlier["tiny"]) == (record["machine"], record["tiny"]):
            record["cells"] = {k: v for k, v in earlier["cells"].items() if v["status"] == "ok"}
    print(", ".join(f"{name} {value}" for name, value in record["machine"].items()), flush=True)
    for cell in chosen:
        if cell.name in record["cells"]:
            continue
        entry = record["cells"][cell.name] = start(cell, args)
        said = f"{entry['milliseconds']:.2f} ms" if entry["status"] == "ok" else entry["error"][:300]
        print(f"{cell.name}: {said} ({entry['took_s']} s)", flush=True)
        record["verdicts"] = verdicts(record["cells"])
        part = args.json.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1) + "\n")
        part.replace(args.json)
    print("\n" + table(record["cells"]))
    if not args.tiny:
        print("\n" + "\n".join(f"- {line}" for line in verdicts(record["cells"])))
    if record["cells"]:
        print(f"\nwritten to {args.json.resolve()}")


if __name__ == "__main__":
    main()
