"""Replay beside TorchRL's: ms per sampled batch and per written record, and the ratio.

    OMP_NUM_THREADS=1 python benchmarks/replay.py

LS-Imagine's records (64x64 image, map, zoomed pair, stored latents), batches 16 x 32. TorchRL's
``SliceSampler`` cuts within one stream number, so both return windows that cross episodes; it may
cache where streams begin, as no write comes in between. Calls take turns, so that a busy machine
is as busy for one as for the other.
"""

from __future__ import annotations

import argparse
import statistics
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


def clock(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Best and median milliseconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: (min(each[3:]), statistics.median(each[3:])) for name, each in times.items()}


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

        held = {name: streams.sample(batch_size, length) for name, streams in ours.items()}
        samples: dict[str, Callable[[], object]] = {}
        for name, streams in ours.items():
            samples[name] = lambda s=streams: s.sample(batch_size, length)
            samples[f"{name}, out="] = lambda s=streams, o=held[name]: s.sample(batch_size, length, out=o)
        for name, buffer in theirs.items():
            samples[name] = lambda b=buffer: b.sample()
        sampled = clock(samples, options.repeats)

        streams = ours["wmkit, memory"]
        windows = streams.windows(length)
        batch = held["wmkit, memory"]
        latent = batch.select("state", "belief").clone()
        other: dict[str, Callable[[], object]] = {
            "patch latents [B, L]": lambda: streams.patch(batch["index"], latent),
            **{
                f"draw starts, {type(sampler).__name__}": lambda s=sampler: s.draw(
                    windows, batch_size, generator
                )
                for sampler in (Uniform(), OnlineQueue(), VisitBalanced())
            },
        }
        others = clock(other, options.repeats)

        one = random_records(1, 1.0, generator)
        named = one.clone().set("stream", torch.zeros(1, dtype=torch.int64))
        extends: dict[str, Callable[[], object]] = {}
        for name, each in ours.items():
            extends[name] = lambda s=each: s.extend(one, 0)
        for name, buffer in theirs.items():
            extends[name] = lambda b=buffer: b.extend(named)
        extended = clock(extends, options.repeats)
        mine = sum(column.values.nbytes for column in streams._columns.values())
        full = theirs["TorchRL, memory"][:].bytes()

    print(f"{options.records} records, batch {batch_size} x {length}, one thread; ms, best (median)")
    print(f"memory: wmkit {mine / 2**20:.0f} MiB, TorchRL {full / 2**20:.0f} MiB")
    for what, table in (("sample", sampled), ("extend by one record", extended), ("wmkit", others)):
        print(what)
        for name, (best, median) in table.items():
            print(f"  {name:<30}{best:8.3f} ({median:.3f})")
    for what, table in (("sample", sampled), ("extend", extended)):
        for kind in ("memory", "memory-mapped"):
            ratio = table[f"TorchRL, {kind}"][1] / table[f"wmkit, {kind}"][1]
            print(f"{what}, {kind}: TorchRL / wmkit = {ratio:.1f} (medians)")


if __name__ == "__main__":
    main()
