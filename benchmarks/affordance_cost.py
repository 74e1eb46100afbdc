"""What LS-Imagine's labels cost at the published size: per environment step, and per map of the labeller.

    python benchmarks/affordance_cost.py [--threads 1] [--repeats 10] [--device cpu] [--precision float32]

MineCLIP and the Swin-UNet have random weights, which cost as much as released ones; frames are 160 x 256,
there is one environment. Beside each stage stands what is known of the released code (specification 10.5 and
docs/systems/ls_imagine.md; measured on one CPU core, or counted). A window is searched, and the U-Net asked a
second time, only on steps whose P_jump passes the running threshold; both are given per such step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from tensordict import TensorDict
from torch import Tensor

from wmkit.affordance import (
    AffordanceTransform,
    ClipReward,
    JumpLabeller,
    MineCLIP,
    SwinUNet,
    fuse_scores,
    zoom_window,
)
from wmkit.affordance.labels.jumps import zoom_view
from wmkit.affordance.labels.zoom_path import crop_resize, exploration_boxes, zoom_schedule

SIZE, DISTINCT = (160, 256), 1216
PROMPT = ["Cut a tree"]


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Lower quartile of the time of one call."""
    taken = []
    for _ in range(repeats + 1):
        _wait()
        start = clock()
        work()
        _wait()
        taken.append(1e3 * (clock() - start))
    return sorted(taken[1:])[len(taken[1:]) // 4]


def clock() -> float:
    """Seconds; of this thread where it does all the work, so that a busy machine does not show."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.thread_time() if alone else time.perf_counter()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def blob() -> Tensor:
    """A map like a U-Net's."""
    y, x = torch.arange(float(SIZE[0]))[:, None], torch.arange(float(SIZE[1]))
    return 0.01 + 0.8 * torch.exp(-((x - 150) ** 2 + (y - 70) ** 2) / 800)


def dense_window(values: Tensor, height: int, width: int) -> Tensor:
    """The released search: the mean of every window by a convolution with ones."""
    ones = torch.ones(1, 1, height, width)
    return F.conv2d(values[None, None], ones)[0, 0].argmax()


def looped_fusion(scores: Tensor) -> Tensor:
    """The released painting: every rectangle by itself."""
    total, count = torch.zeros(SIZE), torch.zeros(SIZE)
    for row, crops in zip(
        scores.flatten(), zoom_schedule(exploration_boxes(SIZE).flatten(0, 1), SIZE), strict=True
    ):
        for top, left, bottom, right in crops[13:].tolist():
            total[top:bottom, left:right] += row
            count[top:bottom, left:right] += 1
    return total / (count + 0.1)


class Stubborn(JumpLabeller):
    """Looks closer at every step, or at none: the two costs of a step."""

    def __init__(self, closer: bool) -> None:
        super().__init__()
        self.closer = closer

    def thresholds(
        self, probability: Tensor, score: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        passed, bar = super().thresholds(probability, score, rows)
        return torch.full_like(passed, self.closer), torch.zeros_like(bar)


class Drawn:
    """The U-Net's cost, and a map in which there is something to zoom at."""

    reads = "frame"

    def __init__(self, unet: SwinUNet) -> None:
        self.unet = unet

    def predict(self, frames: Tensor, text: Tensor | None = None) -> Tensor:
        assert text is not None
        return 0 * self.unet.predict(frames.to(text.device), text).cpu() + blob()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--chunk", type=int, default=32, help="frames of the labeller at once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", help="of MineCLIP's vision tower")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    repeats, device = arguments.repeats, torch.device(arguments.device)
    clip = MineCLIP(precision=arguments.precision).to(device)
    clip._texts[PROMPT[0]] = torch.randn(512, device=device)  # as after its first step
    unet, text = SwinUNet("constant_query").eval().to(device), torch.randn(1, 512, device=device)
    frame = torch.randint(0, 256, (1, 3, *SIZE), dtype=torch.uint8)
    found, labeller, window = blob(), JumpLabeller(), zoom_window(blob())
    box = [int(x) for x in window[:4]]
    ring = torch.randn(1, 16, 512, device=device)

    def step(closer: bool) -> Callable[[], object]:
        video = ClipReward(clip, PROMPT[0])
        transform = AffordanceTransform(Drawn(unet), text, labeller=Stubborn(closer), video=video)
        flag = torch.zeros(1, 1, dtype=torch.bool)
        record = {"frame": frame, "done": flag, "terminated": flag, "reward": torch.zeros(1, 1)}
        transform._reset(TensorDict({}, [1]), TensorDict(record, [1]))
        return lambda: transform._step(TensorDict({}, [1]), TensorDict(record, [1]))

    table = Table(
        "every step", "ms", "released", title=f"per environment step, {arguments.threads} thread(s)"
    )
    stages: list[tuple[str, Callable[[], object] | None, str]] = [
        ("MineCLIP, one frame", lambda: clip.encode(frame), "twice: a second prompt that nothing reads"),
        ("MineCLIP, the last 16 vectors", lambda: clip.pool(ring, PROMPT), "history to the CPU and back"),
        ("U-Net and blur", lambda: unet.predict(frame.to(device), text), "1,700 ms at its first call"),
        ("score and P_jump", lambda: (labeller.score(found[None]), labeller.probability(found[None])), "-"),
        ("no inpainting of the display", None, "every step, on the CPU; here the environment's choice"),
        ("only where P_jump passes:", None, ""),
        ("  window, integral image", lambda: zoom_window(found), "23 to 28 ms dense (0.33 ms as proposed)"),
        ("  window, dense, for comparison", lambda: dense_window(found, *box[2:]), "23 to 28 ms"),
        ("  view of the window", lambda: zoom_view(frame[0], *box), "-"),
        ("  U-Net and blur again", lambda: unet.predict(frame.to(device), text), "the same"),
        ("whole step, nothing zoomed", step(False), "-"),
        ("whole step, zoomed", step(True), "-"),
    ]
    for name, work, theirs in stages:
        table.add_row(name, "" if work is None else f"{milliseconds(work, repeats):,.2f}", theirs)
    console = Console(width=110)
    console.print(table)

    crops = zoom_schedule(exploration_boxes(SIZE).flatten(0, 1), SIZE).flatten(0, 1)[-arguments.chunk :]
    scores, clips = 21.8 + torch.randn(9, 9), torch.randn(81, 16, 512, device=device)
    rendered = crop_resize(frame, crops, SIZE)
    render = milliseconds(lambda: crop_resize(frame.to(device), crops.to(device), SIZE), 2)
    encode = milliseconds(lambda: clip.encode(rendered), 2)
    whole = (render + encode) * DISTINCT / len(crops)
    table = Table("exact labeller", "ms", "released", title="per map")
    for name, took, theirs in (
        (f"{len(crops)} of {DISTINCT} frames cut and resized", render, "81 x 16, one by one"),
        (f"{len(crops)} of {DISTINCT} frames through MineCLIP", encode, "all 1,296 at once, more than 5 GB"),
        (f"all {DISTINCT} frames, from these", whole, "36 TFLOP in float32, 2 to 4 s on a 3090 (estimated)"),
        ("81 clips pooled", milliseconds(lambda: clip.pool(clips, PROMPT), 3), "-"),
        (
            "fusion, separable",
            milliseconds(lambda: fuse_scores(scores, SIZE), repeats),
            "0.056 ms without blur",
        ),
        ("fusion, looped, for comparison", milliseconds(lambda: looped_fusion(scores), 3), "44 ms"),
    ):
        table.add_row(name, f"{took:,.2f}", theirs)
    console.print(table)
    bytes_ = {
        name: sum(x.numel() * x.element_size() for x in part.parameters()) / 1e6
        for name, part in (("MineCLIP", clip), ("U-Net", unet))
    }
    console.print(
        f"in memory: one MineCLIP {bytes_['MineCLIP']:.0f} MB, one U-Net {bytes_['U-Net']:.0f} MB "
        "(released: four MineCLIP, 2,536 MB, and two U-Nets)"
    )


if __name__ == "__main__":
    main()
