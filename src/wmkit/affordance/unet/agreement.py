"""How well predicted maps agree with virtual exploration, and with the simulator's truth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wmkit.affordance.labels.zoom_windows import zoom_window

THRESHOLD = 0.5


def agreement(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Predicted maps against the labels they were trained towards.

    Args:
        predictions: float ``[N,H,W]`` in [0, 1].
        labels: the same, from virtual exploration.

    Returns:
        ``mae`` mean absolute error; ``correlation`` Pearson's, over all pixels of all frames; ``iou`` of the
        areas above 0.5, over all frames; NaN where undefined (a constant side, an empty union).

    >>> maps = torch.rand(2, 16, 16)
    >>> {name: round(value, 3) for name, value in agreement(maps, maps).items()}
    {'mae': 0.0, 'correlation': 1.0, 'iou': 1.0}
    """
    x, y = predictions.double(), labels.double()
    dx, dy = x - x.mean(), y - y.mean()
    spread = (dx.square().mean() * dy.square().mean()).sqrt()
    return {
        "mae": float((x - y).abs().mean()),
        "correlation": float((dx * dy).mean() / spread) if spread > 0 else math.nan,
        "iou": _iou(predictions > THRESHOLD, labels > THRESHOLD),
    }


def truth(predictions: Tensor, masks: Tensor, *, min_pixels: int = 4) -> dict[str, float]:
    """Maps against the simulator's goal pixels; use it on labels as well, as the bound for a student.

    Args:
        predictions: float ``[N,H,W]`` in [0, 1].
        masks: bool ``[N,H,W]``, goal pixels.
        min_pixels: a goal counts as visible from so many pixels on.

    Returns:
        ``visible`` share of frames that show the goal. ``iou`` of the area above 0.5 with the goal pixels,
        over all frames. Over frames that show the goal: ``window_hit_rate``, the share whose zoom window
        touches the goal; ``window_chance``, the same with the windows of one another, which is what knowing
        where goals usually are gives; ``window_coverage``, mean share of goal pixels inside the window;
        ``peak_hit_rate``, the share whose highest point lies on the goal. ``present_peak`` and
        ``absent_peak``: mean of the maps' maxima where the goal is visible and where it is not.
        NaN where there is no such frame.
    """
    pixels = masks.flatten(1).sum(1)  # [N]
    visible = pixels >= min_pixels
    window = zoom_window(predictions)
    inside = _inside(window.box, masks)  # [N] goal pixels in the frame's own window
    shown = int(visible.sum())
    other = _inside(window.box[visible].roll(max(1, shown // 2), 0), masks[visible])  # another frame's window
    peak = predictions.flatten(1).max(1)
    on_goal = masks.flatten(1).gather(1, peak.indices[:, None])[:, 0]
    return {
        "visible": float(visible.float().mean()),
        "iou": _iou(predictions > THRESHOLD, masks),
        "window_hit_rate": _mean((inside > 0)[visible]),
        "window_chance": _mean(other > 0) if shown > 1 else math.nan,
        "window_coverage": _mean((inside / pixels.clamp_min(1))[visible]),
        "peak_hit_rate": _mean(on_goal[visible]),
        "present_peak": _mean(peak.values[visible]),
        "absent_peak": _mean(peak.values[pixels == 0]),
    }


def _inside(box: Tensor, masks: Tensor) -> Tensor:
    """Mask pixels inside each box: ``[N, 4], [N, H, W] -> [N]``."""
    counts = [int(mask[t:b, x0:x1].sum()) for mask, (t, x0, b, x1) in zip(masks, box.tolist(), strict=True)]
    return torch.tensor(counts, dtype=torch.float32)


def _iou(a: Tensor, b: Tensor) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else math.nan


def _mean(values: Tensor) -> float:
    return float(values.float().mean()) if len(values) else math.nan
