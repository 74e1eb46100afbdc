"""Affordance maps: golden values of the released code, oracles by brute force, the zoom window's regions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmkit.affordance import affordance_score, fuse_scores, jump_probability, zoom_window
from wmkit.affordance.labels.map_scores import gaussian_weight
from wmkit.affordance.labels.regions import filled_regions, opening
from wmkit.affordance.labels.zoom_path import exploration_boxes, zoom_schedule
from wmkit.errors import ConfigError, SpecError

SIZE = (160, 256)


def grid() -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(160.0), torch.arange(256.0), indexing="ij")
    return y, x


def blob(cx: float, cy: float, sx: float, sy: float) -> Tensor:
    y, x = grid()
    return torch.exp(-((x - cx) ** 2 / (2 * sx**2) + (y - cy) ** 2 / (2 * sy**2)))


# --- statistics -----------------------------------------------------------------------------------


def test_golden_values_of_the_released_code() -> None:
    g = gaussian_weight(SIZE)
    assert math.isclose(float(g.mean()), 0.72992, abs_tol=5e-6)
    assert math.isclose(float((g >= g.mean()).float().mean()), 0.490, abs_tol=5e-4)
    narrow = blob(200, 60, 12, 10)
    assert math.isclose(float(affordance_score(narrow)), 0.0206037, abs_tol=1e-7)
    assert math.isclose(float(affordance_score(narrow, normalise=False)), 0.0150391, abs_tol=1e-7)
    assert math.isclose(float(jump_probability(narrow)), 0.98159, abs_tol=1e-5)
    assert math.isclose(float(jump_probability(narrow, kurtosis="raw")), 0.98159, abs_tol=1e-5)
    y, x = grid()
    waves = 0.3 + 0.2 * torch.sin(x / 40) * torch.cos(y / 30)
    assert math.isclose(float(jump_probability(waves)), 0.073509, abs_tol=1e-6)
    assert math.isclose(float(jump_probability(waves, kurtosis="raw")), 0.184237, abs_tol=1e-6)


def test_statistics_are_batched_and_constant_maps_are_harmless() -> None:
    maps = torch.rand(2, 3, 160, 256)
    for statistic in (affordance_score, jump_probability):
        together = statistic(maps)
        assert together.shape == (2, 3)
        torch.testing.assert_close(together[1, 2], statistic(maps[1, 2]))
    flat = torch.full((160, 256), 0.3)
    assert math.isclose(float(affordance_score(flat)), 0.3, rel_tol=1e-5)
    assert math.isclose(float(affordance_score(flat, sigma=(0, 0), normalise=False)), 0.3, rel_tol=1e-5)
    assert abs(float(jump_probability(flat))) < 1e-6
    assert not zoom_window(torch.zeros(4, 160, 256)).found.any()
    with pytest.raises(ConfigError, match="excess"):
        jump_probability(flat, kurtosis="fisher")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="H, W"):
        affordance_score(torch.zeros(5))


# --- fusion ---------------------------------------------------------------------------------------


def test_geometry_of_boxes_and_zooms() -> None:
    boxes = exploration_boxes(SIZE)
    assert boxes[0, :, 1].tolist() == [0, 27, 54, 81, 108, 135, 162, 189, 216]
    assert boxes[:, 0, 0].tolist() == [0, 17, 34, 51, 68, 85, 102, 119, 136]
    assert (boxes[:, :8, 3] - boxes[:, :8, 1] == 38).all() and (boxes[:, 8, 3] == 256).all()
    assert (boxes[..., 2] - boxes[..., 0] == 24).all()
    crops = zoom_schedule(boxes, SIZE)
    assert crops.shape == (9, 9, 16, 4)
    assert (crops[:, :, 0] == torch.tensor([0, 0, 160, 256])).all() and torch.equal(crops[:, :, 15], boxes)
    assert len(torch.unique(crops.flatten(0, 2), dim=0)) <= 1216
    for iy, ix in ((0, 0), (3, 7), (8, 8)):  # the released arithmetic, one edge at a time
        y1, x1, y2, x2 = boxes[iy, ix].tolist()
        for i in range(16):
            edges = (y1 * i / 15, x1 * i / 15, 160 - (160 - y2) * i / 15, 256 - (256 - x2) * i / 15)
            assert crops[iy, ix, i].tolist() == [int(edge) for edge in edges]


def brute_force_fusion(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The rule rectangle by rectangle: logits before the logistic, and coverage."""
    total, cover = torch.zeros(SIZE, dtype=torch.float64), torch.zeros(SIZE, dtype=torch.float64)
    crops = zoom_schedule(exploration_boxes(SIZE), SIZE)
    for iy in range(9):
        for ix in range(9):
            for top, left, bottom, right in crops[iy, ix, 13:].tolist():
                total[top:bottom, left:right] += scores[iy, ix]
                cover[top:bottom, left:right] += float(scores[iy, ix] > 0)
    plain = total / (cover + 0.1)
    taps = []
    for size in (23, 37):
        sigma = {23: 3.8, 37: 5.9}[size]
        kernel = torch.exp(-((torch.arange(size, dtype=torch.float64) - size // 2) ** 2) / (2 * sigma**2))
        taps.append(kernel / kernel.sum())
    padded = F.pad(plain[None, None], (18, 18, 11, 11), mode="reflect")
    blurred = F.conv2d(F.conv2d(padded, taps[0].reshape(1, 1, -1, 1)), taps[1].reshape(1, 1, 1, -1))
    return blurred[0, 0], cover


@pytest.mark.parametrize("mean", [21.0, 1.0])
def test_fusion_equals_the_rectangle_loop(mean: float) -> None:
    scores = mean + 3 * torch.randn(
        9, 9, generator=torch.Generator().manual_seed(0)
    )  # mean 1: some not positive
    logits, _ = brute_force_fusion(scores)
    want = torch.sigmoid(1.2 * (logits - 21.8)).float()
    torch.testing.assert_close(fuse_scores(scores, SIZE), want, atol=1e-5, rtol=0)


def test_coverage_and_guard() -> None:
    _, cover = brute_force_fusion(torch.ones(9, 9))
    assert (cover.min(), cover.max()) == (3, 19) and math.isclose(float(cover.mean()), 10.868, abs_tol=5e-4)
    maps = fuse_scores(torch.full((9, 9), 21.8), SIZE)
    assert math.isclose(float(maps[0, 0]), 1 / (1 + math.exp(-1.2 * (21.8 * 3 / 3.1 - 21.8))), abs_tol=1e-5)
    assert math.isclose(
        float(maps[0, 0]), 0.301, abs_tol=5e-4
    )  # three rectangles, and the blur stays among them
    assert 0.40 < float(maps[60:100, 100:150].mean()) < 0.47


def test_fusion_is_batched_and_takes_any_size() -> None:
    scores = 22 + torch.randn(2, 3, 9, 9)
    maps = fuse_scores(scores, (64, 64))
    assert maps.shape == (2, 3, 64, 64)
    torch.testing.assert_close(maps[1, 2], fuse_scores(scores[1, 2], (64, 64)))
    with pytest.raises(SpecError, match="9, 9"):
        fuse_scores(torch.zeros(81), SIZE)


# --- zoom window ----------------------------------------------------------------------------------


def test_zoom_window_of_one_blob() -> None:
    window = zoom_window(blob(200, 60, 20, 16))
    top, left, height, width, value, central = (v.item() for v in window)
    assert (height, width) == (int(height), int(width)) and height / width == pytest.approx(
        160 / 256, abs=0.02
    )
    assert abs(top + (height - 1) / 2 - 60) <= 1 and abs(left + (width - 1) / 2 - 200) <= 1
    assert value == pytest.approx(
        float(blob(200, 60, 20, 16)[top : top + height, left : left + width].mean()), abs=1e-6
    )
    assert central is True  # (200, 60) lies inside the ellipse of half the frame
    assert zoom_window(blob(240, 20, 20, 16)).central.item() is False
    assert zoom_window(blob(200, 60, 3, 2)).found.item() is False  # too small for the opening
    least = zoom_window(blob(128, 80, 12, 8))
    assert (int(least.height), int(least.width)) == (16, 25)


def test_zoom_window_is_best_among_all_positions_and_batched() -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(4, 1, 16, 26, generator=generator)
    maps = F.interpolate(noise, SIZE, mode="bicubic").clamp(0, 1)[:, 0]
    windows = zoom_window(maps.reshape(2, 2, *SIZE))
    assert windows.top.shape == (2, 2) and windows.box.shape == (2, 2, 4)
    for k in range(4):
        single = zoom_window(maps[k])
        assert [int(v) for v in single[:4]] == [int(v.flatten()[k]) for v in windows[:4]]
        h, w = int(single.height), int(single.width)
        means = F.avg_pool2d(maps[k].double()[None, None], (h, w), 1)[0, 0]
        assert math.isclose(float(single.value), float(means.max()), abs_tol=1e-6)
        assert math.isclose(float(means[single.top, single.left]), float(means.max()), abs_tol=1e-9)


def test_central_asks_about_any_region_and_the_window_takes_the_best_mean() -> None:
    y, x = grid()
    two = 0.9 * (((x - 128).abs() < 15) & ((y - 80).abs() < 10)) + 1.0 * (
        ((x - 30).abs() < 15) & ((y - 20).abs() < 10)
    )
    window = zoom_window(two)
    assert bool(window.central)  # by the weaker region in the middle
    assert int(window.left) < 60  # the window lies on the stronger one


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 0.7))
def test_regions_equal_flood_fill(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((13, 17)) < density
    if not mask.any():
        return
    values = rng.random(mask.shape)
    outside = np.pad(~mask, 1, constant_values=True)
    filled = ~flood(outside, [(0, 0)], ((0, 1), (1, 0), (0, -1), (-1, 0)))[1:-1, 1:-1]
    around = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
    expected, left = [], filled.copy()
    while left.any():
        region = flood(left, [tuple(np.argwhere(left)[0])], around)
        expected.append((int(region.sum()), float(values[region].sum())))
        left &= ~region
    regions = filled_regions(mask, np.pad(values, ((0, 0), (1, 0))).cumsum(1))
    found = sorted(zip(regions.area.astype(int).tolist(), regions.total.tolist(), strict=True))
    assert [a for a, _ in found] == [a for a, _ in sorted(expected)]
    assert np.allclose(sorted(t for _, t in found), sorted(t for _, t in expected))


def flood(allowed: np.ndarray, front: list, steps) -> np.ndarray:
    """Everything reachable from ``front`` through allowed pixels."""
    seen = np.zeros_like(allowed)
    while front:
        y, x = front.pop()
        if 0 <= y < allowed.shape[0] and 0 <= x < allowed.shape[1] and allowed[y, x] and not seen[y, x]:
            seen[y, x] = True
            front += [(y + dy, x + dx) for dy, dx in steps]
    return seen


def test_polygon_centroids_and_the_opening_follow_opencv() -> None:
    # Values of OpenCV 4.8 (findContours, moments; morphologyEx), worked out once and kept here.
    square = np.zeros((40, 60), bool)
    square[10:25, 20:45] = True
    opened = np.argwhere(opening(square, 10, 16))
    assert opened[0].tolist() == [11, 21] and opened[-1].tolist() == [25, 45]  # one pixel down and right
    corner = np.zeros((40, 60), bool)
    corner[:9, :15] = True
    assert int(opening(corner, 10, 16).sum()) == 160  # what lies beyond the border supports the shape
    staircase = np.zeros((6, 6), bool)
    staircase[1:5, 1] = staircase[3:5, 2] = staircase[3:5, 3] = True
    regions = filled_regions(staircase, np.zeros((6, 7)))
    # Polygon (1,1) (1,4) (3,4) (3,3) (2,3) (1,2): shoelace by hand gives 2.5 square pixels.
    assert np.allclose(
        (regions.x[0], regions.y[0]), shoelace([(1, 1), (1, 4), (3, 4), (3, 3), (2, 3), (1, 2)])
    )


def shoelace(points: list[tuple[int, int]]) -> tuple[float, float]:
    """Centroid of a polygon given as (x, y)."""
    p = np.array([*points, points[0]], float)
    cross = p[:-1, 0] * p[1:, 1] - p[1:, 0] * p[:-1, 1]
    return tuple(((p[:-1] + p[1:]) * cross[:, None]).sum(0) / (3 * cross.sum()))
