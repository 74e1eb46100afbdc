"""The section "Imagined and real": strips of pictures, curves of numbers, one key below the other.

What is drawn lies in ``evidence/imagination.npz``, see :mod:`wmkit.training.report.evidence`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import NamedTuple

import numpy as np

from wmkit.training.report.charts import Series, chart
from wmkit.training.report.pictures import image, reduced, tiled

SIDE = 78  # of a frame on the page, in its pixels


class Pictures(NamedTuple):
    """One image key: ``real``, ``imagined`` uint8 ``[R, T, H, W, C]``."""

    key: str
    real: np.ndarray
    imagined: np.ndarray


def pictures_of(data: Mapping[str, np.ndarray]) -> Iterator[Pictures]:
    """The image keys of an evidence file, older ones included, which hold ``pixels`` alone."""
    if "real" in data:
        yield Pictures("pixels", data["real"], data["imagined"])
    for index, key in enumerate(data["images"].tolist() if "images" in data else ()):
        yield Pictures(str(key), data[f"real_{index}"], data[f"imagined_{index}"])


def contents(data: Mapping[str, np.ndarray]) -> str:
    """What an evidence file shows, in words.

    >>> real = np.zeros((3, 30, 64, 64, 3), np.uint8)
    >>> contents({"images": np.array(["left"]), "real_0": real, "imagined_0": real, "context": np.array(5)})
    'left in 3 windows of 30 steps, the first 5 of them seen'
    """
    found = list(pictures_of(data))
    shown = [", ".join(p.key for p in found)] if found else []
    if "curves" in data:
        shown.append(f"curves of {', '.join(str(name) for name in data['curves'].tolist())}")
    rows, steps = found[0].real.shape[:2] if found else (1, data["curves_real"].shape[1])
    windows = f"{rows} window{'s' * (rows != 1)}"
    return f"{'; '.join(shown)} in {windows} of {steps} steps, the first {int(data['context'])} of them seen"


def draw(data: Mapping[str, np.ndarray]) -> str:
    """The section's inside: a strip for every window of every image key, then a chart for every number."""
    context = int(data["context"])
    parts, found = [], list(pictures_of(data))
    for pictures in found:
        if len(found) > 1 or pictures.key != "pixels":
            parts.append(f"<h3>{escape(pictures.key)}</h3>")
        for row in range(len(pictures.real)):
            steps = len(pictures.real[row])
            jumps = data["jump"][row] if "jump" in data else np.zeros(steps, bool)
            spans = data["jump_steps"][row] if "jump_steps" in data else np.zeros(steps)
            parts.append(_strip(pictures.real[row], pictures.imagined[row], jumps, spans, context))
    charts = []
    for index, name in enumerate(data["curves"].tolist() if "curves" in data else ()):
        real, imagined = data["curves_real"][index], data["curves_imagined"][index]
        time = range(len(real))
        lines = [Series("real", time, real.tolist()), Series("imagined", time, imagined.tolist())]
        charts.append(chart(str(name), lines, x_label="steps", mark=context - 0.5, size=(300, 180)))
    return "".join(parts) + (f'<div class="charts small">{"".join(charts)}</div>' if charts else "")


def explanation(data: Mapping[str, np.ndarray]) -> str:
    """What the section shows."""
    context = int(data["context"])
    note = f"The model sees the first {context} steps; from there on it is told only the actions. "
    if any(True for _ in pictures_of(data)):
        note += "Frames that it sees are pale. "
    if "jump" in data:
        note += "Where it would jump, the frame is outlined and Δ says how many steps it expects to skip. "
    return note


def _strip(real: np.ndarray, imagined: np.ndarray, jumps: np.ndarray, spans: np.ndarray, context: int) -> str:
    columns, side = [], SIDE
    for t in range(len(real)):
        kind = "moment" + (" context" if t < context else "") + (" jump" if jumps[t] else "")
        label = f"Δ {spans[t]:.0f}" if jumps[t] else f"{t}"
        pair = [tiled(real[t]), tiled(imagined[t])]
        side = SIDE if pair[0].shape[0] == real.shape[1] else SIDE * 2  # several rows of frames
        frames = "".join(image(reduced(picture, 2 * side)) for picture in pair)
        columns.append(f'<div class="{kind}">{frames}{label}</div>')
    names = '<div class="names"><span>real</span><span>imagined</span></div>'
    return (
        f'<div class="strip" style="--side:{side}px">{names}'
        f'<div class="moments">{"".join(columns)}</div></div>'
    )
