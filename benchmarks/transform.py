"""Time one environment step of AffordanceTransform, with and without its model.

    python benchmarks/transform.py [--steps 200]

Rows: environments E; a constant-time stub model ("no model"), the blurred-mask oracle and, where it is
there, the small U-Net; with and without the video score. The environment is replaced by stored
frames. "zoomed" is the share of steps on which the second pass ran; "map only" is what an
acting agent pays.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from tensordict import TensorDict
from torchrl.envs import Transform

from wmkit.affordance import AffordanceMap, AffordanceTransform, ClipReward, MaskAffordance

H, W = 160, 256


class Stored:
    """Maps made beforehand: costs nothing, so that what remains is the transform."""

    reads = "frame"

    def __init__(self, maps: torch.Tensor) -> None:
        self.maps, self.calls = maps, 0

    def predict(self, frames: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        start = self.calls * 7 % (len(self.maps) - len(frames))
        return self.maps[start : start + len(frames)]


class Features:
    """A free video scorer."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images), 512)

    def pool(self, features: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return features[:, -1, :1] + 21.8


def clock() -> float:
    """Seconds of this thread, so that a busy machine does not show; all work is on one thread."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def blobs(number: int) -> torch.Tensor:
    """Maps like a U-Net's: one soft blob of random place, size and height each."""
    y, x = torch.arange(float(H))[:, None], torch.arange(float(W))
    where = torch.rand(number, 4)
    maps = [
        0.01
        + (0.3 + 0.6 * h) * torch.exp(-((x - 256 * a) ** 2 + (y - 160 * b) ** 2) / (2 * (6 + 40 * s) ** 2))
        for a, b, s, h in where.tolist()
    ]
    return torch.stack(maps)


def small_unet() -> tuple[torch.nn.Module, torch.Tensor] | None:
    try:
        from wmkit.affordance.unet import SmallUNet
    except ImportError:
        return None
    model = SmallUNet()
    return model, torch.randn(1, model.text_dim)


def measure(streams: int, steps: int, transform: Transform):
    """Milliseconds per step of all ``streams``: median, and share of steps with a zoomed view."""
    frames = torch.randint(0, 256, (32, streams, 3, H, W), dtype=torch.uint8)
    masks = blobs(32 * streams).view(32, streams, 1, H, W) > 0.4
    flag, reward = torch.zeros(streams, 1, dtype=torch.bool), torch.zeros(streams, 1)

    def record(t: int) -> TensorDict:
        done = {"done": flag, "terminated": flag, "reward": reward}
        return TensorDict({"frame": frames[t % 32], "goal_mask": masks[t % 32], **done}, [streams])

    empty = TensorDict({}, [streams])
    transform._reset(empty, record(0))
    times, zoomed = [], 0
    for t in range(steps):
        step = record(t)
        start = clock()
        out = transform._step(empty, step)
        times.append(clock() - start)
        zoomed += bool(out["is_zoomed"].any()) if "is_zoomed" in out.keys() else 0
    times = times[steps // 10 :]
    return 1e3 * sorted(times)[len(times) // 2], 1e3 * sum(times) / len(times), zoomed / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    stored = Stored(blobs(8))
    rows: dict[str, Callable[[], Transform]] = {
        "no model": lambda: AffordanceTransform(stored),
        "no model, video score": lambda: AffordanceTransform(stored, video=ClipReward(Features(), "-")),
        "no model, map only": lambda: AffordanceMap(stored),
        "mask oracle": lambda: AffordanceTransform(MaskAffordance()),
    }
    unet = small_unet()
    if unet is not None:
        rows["small U-Net"] = lambda: AffordanceTransform(*unet)
        rows["small U-Net, map only"] = lambda: AffordanceMap(*unet)
    print(f"{'model':26s} {'E':>2s} {'median ms':>10s} {'mean ms':>8s} {'ms per env':>10s} {'zoomed':>7s}")
    for name, make in rows.items():
        for streams in (1, 4):
            median, mean, zoomed = measure(streams, arguments.steps, make())
            print(f"{name:26s} {streams:2d} {median:10.2f} {mean:8.2f} {mean / streams:10.2f} {zoomed:7.0%}")


if __name__ == "__main__":
    main()
