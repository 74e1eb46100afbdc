"""The report of fitting an affordance U-Net: numbers on held-out frames, and pictures to look at."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmkit.affordance.unet.agreement import agreement, truth
from wmkit.affordance.unet.dataset import AffordanceDataset
from wmkit.affordance.unet.model import AffordanceUNet

HELD_OUT_LIMIT = 512  # frames that judge a fit at most


@dataclass
class FitReport:
    """The outcome of a fit.

    Attributes:
        iterations: done in total, earlier runs of the same checkpoint included.
        seconds: spent in total, in the same runs.
        loss: pairs of iteration and training loss, thinned to a few hundred.
        agreement: with virtual exploration, on held-out frames; see
            :func:`~wmkit.affordance.unet.agreement.agreement`.
        truth: of the predictions against goal masks; see
            :func:`~wmkit.affordance.unet.agreement.truth`. Empty without masks.
        label_truth: the same of the labels: what a perfect student would reach.
        panels: held-out examples for a report: ``frame`` uint8 [K,3,H,W], ``label`` and ``prediction``
            uint8 [K,H,W], ``mask`` bool [K,H,W] where known, ``index`` int64 [K].
    """

    iterations: int
    seconds: float
    loss: list[tuple[int, float]]
    agreement: dict[str, float]
    truth: dict[str, float] = field(default_factory=dict)
    label_truth: dict[str, float] = field(default_factory=dict)
    panels: dict[str, Tensor] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON (NaN becomes None)."""
        fields = {k: v for k, v in asdict(self).items() if k != "panels"}
        for name in ("agreement", "truth", "label_truth"):
            fields[name] = {k: None if v != v else v for k, v in fields[name].items()}
        return fields

    def save(self, path: str | PathLike) -> Path:
        """Write ``fit_report.json`` and ``panels.npz`` into a folder."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fit_report.json").write_text(json.dumps(self.as_dict(), indent=2) + "\n")
        arrays: dict[str, Any] = {k: v.numpy() for k, v in self.panels.items()}
        np.savez_compressed(folder / "panels.npz", **arrays)
        return folder


def judge(
    model: AffordanceUNet,
    data: AffordanceDataset,
    held: Tensor,
    panels: int = 8,
    iterations: int = 0,
    seconds: float = 0.0,
    loss: list[tuple[int, float]] | None = None,
) -> FitReport:
    """Predict frames; compare with labels and, where known, with goal masks; pick examples.

    Args:
        model: predicts.
        data: frames with labels.
        held: int64 ``[N]``, which frames to judge on; thinned evenly to 512.
        panels: number of example pictures.
        iterations: passed on to the report, as are ``seconds`` and ``loss``.
        seconds: see above.
        loss: see above.
    """
    if len(held) > HELD_OUT_LIMIT:
        held = held[torch.linspace(0, len(held) - 1, HELD_OUT_LIMIT).round().long()]
    predictions = []
    for part in held.split(16):
        frames, _, text = data.batch(part)
        predictions.append(model.predict(frames, text).cpu())
    maps, labels = torch.cat(predictions), data.labels[held].float() / 255  # [N, H, W] each
    masks = None if data.masks is None else data.masks[held]
    shown = examples(masks, len(held), panels)
    pictures = {
        "index": held[shown],
        "frame": data.frames[held[shown]],
        "label": data.labels[held[shown]],
        "prediction": (255 * maps[shown]).round().to(torch.uint8),
    }
    if masks is not None:
        pictures["mask"] = masks[shown]
    return FitReport(
        iterations=iterations,
        seconds=seconds,
        loss=loss or [],
        agreement=agreement(maps, labels),
        truth={} if masks is None else truth(maps, masks),
        label_truth={} if masks is None else truth(labels, masks),
        panels=pictures,
    )


def examples(masks: Tensor | None, n: int, count: int) -> Tensor:
    """Indices of frames worth looking at: spread over time, three quarters of them with the goal in view."""
    everything = torch.arange(n)
    if masks is None:
        return _spread(everything, count)
    visible = masks.flatten(1).any(1)
    with_goal = _spread(everything[visible], max(-(-3 * count // 4), count - int((~visible).sum())))
    without = _spread(everything[~visible], count - len(with_goal))
    return torch.cat([with_goal, without])


def _spread(index: Tensor, count: int) -> Tensor:
    """``count`` of ``index``, evenly spaced; all of it if there are fewer."""
    if len(index) <= count:
        return index
    return index[torch.linspace(0, len(index) - 1, count).round().long()]
