"""Connected regions of a binary image by runs, with numpy alone.

A row of an image is a list of runs ``[start, end)``. Runs of neighbouring rows that touch are the
edges of a graph whose connected parts are the regions; areas, sums and polygon moments are sums
over runs and edges, so nothing below touches single pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Regions(NamedTuple):
    """Filled outer regions of a binary image, ``K`` of them.

    Attributes:
        area: ``[K]`` pixels, holes included.
        total: ``[K]`` sum of the values inside, holes included.
        x: ``[K]`` horizontal centroid of the outer contour's polygon, pixel centres at whole numbers.
        y: ``[K]`` vertical centroid.
    """

    area: NDArray
    total: NDArray
    x: NDArray
    y: NDArray


class _Runs(NamedTuple):
    start: NDArray  # [R] flat position, rows ``width + 1`` apart
    end: NDArray  # [R]
    upper: NDArray  # [E] run index of each edge's upper end
    lower: NDArray  # [E]
    label: NDArray  # [R] 0 .. regions - 1
    regions: int


def opening(mask: NDArray, height: int, width: int) -> NDArray:
    """Morphological opening with a rectangle: erosion, then dilation.

    The anchor is the pixel ``(height // 2, width // 2)`` in both passes and what lies beyond the
    border supports the shape, as in OpenCV. With even sides the result therefore moves one
    pixel down and right, which the released labels contain.

    Args:
        mask: ``[H, W]`` bool.
        height: rows of the rectangle.
        width: columns of the rectangle.

    >>> blob = np.zeros((8, 8), bool); blob[2:4, 2:6] = True; blob[6, 6] = True
    >>> np.argwhere(opening(blob, 2, 2))[[0, -1]].tolist()
    [[3, 3], [4, 6]]
    """
    mask = _sliding(mask, height, width, np.logical_and, border=True)
    return _sliding(mask, height, width, np.logical_or, border=False)


def _sliding(mask: NDArray, height: int, width: int, combine: np.ufunc, *, border: bool) -> NDArray:
    """Combine each pixel's rectangle, in ``log2(height) + log2(width)`` passes over a flat padded copy."""
    rows, pitch = mask.shape[0] + height - 1, mask.shape[1] + width - 1
    padded = np.full((rows, pitch), border)
    padded[height // 2 :, width // 2 :][: mask.shape[0], : mask.shape[1]] = mask
    flat = padded.ravel()
    for size, stride in ((width, 1), (height, pitch)):
        # What runs over the end of a row lands in the padding, which is cut off below.
        span = 1
        while span < size:
            shift = min(span, size - span) * stride
            flat = combine(flat[:-shift], flat[shift:])
            span += min(span, size - span)
    out = np.empty(rows * pitch, bool)
    out[: len(flat)] = flat
    return out.reshape(rows, pitch)[: mask.shape[0], : mask.shape[1]]


def filled_regions(mask: NDArray, prefix: NDArray) -> Regions:
    """The regions inside the outermost contours of a mask.

    Regions touch by sides or corners; holes, and whatever lies in them, belong to the region
    around. Area, sum and centroid equal what filled external contours and the moments of their
    polygons give (the polygon runs through the centres of the border pixels).

    Args:
        mask: ``[H, W]`` bool.
        prefix: ``[H, W + 1]`` running sums of each row of the values to be summed, 0 first.

    >>> ring = np.ones((5, 5), bool); ring[2, 2] = False
    >>> regions = filled_regions(ring, np.zeros((5, 6)))
    >>> regions.area.tolist(), regions.x.tolist()
    ([25.0], [2.0])
    """
    width = mask.shape[1]
    runs = _label(mask, diagonal=True)
    if len(runs.upper) - len(runs.start) + runs.regions:  # independent cycles of the run graph are holes
        runs = _label(_fill(mask), diagonal=True)
    row, start = np.divmod(runs.start, width + 1)
    end = runs.end - row * (width + 1)
    area = np.bincount(runs.label, end - start, runs.regions)
    total = np.bincount(runs.label, prefix[row, end] - prefix[row, start], runs.regions)

    # Polygon moments. Between two rows the polygon covers the unit squares spanned by four region
    # pixels, and half of those spanned by three, which sit where the runs begin or end apart.
    a, b = runs.upper, runs.lower
    left, right = (
        np.maximum(start[a], start[b]),
        np.minimum(end[a], end[b]) - 1,
    )  # shared pixels, ends included
    shared = (right >= left).astype(float)
    y = row[a].astype(float)
    squares = np.maximum(right - left, 0).astype(float)
    parts = [(squares, (left + right) / 2, y + 0.5)]
    for x, long_upper, differ in (
        (left - 1 / 3, start[a] < start[b], start[a] != start[b]),
        (right + 1 / 3, end[a] > end[b], end[a] != end[b]),
    ):
        parts.append((0.5 * shared * differ, x, y + np.where(long_upper, 1 / 3, 2 / 3)))
    label = np.concatenate([runs.label[a]] * 3)
    weight, x, y = (np.concatenate(p) for p in zip(*parts, strict=True))
    m00, m10, m01 = (np.bincount(label, weight * p, runs.regions) for p in (1.0, x, y))
    flat = m00 == 0  # one pixel thick: the polygon has no area
    if flat.any():
        plain_x = np.bincount(runs.label, (end - start) * (start + end - 1) / 2, runs.regions) / area
        plain_y = np.bincount(runs.label, (end - start) * row, runs.regions) / area
        m00, m10, m01 = np.where(flat, (np.ones_like(m00), plain_x, plain_y), (m00, m10, m01))
    return Regions(area, total, m10 / m00, m01 / m00)


def _label(mask: NDArray, *, diagonal: bool) -> _Runs:
    """Runs of a mask, their edges and the region of each run."""
    height, width = mask.shape
    pitch = width + 1  # an empty column keeps rows apart
    flat = np.zeros(height * pitch + 1, bool)
    flat[1:].reshape(height, pitch)[:, :width] = mask
    edge = np.flatnonzero(flat[1:] != flat[:-1])
    start, end = edge[::2], edge[1::2]
    # Runs of the next row that touch run r are consecutive: ends beyond its start, starts before its end.
    first = np.searchsorted(end, start + pitch, "left" if diagonal else "right")
    last = np.searchsorted(start, end + pitch, "right" if diagonal else "left")
    degree = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(start)), degree)
    lower = np.arange(degree.sum()) - np.repeat(np.cumsum(degree) - degree - first, degree)
    parent = np.arange(len(start))
    while True:  # hook the larger root to the smaller, then shorten every path to its root
        root_a, root_b = parent[upper], parent[lower]
        if (root_a == root_b).all():
            break
        np.minimum.at(parent, np.maximum(root_a, root_b), np.minimum(root_a, root_b))
        grand = parent[parent]
        while not np.array_equal(parent, grand):
            parent, grand = grand, grand[grand]
    roots = np.flatnonzero(parent == np.arange(len(start)))
    return _Runs(start, end, upper, lower, np.searchsorted(roots, parent), len(roots))


def _fill(mask: NDArray) -> NDArray:
    """The mask with every hole closed: background that does not reach the border by sides."""
    outside = np.pad(~mask, 1, constant_values=True)
    runs = _label(outside, diagonal=False)
    pitch = outside.shape[1] + 1
    step = np.zeros(outside.shape[0] * pitch + 1, np.int8)
    holes = runs.label != runs.label[0]
    step[runs.start[holes]] = 1
    step[runs.end[holes]] -= 1
    filled = np.cumsum(step[:-1], dtype=np.int8).reshape(-1, pitch)[1:-1, 1:-2].astype(bool)
    return mask | filled
