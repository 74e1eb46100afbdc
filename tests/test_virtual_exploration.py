"""Virtual exploration: crop-and-resize against torch, frames counted, chunks, the fast mode."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wmkit.affordance import fuse_scores
from wmkit.affordance.labels.virtual_exploration import VirtualExploration
from wmkit.affordance.labels.zoom_path import crop_resize, exploration_boxes, spread_frames, zoom_schedule
from wmkit.affordance.scorers import LabelScorer
from wmkit.errors import ConfigError, SpecError


class Redness:
    """Scores by how red the end of a zoom is; counts what it is asked to encode."""

    reads = "frame"
    text_dim = 4
    resolution = (20, 32)

    def __init__(self) -> None:
        self.encoded, self.largest = 0, 0

    def encode(self, frames: Tensor) -> Tensor:
        self.encoded += len(frames)
        self.largest = max(self.largest, len(frames))
        return (frames[:, :1] - frames[:, 1:].mean(1, keepdim=True)).mean((2, 3)) / 8

    def pool(self, features: Tensor, prompts) -> Tensor:
        return 18 + features[:, -3:].mean(1).expand(-1, len(prompts))

    def text_features(self, prompts) -> Tensor:
        return torch.zeros(len(prompts), 4)

    def __call__(self, frames: Tensor, prompts) -> Tensor:
        return self.pool(self.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]), prompts)


class WholeClips:
    """The same scorer without the fast path."""

    reads = "frame"
    text_dim = 4
    resolution = (20, 32)

    def __init__(self) -> None:
        self.inner, self.largest = Redness(), 0

    def __call__(self, frames: Tensor, prompts) -> Tensor:
        assert frames.shape[1:] == (16, 3, 20, 32)
        self.largest = max(self.largest, len(frames))
        return self.inner(frames, prompts)

    def text_features(self, prompts) -> Tensor:
        return self.inner.text_features(prompts)


def frame(count: int = 1) -> Tensor:
    """Grey noise with one red rectangle."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(60, 100, (count, 3, 160, 256), generator=generator, dtype=torch.uint8)
    for k in range(count):
        images[k, 0, 60:100, 140 - 30 * k : 190 - 30 * k] = 240
    return images


def test_crop_resize_equals_interpolating_each_crop() -> None:
    images = torch.randint(0, 256, (3, 3, 50, 70), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 50, 70], [5, 9, 20, 31], [49, 69, 50, 70], [5, 9, 30, 31], [10, 0, 47, 70]])
    index = torch.tensor([0, 2, 1, 1, 2])
    for size in ((50, 70), (24, 33), (90, 100)):
        got = crop_resize(images, boxes, size, index=index)
        for k, (top, left, bottom, right) in enumerate(boxes.tolist()):
            crop = images[index[k], :, top:bottom, left:right].float()[None]
            want = F.interpolate(crop, size, mode="bilinear", align_corners=False)[0]
            torch.testing.assert_close(got[k], want, atol=5e-3, rtol=0)  # of 255: float32 coordinates
    whole = crop_resize(images, boxes[:1], (50, 70), truncate=True)[0]
    assert torch.equal(whole, images[0].float())  # the whole frame at its own size is itself


def test_spread_frames_keeps_what_it_was_given() -> None:
    kept = (0, 8, 13, 15)
    frames = torch.rand(2, 4, 3)
    full = spread_frames(frames, kept)
    assert full.shape == (2, 16, 3)
    torch.testing.assert_close(full[:, list(kept)], frames)
    torch.testing.assert_close(full[:, 4], (frames[:, 0] + frames[:, 1]) / 2)


def test_distinct_frames_are_encoded_once_in_bounded_chunks() -> None:
    scorer = Redness()
    maps = VirtualExploration(scorer, chunk=100)(frame(2), ["a", "b"])
    assert maps.shape == (2, 2, 160, 256)
    assert scorer.encoded == 2 * 1216 and scorer.largest <= 100
    assert maps[0, 0, 80, 165] > 0.5 > maps[0, 0, 20, 40]


def test_exact_maps_do_not_depend_on_path_chunk_or_batch() -> None:
    images = frame(2)
    maps = VirtualExploration(Redness())(images, ["a"])
    torch.testing.assert_close(
        VirtualExploration(Redness(), chunk=17)(images, ["a"]), maps, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(VirtualExploration(Redness())(images[1:], ["a"]), maps[1:], atol=1e-5, rtol=0)
    clips = WholeClips()
    torch.testing.assert_close(VirtualExploration(clips, chunk=64)(images, ["a"]), maps, atol=1e-4, rtol=0)
    assert clips.largest <= 4


def test_exact_scores_equal_the_zoom_spelt_out() -> None:
    image = frame()
    scores = VirtualExploration(Redness()).scores(image, ["a"])
    crops = zoom_schedule(exploration_boxes((160, 256)), (160, 256))
    for iy, ix in ((0, 0), (4, 5), (8, 8)):
        clip = torch.stack(
            [
                F.interpolate(image[:, :, t:b, left:r].float(), (20, 32), mode="bilinear")[0]
                for t, left, b, r in crops[iy, ix].tolist()
            ]
        )
        torch.testing.assert_close(
            scores[0, 0, iy, ix], Redness()(clip[None], ["a"])[0, 0], atol=1e-3, rtol=0
        )
    torch.testing.assert_close(
        VirtualExploration(Redness())(image, ["a"]), fuse_scores(scores, (160, 256)), atol=1e-6, rtol=0
    )


def test_fast_mode_agrees_and_renders_a_tenth() -> None:
    image, scorer = frame(), Redness()
    exact = VirtualExploration(Redness())(image, ["a"])
    fast = VirtualExploration(scorer, mode="fast")(image, ["a"])
    assert scorer.encoded <= 0.12 * 1216
    assert torch.corrcoef(torch.stack((exact.flatten(), fast.flatten())))[0, 1] > 0.95
    both, either = ((exact > 0.5) & (fast > 0.5)).sum(), ((exact > 0.5) | (fast > 0.5)).sum()
    assert both / either > 0.7


def test_label_maps_lie_on_the_mask_whichever_way_they_are_scored() -> None:
    mask = torch.zeros(1, 1, 160, 256, dtype=torch.bool)
    mask[..., 50:100, 40:90] = True
    scorer = LabelScorer()
    maps = VirtualExploration(scorer)(mask, ["Cut a tree"])[0, 0]
    assert maps[75, 65] > 0.8 and maps[75, 200] < 0.05
    assert ((maps > 0.5) & mask[0, 0]).sum() / ((maps > 0.5) | mask[0, 0]).sum() > 0.5

    rendered = LabelScorer()
    by_pixels = type(
        "Rendered", (), {n: getattr(rendered, n) for n in ("reads", "text_dim", "encode", "pool")}
    )
    torch.testing.assert_close(VirtualExploration(by_pixels)(mask, ["-"])[0, 0], maps, atol=0.05, rtol=0)


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="exact"):
        VirtualExploration(LabelScorer(), mode="quick")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="16"):
        VirtualExploration(LabelScorer(), chunk=3)
    with pytest.raises(SpecError, match="goal_mask"):
        VirtualExploration(LabelScorer())(frame(), ["Cut a tree"])
