"""The window that a long-term jump zooms into (LS-Imagine, arXiv:2410.03618, section 3.3, and its code)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmkit.affordance.labels.map_scores import as_map, gaussian_weight
from wmkit.affordance.labels.regions import filled_regions, opening


class ZoomWindow(NamedTuple):
    """A window to zoom into, one entry per map (``[*B]`` each, 0-d for a single map).

    Where a map has no region that stands out, all entries are zero: check :attr:`found`.
    """

    top: Tensor  # int64, first row
    left: Tensor  # int64, first column
    height: Tensor  # int64, rows; 0 where there is nothing to zoom at
    width: Tensor  # int64, columns
    value: Tensor  # float32, mean affordance inside, in [0, 1]
    central: Tensor  # bool, some region is centred where the Gaussian weight is at least its mean

    @property
    def found(self) -> Tensor:
        """``[*B]`` bool: there is something to zoom at."""
        return self.height > 0

    @property
    def box(self) -> Tensor:
        """``[*B, 4]`` int64 ``(top, left, bottom, right)``, as :func:`crop_resize` takes it."""
        return torch.stack((self.top, self.left, self.top + self.height, self.left + self.width), -1)


def zoom_window(affordance: Tensor) -> ZoomWindow:
    """Choose the window that a long-term jump zooms into (released rule).

    1. Binarise above ``(max + min) / 2 + std`` and open with a rectangle of 1/16 of each side
       (16 x 10 at 160 x 256).
    2. Of the filled outer regions keep the one with the largest mean. Its share ``A`` of the frame over
       the Gaussian weight at its centroid, clipped to [0.01, 1], is the window's share of the frame.
    3. Of all positions of that window take the one with the largest mean (float64 integral image).

    The flag ``central`` asks about any region, not the kept one, and the window need not contain
    the kept region; both as released. Runs on the CPU, map by map: regions are found by runs of pixels
    there in half a millisecond, and only maps that passed the threshold of P_jump come here.

    Args:
        affordance: ``[*B, H, W]`` in [0, 1].

    Returns:
        Six entries of shape ``[*B]``; see :class:`ZoomWindow`.

    Raises:
        SpecError: the map has fewer than two axes.

    >>> y, x = torch.meshgrid(torch.arange(160.0), torch.arange(256.0), indexing="ij")
    >>> blob = torch.exp(-((x - 130) ** 2 + (y - 70) ** 2) / 800)
    >>> window = zoom_window(blob)
    >>> int(window.height), int(window.width), bool(window.central)
    (25, 40, True)
    """
    affordance = as_map(affordance)
    size = tuple(affordance.shape[-2:])
    maps = affordance.detach().reshape(-1, *size).cpu().contiguous().numpy()
    found = np.array([_zoom_window(single) for single in maps]).reshape(*affordance.shape[:-2], 6)
    parts = found[..., :4].astype(np.int64), found[..., 4].astype(np.float32), found[..., 5] > 0
    edges, value, central = (torch.from_numpy(np.asarray(x)).to(affordance.device) for x in parts)
    top, left, height, width = edges.unbind(-1)
    return ZoomWindow(top, left, height, width, value, central)


def _zoom_window(values: NDArray) -> tuple[int, int, int, int, float, bool]:
    """The rule on one map ``[H, W]``."""
    height, width = values.shape
    prefix = np.empty((height, width + 1))  # running sums of each row
    prefix[:, 0] = 0  # by torch, because numpy's take twice as long:
    torch.cumsum(torch.from_numpy(values), 1, dtype=torch.float64, out=torch.from_numpy(prefix)[:, 1:])
    centred = (values - np.float32(prefix[:, -1].sum() / values.size)).ravel()
    std = float(np.sqrt(np.dot(centred, centred) / centred.size))
    threshold = (float(values.max()) + float(values.min())) / 2 + std
    mask = opening(values > threshold, max(height // 16, 1), max(width // 16, 1))
    if not mask.any():
        return 0, 0, 0, 0, 0.0, False
    regions = filled_regions(mask, prefix)
    g, g_mean = _weight((height, width))
    at_centroid = g[regions.y.astype(int), regions.x.astype(int)]
    central = bool((at_centroid >= g_mean).any())
    best = int(np.argmax(regions.total / regions.area))
    share = float(np.clip(regions.area[best] / (height * width) / at_centroid[best], 0.01, 1.0))
    h, w = int(np.sqrt(share) * height), int(np.sqrt(share) * width)
    sums = np.empty((height + 1, width - w + 1))  # integral image of the sums of w neighbours in a row
    sums[0] = 0
    torch.cumsum(torch.from_numpy(prefix[:, w:] - prefix[:, :-w]), 0, out=torch.from_numpy(sums)[1:])
    windows = sums[h:] - sums[:-h]
    top, left = divmod(int(windows.argmax()), width - w + 1)
    return top, left, h, w, float(windows[top, left] / (h * w)), central


@lru_cache(maxsize=16)
def _weight(image_size: tuple[int, int]) -> tuple[NDArray, float]:
    """The Gaussian weight and its mean."""
    g = gaussian_weight(image_size).double().numpy()
    return g, float(g.mean())
