"""Replay beside TorchRL's: ms per sampled batch and per written record, and the ratio.

    OMP_NUM_THREADS=1 python benchmarks/replay.py

LS-Imagine's records (64x64 image, map, zoomed pair, stored latents), batches 16 x 32. TorchRL's
``SliceSampler`` cuts within one stream number, so both return windows that cross episodes. It
caches where streams begin; every write empties that cache, so its best case (no write in
between, the one compared) and its usual one (``after a write``) are both timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tensordict import TensorDict
from torchrl import logger
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, SliceSampler, TensorDictReplayBuffer

from wmkit.data import OnlineQueue, ReplayStreams, Uniform, VisitBalanced


def random_records(n: int, zoomed: float, generator: torch.Generator) -> TensorDict:
    """n records with every key of LS-Imagine."""

    def scalar() -> torch.Tensor:
        return torch.rand(n, 1, generator=generator)

    def flag(share: float = 0.01) -> torch.Tensor:
        return scalar() < share

    def image(channels: int) -> torch.Tensor:
        return torch.randint(0, 256, (n, channels, 64, 64), dtype=torch.uint8, generator=generator)

    is_zoomed = flag(zoomed)
    mask = is_zoomed.view(n, 1, 1, 1)
    scalars = ("reward", "intrinsic_reward", "jump_steps", "jump_return", "score", "jump_probability")
    return TensorDict(
        {
            "pixels": image(3),
            "affordance": image(1),
            "previous_action": torch.eye(12)[torch.randint(12, (n,), generator=generator)],
            "state": torch.eye(32)[torch.randint(32, (n, 32), generator=generator)].flatten(1),
            "belief": torch.rand(n, 512, generator=generator),
            **{key: scalar() for key in scalars},
            **{key: flag() for key in ("is_init", "terminated", "done", "jump", "jump_resolved", "success")},
            "is_zoomed": is_zoomed,
            "zoomed": {
                "pixels": image(3) * mask,
                "affordance": image(1) * mask,
                **{key: scalar() * is_zoomed for key in ("reward", "intrinsic_reward", "score")},
            },
        },
        [n],
    )


def clock(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Best and median milliseconds."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    times.sort()
    return times[0], times[len(times) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--batch", type=int, nargs=2, default=(16, 32), metavar=("B", "L"))
    parser.add_argument("--zoomed", type=float, default=0.15, help="share of records with a zoomed pair")
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logger.setLevel("WARNING")
    batch_size, length = options.batch
    generator = torch.Generator().manual_seed(0)
    results: dict[str, dict[str, tuple[float, float]]] = {}
    sizes: dict[str, float] = {}

    with tempfile.TemporaryDirectory() as scratch:
        latents = {
            "one_hot": {"state": 32},
            "half": ["belief"],
            "num_streams": 2,
            "capacity": options.records,
        }
        ours = {
            "wmkit, memory": ReplayStreams(**latents),
            "wmkit, memory-mapped": ReplayStreams(Path(scratch, "ours"), **latents),
        }
        storages = {
            "TorchRL, memory": LazyTensorStorage(options.records),
            "TorchRL, memory-mapped": LazyMemmapStorage(options.records, scratch_dir=f"{scratch}/theirs"),
        }
        theirs = {
            name: TensorDictReplayBuffer(
                storage=storage,
                batch_size=batch_size * length,
                sampler=SliceSampler(
                    slice_len=length, traj_key="stream", init_key=None, truncated_key=None, cache_values=True
                ),
            )
            for name, storage in storages.items()
        }
        for start in range(0, options.records, 500):
            stream = 2 * start // options.records  # a stream lies together, as SliceSampler needs
            records = random_records(500, options.zoomed, generator)
            for streams in ours.values():
                streams.extend(records, stream)
            records["stream"] = torch.full((500,), stream)
            for buffer in theirs.values():
                buffer.extend(records)

        for name, streams in ours.items():
            held = streams.sample(batch_size, length)
            results[name] = {
                "sample": clock(lambda s=streams: s.sample(batch_size, length), options.repeats),
                "sample, out=": clock(
                    lambda s=streams, o=held: s.sample(batch_size, length, out=o), options.repeats
                ),
            }
            sizes[name] = sum(c.values.nbytes for c in streams._columns.values())
        for name, buffer in theirs.items():
            results[name] = {"sample": clock(lambda b=buffer: b.sample(), options.repeats)}
            buffer.sampler.cache_values = False
            results[name]["sample, after a write"] = clock(lambda b=buffer: b.sample(), options.repeats)
            sizes[name] = buffer[:].bytes() if "memory-mapped" not in name else 0
        one = random_records(1, 1.0, generator)
        named = one.clone()
        named["stream"] = torch.zeros(1, dtype=torch.int64)
        for name, streams in ours.items():
            results[name]["extend 1"] = clock(lambda s=streams: s.extend(one, 0), options.repeats)
        for name, buffer in theirs.items():
            results[name]["extend 1"] = clock(lambda b=buffer: b.extend(named), options.repeats)
        streams = ours["wmkit, memory"]
        held = streams.sample(batch_size, length)
        back = held.select("state", "belief")
        results["wmkit, memory"]["patch latents"] = clock(
            lambda: streams.patch(held["index"], back), options.repeats
        )
        windows = streams.windows(length)
        for sampler in (Uniform(), OnlineQueue(), VisitBalanced()):
            drawn = clock(lambda s=sampler: s.draw(windows, batch_size, generator), options.repeats)
            results["wmkit, memory"][f"draw, {type(sampler).__name__}"] = drawn

    print(f"{options.records} records, batch {batch_size} x {length}, one thread; ms, best (median)")
    for name, rows in results.items():
        print(name + (f", {sizes[name] / 2**20:.0f} MiB" if sizes[name] else ""))
        for what, (best, median) in rows.items():
            print(f"  {what:<24}{best:8.3f} ({median:.3f})")
    for kind in ("memory", "memory-mapped"):
        mine, other = results[f"wmkit, {kind}"], results[f"TorchRL, {kind}"]
        for what in ("sample", "extend 1"):
            print(f"{kind}, {what}: TorchRL / wmkit = {other[what][0] / mine[what][0]:.1f}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
