"""What LS-Imagine reads off an affordance map (arXiv:2410.03618, section 3 and the released code).

Affordance maps are ``[*B, H, W]`` in [0, 1]. Four questions are answered here: how much
affordance lies ahead (:func:`affordance_score`), whether something far away stands out
(:func:`jump_probability`), what map 81 video-text scores make (:func:`fuse_scores`), and where to
zoom (:func:`zoom_window`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wmkit.errors import ConfigError, SpecError
from wmkit.functional.maps import gaussian_blur_matrix, gaussian_weight, kurtosis
from wmkit.functional.regions import filled_regions, opening
from wmkit.functional.zoom import FRACTION, FRAMES, STEPS, exploration_boxes, zoom_schedule

LOGIT_SLOPE = 1.2  # logistic that turns a video-text logit into affordance
LOGIT_MIDPOINT = 21.8
COVER_GUARD = 0.1  # added to the number of rectangles over a pixel
PAINTED = tuple(
    i for i in range(FRAMES) if i * i > 150
)  # zoom frames whose crops carry the score: 13, 14, 15

_Kurtosis = kurtosis


def affordance_score(
    affordance: Tensor, *, sigma: tuple[float, float] = (0.5, 0.5), normalise: bool = True
) -> Tensor:
    """How much affordance lies ahead: the map's mean under a centred Gaussian weight ``g`` (eq. 2).

    Args:
        affordance: ``[*B, H, W]`` in [0, 1].
        sigma: standard deviations of ``g`` as fractions of width and height; 0 switches an axis off.
        normalise: divide by the mean of ``g`` (released code), so that a constant map scores its
            value; ``False`` is the paper's formula.

    Returns:
        ``[*B]`` in [0, 1].

    Raises:
        SpecError: the map has fewer than two axes.

    >>> affordance_score(torch.full((3, 160, 256), 0.25))
    tensor([0.2500, 0.2500, 0.2500])
    """
    affordance = _as_map(affordance)
    g = gaussian_weight(_size(affordance), sigma).to(affordance)
    # Not as a product: some processors add 40,960 numbers one after the other there, and lose four digits.
    score = (affordance * g).sum((-2, -1))
    return score / (g.sum() if normalise else g.numel())


def jump_probability(affordance: Tensor, *, kurtosis: Literal["excess", "raw"] = "excess") -> Tensor:
    """How much one far place stands out: ``sigmoid(K) * (max M - mean M)`` (eq. 3).

    Args:
        affordance: ``[*B, H, W]`` in [0, 1].
        kurtosis: ``"excess"`` takes 3 off the fourth standardised moment (released code);
            ``"raw"`` does not (the paper), which keeps the sigmoid above 0.73.

    Returns:
        ``[*B]`` in [0, 1]; 0 for a constant map.

    Raises:
        ConfigError: another kind of kurtosis.
        SpecError: the map has fewer than two axes.

    >>> jump_probability(torch.zeros(2, 160, 256))
    tensor([0., 0.])
    """
    if kurtosis not in ("excess", "raw"):
        raise ConfigError(
            f"kurtosis of the jump probability is unknown: found {kurtosis!r}, wanted 'excess' (released "
            "code) or 'raw' (paper); choose one of the two"
        )
    affordance = _as_map(affordance)
    stands_out = affordance.amax((-2, -1)) - affordance.mean((-2, -1))
    return torch.sigmoid(_Kurtosis(affordance, excess=kurtosis == "excess")) * stands_out


# --- fusion of the 81 scores ------------------------------------------------------------------


class _Fusion(NamedTuple):
    """Constants of the fusion on a grid of cells inside which the same rectangles overlap."""

    rows: Tensor  # [R, 9*3] membership of each row segment in the boxes of the painted frames
    columns: Tensor  # [9, 3*S] the same for column segments
    scale: Tensor  # [R, S] slope of the sigmoid over (0.1 + number of rectangles)
    blur_rows: Tensor  # [H, R] segment to pixel, then blur; rows sum to 1
    blur_columns: Tensor  # [S, W]


@lru_cache(maxsize=16)
def _fusion(image_size: tuple[int, int], device: torch.device) -> _Fusion:
    crops = zoom_schedule(exploration_boxes(image_size), image_size)[:, :, list(PAINTED)]  # [9, 9, 3, 4]
    axes = []
    for size, start, end in (
        (image_size[0], crops[:, 0, :, 0], crops[:, 0, :, 2]),
        (image_size[1], crops[0, :, :, 1], crops[0, :, :, 3]),
    ):
        pixel = torch.arange(size)
        member = (pixel >= start.T.reshape(-1, 1)) & (pixel < end.T.reshape(-1, 1))  # [3*9, size]
        changed = (member[:, 1:] != member[:, :-1]).any(0)
        segment = torch.cat((torch.zeros(1, dtype=torch.int64), changed.cumsum(0)))  # [size]
        first = torch.searchsorted(segment, torch.arange(int(segment[-1]) + 1))
        kernel = (int(size * FRACTION) - 1) // 2 * 2 + 1  # largest odd number up to the box side
        blur = gaussian_blur_matrix(size, max(kernel, 1))
        spread = torch.zeros(size, len(first), dtype=torch.float64)
        spread[pixel, segment] = 1.0
        axes.append((member[:, first].float(), (blur @ spread).float()))
    (rows, blur_rows), (columns, blur_columns) = axes
    # A box covers a cell when its row and its column do; frames add up.
    cover = COVER_GUARD + sum(
        r.sum(0)[:, None] * c.sum(0) for r, c in zip(rows.split(STEPS), columns.split(STEPS), strict=True)
    )
    rows = rows.unflatten(0, (-1, STEPS)).transpose(0, 1).flatten(0, 1)  # box-major, as products have them
    columns = columns.unflatten(0, (-1, STEPS)).transpose(0, 1).flatten(1)
    parts = (rows.T, columns, LOGIT_SLOPE / cover, blur_rows, blur_columns.T)
    return _Fusion(*(part.to(device).contiguous() for part in parts))


def _paint(scores: Tensor, fusion: _Fusion) -> Tensor:
    """Sum of the scores of covering rectangles on the cell grid: ``[N, 9, 9] -> [N, R, S]``."""
    across = scores.reshape(-1, STEPS) @ fusion.columns  # [N*9, 3*S]
    return fusion.rows @ across.view(len(scores), STEPS * len(PAINTED), -1)


def fuse_scores(scores: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Turn the 81 logits of virtual exploration into an affordance map (released labelling rule).

    Each logit is painted on the crops of its last three zoom frames; a pixel takes the sum of the
    logits over it, divided by 0.1 plus the number of positive ones; the result is blurred
    (kernel just below the box, 37 x 23 at 160 x 256) and squashed by ``sigmoid(1.2 (z - 21.8))``.
    Between two crop borders nothing changes, so the painting happens on a grid of about 50 x 50 cells
    and the blur maps cells to pixels: two small matrix products per map.

    Args:
        scores: ``[*B, 9, 9]`` logits, rows of boxes outermost.
        image_size: ``(H, W)`` of the frame that was explored.

    Returns:
        ``[*B, H, W]`` float32 in [0, 1].

    Raises:
        SpecError: the last two axes are not 9 x 9.

    >>> affordance = fuse_scores(torch.full((9, 9), 25.0), (160, 256))
    >>> affordance.shape, bool((affordance > 0.5).all())
    (torch.Size([160, 256]), True)
    """
    if scores.shape[-2:] != (STEPS, STEPS):
        raise SpecError(
            f"scores of virtual exploration: found shape {list(scores.shape)}, wanted [*B, 9, 9]; "
            "reshape the 81 scores with the rows of boxes outermost"
        )
    fusion = _fusion((int(image_size[0]), int(image_size[1])), scores.device)
    batch = scores.shape[:-2]
    flat = scores.reshape(-1, STEPS, STEPS).float()
    positive = flat > 0
    scale = fusion.scale
    if not bool(positive.all()):
        scale = LOGIT_SLOPE / (COVER_GUARD + _paint(positive.float(), fusion))
    cells = _paint(flat, fusion) * scale  # [N, R, S]
    blurred = (fusion.blur_rows @ cells) @ fusion.blur_columns  # [N, H, W]; blurring keeps constants
    return blurred.sub_(LOGIT_SLOPE * LOGIT_MIDPOINT).sigmoid_().view(*batch, *image_size)


# --- where to zoom ----------------------------------------------------------------------------


class ZoomWindow(NamedTuple):
    """Where to zoom, one entry per map (``[*B]`` each, 0-d for a single map).

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
    the kept region; both as released. Runs on the CPU, map by map.

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
    affordance = _as_map(affordance)
    size = _size(affordance)
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


# --- small helpers ------------------------------------------------------------------------------


def _as_map(affordance: Tensor) -> Tensor:
    if affordance.ndim < 2:
        raise SpecError(
            f"affordance map: found shape {list(affordance.shape)}, wanted [*B, H, W]; "
            "pass the map before any flattening"
        )
    return affordance if affordance.is_floating_point() else affordance.float()


def _size(affordance: Tensor) -> tuple[int, int]:
    return int(affordance.shape[-2]), int(affordance.shape[-1])
