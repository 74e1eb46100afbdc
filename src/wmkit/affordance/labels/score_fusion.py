"""One map from the 81 scores of virtual exploration (LS-Imagine, arXiv:2410.03618, section 3.1)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from wmkit.affordance.labels.blur import gaussian_blur_matrix
from wmkit.affordance.labels.zoom_path import FRACTION, FRAMES, STEPS, exploration_boxes, zoom_schedule
from wmkit.errors import SpecError

LOGIT_SLOPE = 1.2  # logistic that turns a video-text logit into affordance
LOGIT_MIDPOINT = 21.8
COVER_GUARD = 0.1  # added to the number of rectangles over a pixel
PAINTED = tuple(
    i for i in range(FRAMES) if i * i > 150
)  # zoom frames whose crops carry the score: 13, 14, 15


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
