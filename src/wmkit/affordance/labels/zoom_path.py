"""Zoom geometry and batched crop-and-resize (LS-Imagine, arXiv:2410.03618, section 3.1).

Virtual exploration looks at 81 boxes of a frame; towards each it zooms in 16 frames whose four
edges move linearly from the frame's border to the box. Boxes are ``(top, left, bottom, right)``
in pixels, int64, ends excluded.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

STEPS = 9  # box positions per axis
FRAMES = 16  # frames of one zoom
FRACTION = 0.15  # box side as a fraction of the frame's


@lru_cache(maxsize=64)
def exploration_boxes(image_size: tuple[int, int]) -> Tensor:
    """The 9 x 9 boxes that virtual exploration walks to.

    Sides are ``int(0.15 W)`` and ``int(0.15 H)``, strides the integer part of what is left over 8.
    The last column and the last row reach to the border.

    Returns:
        ``[9, 9, 4]`` int64, rows outermost.

    >>> exploration_boxes((160, 256))[4, 4].tolist(), exploration_boxes((160, 256))[0, 8].tolist()
    ([68, 108, 92, 146], [0, 216, 24, 256])
    """
    (top, bottom), (left, right) = (_box_edges(size) for size in image_size)
    grid = torch.meshgrid(torch.arange(STEPS), torch.arange(STEPS), indexing="ij")
    rows, columns = grid
    return torch.stack((top[rows], left[columns], bottom[rows], right[columns]), -1)


def _box_edges(size: int) -> tuple[Tensor, Tensor]:
    """Start and end of the 9 boxes on one axis."""
    side = int(size * FRACTION)
    start = torch.arange(STEPS) * ((size - side) // (STEPS - 1))
    end = start + side
    end[-1] = size
    return start, end


def zoom_schedule(boxes: Tensor, image_size: tuple[int, int], frames: int = FRAMES) -> Tensor:
    """Crop rectangles of a zoom from the whole frame to each box, linear in edge position.

    Edges are truncated to whole pixels; frame 0 is the whole frame, the last one is the box.

    Args:
        boxes: ``[..., 4]`` int64.
        image_size: ``(H, W)``.
        frames: length of the zoom.

    Returns:
        ``[..., frames, 4]`` int64.

    >>> crops = zoom_schedule(exploration_boxes((160, 256))[4, 4], (160, 256))
    >>> [(int(c[3] - c[1]), int(c[2] - c[0])) for c in crops[12:]]
    [(82, 51), (67, 43), (53, 33), (38, 24)]
    """
    height, width = image_size
    last = max(frames - 1, 1)
    i = torch.arange(frames, device=boxes.device)
    top, left, bottom, right = boxes.unsqueeze(-1).unbind(-2)  # each [..., 1]
    return torch.stack(
        (
            top * i // last,
            left * i // last,
            height + (bottom - height) * i // last,
            width + (right - width) * i // last,
        ),
        -1,
    )


def crop_resize(
    images: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    *,
    index: Tensor | None = None,
    truncate: bool = False,
) -> Tensor:
    """Cut boxes out of images and resize each bilinearly (half-pixel centres, no antialiasing).

    Same numbers as ``F.interpolate(image[:, t:b, l:r], size, mode="bilinear")`` on each box, as one
    batched operation: columns are resampled once per distinct (image, left, right), rows are gathered.

    Args:
        images: ``[B, C, H, W]``, any dtype, values in their own units.
        boxes: ``[N, 4]`` int64 ``(top, left, bottom, right)``, at least one pixel wide and high.
        size: ``(h, w)`` of the results.
        index: ``[N]`` int64, which image each box is cut from; image 0 by default.
        truncate: round down to whole numbers, as storing in uint8 does (the released code).

    Returns:
        ``[N, C, h, w]`` float32, channels-last in memory.

    >>> frame = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> crop_resize(frame, torch.tensor([[1, 1, 3, 3]]), (2, 2))
    tensor([[[[ 5.,  6.],
              [ 9., 10.]]]])
    """
    channels, height, width = images.shape[1:]
    if index is None:
        index = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    top, left, bottom, right = boxes.unbind(-1)
    key = (index * (width + 1) + left) * (width + 1) + right
    key, inverse = torch.unique(key, return_inverse=True)  # [U], [N]
    source = key // (width + 1) ** 2
    x0, x1, x_weight = _taps(key // (width + 1) % (width + 1), key % (width + 1), size[1])  # [U, w]
    y0, y1, y_weight = _taps(top, bottom, size[0])  # [N, h]

    # Columns: pixels as [x, (y, c)], so that each gathered column is contiguous.
    pixels = images.permute(0, 3, 2, 1).reshape(-1, height * channels)  # [B*W, H*C]
    offset = source[:, None] * width
    first = pixels.index_select(0, (offset + x0).flatten()).float()  # [U*w, H*C]
    second = pixels.index_select(0, (offset + x1).flatten()).float()
    columns = torch.lerp(first, second, x_weight.reshape(-1, 1)).reshape(len(key), size[1], height, channels)
    rows = columns.transpose(1, 2).reshape(
        len(key) * height, size[1] * channels
    )  # row y of unit u at u*H + y

    unit = inverse[:, None]
    first = rows.index_select(0, (unit * height + y0).flatten())  # [N*h, w*C]
    second = rows.index_select(0, (unit * height + y1).flatten())
    out = torch.lerp(first, second, y_weight.reshape(-1, 1))
    if truncate:
        out = (out + 1e-4).floor_()  # the guard keeps 99.99999 from becoming 99
    return out.reshape(len(boxes), size[0], size[1], channels).permute(0, 3, 1, 2)  # [N, C, h, w]


def _taps(start: Tensor, end: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two source positions and the weight of the second, each ``[N, size]``."""
    extent = (end - start)[:, None]
    centre = (torch.arange(size, device=start.device, dtype=torch.float64) + 0.5) * (
        extent.double() / size
    ) - 0.5
    centre = centre.clamp_min(0)
    low = centre.long()
    high = torch.minimum(low + 1, extent - 1)
    return start[:, None] + low, start[:, None] + high, (centre - low).float()


def spread_frames(kept_frames: Tensor, kept: tuple[int, ...], frames: int = FRAMES) -> Tensor:
    """Fill a zoom of which some frames are known up to its length, linearly in time.

    Args:
        kept_frames: ``[N, K, ...]`` frames or features.
        kept: K frame numbers in order, 0 and ``frames - 1`` among them.
        frames: length of the zoom.

    Returns:
        ``[N, frames, ...]``.

    >>> spread_frames(torch.tensor([[0.0, 3.0]]), (0, 3), 4)
    tensor([[0., 1., 2., 3.]])
    """
    if len(kept) == frames:
        return kept_frames
    known = torch.tensor(kept)
    time = torch.arange(frames)
    low = torch.searchsorted(known, time, right=True).sub(1).clamp_max(len(kept) - 2)  # [frames]
    weight = (time - known[low]) / (known[low + 1] - known[low])
    weight = weight.reshape(-1, *[1] * (kept_frames.ndim - 2)).to(kept_frames)
    return torch.lerp(kept_frames[:, low], kept_frames[:, low + 1], weight)
