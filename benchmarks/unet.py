"""Milliseconds per frame of the affordance U-Nets, on one core: ``python benchmarks/unet.py``.

Times ``predict``: uint8 frames of 160x256 in, smoothed maps of 160x256 out.
"""

from __future__ import annotations

import argparse
import time

import torch

from wmkit.affordance import SmallUNet, SwinUNet


def best_of(call, repeats: int) -> float:
    """Fastest run in seconds, after two warm-ups."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = {
        "SmallUNet": SmallUNet(),
        "SwinUNet image_query": SwinUNet(),
        "SwinUNet constant_query": SwinUNet("constant_query"),
    }
    print(f"ms per frame, {options.threads} thread(s), best of {options.repeats} (Swin: a tenth)")
    print(f"{'model':26}{'parameters':>12}" + "".join(f"{f'batch {b}':>12}" for b in options.batches))
    for name, model in models.items():
        model.eval()
        repeats = options.repeats if name == "SmallUNet" else max(3, options.repeats // 10)
        row = f"{name:26}{sum(p.numel() for p in model.parameters()):12,}"
        for batch in options.batches:
            frames = torch.randint(0, 256, (batch, 3, 160, 256), dtype=torch.uint8)
            text = torch.randn(1, model.text_dim)
            row += (
                f"{1000 * best_of(lambda m=model, f=frames, t=text: m.predict(f, t), repeats) / batch:12.2f}"
            )
        print(row, flush=True)


if __name__ == "__main__":
    main()
