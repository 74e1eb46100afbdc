"""Virtual exploration: affordance maps from 81 imagined walks (LS-Imagine, arXiv:2410.03618, section 3.1).

A frame is zoomed into at 9 x 9 boxes, 16 frames each; a scorer says how well each zoom shows what the
prompt asks for; :func:`~wmkit.affordance.fuse_scores` makes a map of the 81 scores. Of the 1296 frames
of a map 1216 are distinct, because all zooms begin with the whole frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from wmkit.affordance.labels.score_fusion import fuse_scores
from wmkit.affordance.labels.zoom_path import (
    FRAMES,
    STEPS,
    crop_resize,
    exploration_boxes,
    spread_frames,
    zoom_schedule,
)
from wmkit.affordance.scorers.scorer import Scorer, device_of
from wmkit.errors import ConfigError, SpecError

KEPT = (0, 8, 13, 15)  # frames of a zoom that the fast mode renders; others are interpolated
COARSE = (0, 2, 4, 6, 8)  # rows and columns of boxes that the fast mode scores first
REFINED = 14  # boxes that the fast mode scores after that, a quarter of the rest


class VirtualExploration:
    """Affordance maps of frames, by zooming and scoring.

    ``mode="exact"`` scores every box with all 16 frames. ``mode="fast"`` renders frames 0, 8, 13 and 15 of
    each zoom (the features or pixels between them are interpolated), scores every second box of every
    second row, interpolates the rest, and then scores the 14 boxes with the highest interpolated values:
    39 boxes and 119 frames in place of 81 and 1216. ``benchmarks/virtual_exploration.py`` measures how well
    the two agree.

    Memory is bounded by ``chunk`` rendered frames plus one feature vector per distinct frame of one image.
    Frames are resampled bilinearly without antialiasing, at ``scorer.resolution`` if it names one.

    Args:
        scorer: see :class:`~wmkit.affordance.scorers.scorer.Scorer`.
        mode: ``"exact"`` or ``"fast"``.
        chunk: frames rendered and encoded at once.
        truncate: round resampled pixels down to whole numbers, as the released labeller did by storing
            uint8; off by default because it only adds noise.

    Raises:
        ConfigError: another mode, or a chunk below 16.

    >>> from wmkit.affordance.scorers.label_scorer import LabelScorer
    >>> mask = torch.zeros(1, 1, 160, 256, dtype=torch.bool)
    >>> mask[..., 40:90, 150:190] = True
    >>> maps = VirtualExploration(LabelScorer())(mask, ["Cut a tree"])
    >>> maps.shape, bool(maps[0, 0, 65, 170] > 0.5), bool(maps[0, 0, 65, 60] > 0.5)
    (torch.Size([1, 1, 160, 256]), True, False)
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        mode: Literal["exact", "fast"] = "exact",
        chunk: int = 128,
        truncate: bool = False,
    ) -> None:
        if mode not in ("exact", "fast"):
            raise ConfigError(
                f"mode of virtual exploration is unknown: found {mode!r}, wanted 'exact' or 'fast'; choose "
                "one"
            )
        if chunk < FRAMES:
            raise ConfigError(
                f"chunk of virtual exploration: found {chunk} frames, wanted at least one zoom of {FRAMES}; "
                "raise it"
            )
        self.scorer, self.mode, self.chunk, self.truncate = scorer, mode, chunk, truncate

    @property
    def reads(self) -> Literal["frame", "goal_mask"]:
        """The record key that images come from."""
        return self.scorer.reads

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Explore frames virtually.

        Args:
            images: ``[B, C, H, W]``: uint8 frames, or bool masks where the scorer reads ``goal_mask``.
            prompts: P prompts.

        Returns:
            ``[B, P, H, W]`` float32 maps in [0, 1].

        Raises:
            SpecError: images of another rank or channel count.
        """
        return fuse_scores(self.scores(images, prompts), (int(images.shape[-2]), int(images.shape[-1])))

    @torch.no_grad()
    def scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The logits behind the maps: ``[B, C, H, W] -> [B, P, 9, 9]``."""
        channels = 1 if self.scorer.reads == "goal_mask" else 3
        if images.ndim != 4 or images.shape[1] != channels:
            raise SpecError(
                f"virtual exploration of {self.scorer.reads}: found images of shape {list(images.shape)}, "
                f"wanted [B, {channels}, H, W]; the scorer {type(self.scorer).__name__} reads "
                f"{self.scorer.reads}"
            )
        if isinstance(prompts, str):
            prompts = [prompts]
        boxes = exploration_boxes((int(images.shape[-2]), int(images.shape[-1]))).flatten(0, 1)  # [81, 4]
        device = device_of(self.scorer, images.device)  # frames are cut and scored there
        explore = self._exact if self.mode == "exact" else self._fast
        scores = [explore(image[None].to(device), boxes.to(device), prompts) for image in images]
        return torch.stack(scores).to(images.device).unflatten(-1, (STEPS, STEPS))

    def _exact(self, image: Tensor, boxes: Tensor, prompts: Sequence[str]) -> Tensor:
        """``[1, C, H, W], [81, 4] -> [P, 81]``."""
        return self._score(image, boxes, prompts, tuple(range(FRAMES))).T

    def _fast(self, image: Tensor, boxes: Tensor, prompts: Sequence[str]) -> Tensor:
        """Coarse grid, interpolation, refinement: ``[1, C, H, W], [81, 4] -> [P, 81]``."""
        coarse = torch.tensor([STEPS * y + x for y in COARSE for x in COARSE], device=boxes.device)
        known = self._score(image, boxes[coarse], prompts, KEPT).T  # [P, 25]
        grid = torch.nn.functional.interpolate(
            known.unflatten(-1, (1, len(COARSE), len(COARSE))),
            (STEPS, STEPS),
            mode="bilinear",
            align_corners=True,
        ).flatten(1)  # [P, 81]
        promise = grid.amax(0)  # a box is worth a look if any prompt wants it
        promise[coarse] = -torch.inf
        fine = promise.topk(REFINED).indices
        grid[:, fine] = self._score(image, boxes[fine], prompts, KEPT).T
        return grid

    def _score(self, image: Tensor, boxes: Tensor, prompts: Sequence[str], kept: tuple[int, ...]) -> Tensor:
        """Score zooms of one image towards boxes, from a subset of their frames: ``[N, 4] -> [N, P]``."""
        crops = zoom_schedule(boxes, (int(image.shape[-2]), int(image.shape[-1])))[:, list(kept)]  # [N, K, 4]
        scorer: Any = self.scorer
        if not (hasattr(scorer, "pool") and (hasattr(scorer, "encode") or hasattr(scorer, "encode_boxes"))):
            per_chunk = max(self.chunk // FRAMES, 1)
            scores = [
                scorer(
                    spread_frames(self._render(image, part.flatten(0, 1)).unflatten(0, part.shape[:2]), kept),
                    prompts,
                )
                for part in crops.split(per_chunk)
            ]
            return torch.cat(scores)
        # The whole frame once, then the others with zoom steps outermost: crops of one step share columns.
        distinct = torch.cat((crops[:1, 0], crops[:, 1:].transpose(0, 1).flatten(0, 1)))  # [1 + (K-1)*N, 4]
        features = self._encode(image, distinct)
        rest = features[1:].unflatten(0, (len(kept) - 1, len(boxes))).transpose(0, 1)  # [N, K-1, D]
        features = torch.cat((features[:1].expand(len(boxes), 1, -1), rest), 1)
        return scorer.pool(spread_frames(features, kept), prompts)

    def _encode(self, image: Tensor, crops: Tensor) -> Tensor:
        """Features of crops, in chunks: ``[1, C, H, W], [M, 4] -> [M, D]``."""
        scorer: Any = self.scorer
        if hasattr(scorer, "encode_boxes"):
            return scorer.encode_boxes(image, crops)[0]
        return torch.cat([scorer.encode(self._render(image, part)) for part in crops.split(self.chunk)])

    def _render(self, image: Tensor, crops: Tensor) -> Tensor:
        """Crops at the resolution the scorer wants: ``[M, 4] -> [M, C, h, w]`` float32."""
        size = getattr(self.scorer, "resolution", None) or (int(image.shape[-2]), int(image.shape[-1]))
        return crop_resize(image, crops, size, truncate=self.truncate and self.scorer.reads == "frame")
