"""Clips and captions from simulator frames and object masks, for training a video-text scorer.

A clip is 16 crop rectangles of one frame (a virtual zoom) or 16 whole frames (a real walk), so clips cost
nothing until they are rendered at the model's working resolution. The caption is the task's prompt when the
goal fills much more of the view at the end than at the start; else it says what the camera does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wmkit.affordance.labels.zoom_path import FRACTION, FRAMES, crop_resize, zoom_schedule
from wmkit.errors import SpecError

SKY, GROUND, AHEAD = "look at the sky", "look at the ground", "walk on ahead"
AWAY, STILL = "walk away", "stand still"
MOTIONS = (SKY, GROUND, AHEAD, AWAY, STILL)
GROWN, UNCHANGED = 0.1, 0.02  # growth that earns the prompt; growth that counts as none
KINDS = {"goal": 0.35, "anywhere": 0.35, "out": 0.1, "still": 0.08, "walk": 0.12}


@dataclass
class ClipSource:
    """Frames of one task in the order they were seen.

    Attributes:
        frames: ``[T, 3, H, W]`` uint8.
        masks: ``[T, 1, H, W]`` bool, pixels of the task's goal.
        prompt: what the task asks for.
        is_init: ``[T]`` bool, first frame of an episode; one episode if not given.
    """

    frames: Tensor
    masks: Tensor
    prompt: str
    is_init: Tensor | None = None
    covered: Tensor = field(init=False)  # [T] goal pixels of each frame

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.masks.shape != (len(self.frames), 1, *self.frames.shape[2:]):
            raise SpecError(
                f"clip source: found frames {list(self.frames.shape)} and masks {list(self.masks.shape)}, "
                "wanted [T, 3, H, W] and [T, 1, H, W]; pass one mask per frame at the frame's size"
            )
        if self.is_init is None:
            self.is_init = torch.arange(len(self.frames)) == 0
        self.is_init = self.is_init.flatten()
        self.covered = self.masks.flatten(1).sum(1)

    @classmethod
    def from_env(
        cls, env: Any, prompt: str, *, steps: int = 600, episode: int = 48, seed: int = 0, policy: Any = None
    ) -> ClipSource:
        """Walk in an unbatched TorchRL environment that emits ``frame`` and ``goal_mask``.

        Args:
            env: the environment, with ``frames=True, masks=True``.
            prompt: the task's prompt.
            steps: frames to keep.
            episode: start a new world after so many steps; many short walks show more than few long ones.
            seed: of the environment.
            policy: called on the step's TensorDict to add an action; random if not given.
        """
        env.set_seed(seed)
        frames: list[Tensor] = []
        masks: list[Tensor] = []
        starts: list[bool] = []
        while len(frames) < steps:
            data, age, over = env.reset(), 0, False
            while not over and age < episode and len(frames) < steps:
                frames.append(data["frame"].clone())
                masks.append(data["goal_mask"].bool())
                starts.append(age == 0)
                data = env.step(env.rand_action(data) if policy is None else policy(data))["next"]
                age, over = age + 1, bool(data["done"].any())
        return cls(torch.stack(frames), torch.stack(masks), prompt, torch.tensor(starts))

    def split(self, holdout: float) -> tuple[ClipSource, ClipSource]:
        """The first frames and the last ``holdout`` share of them, as two sources."""
        cut = max(1, min(len(self.frames) - 1, round(len(self.frames) * (1 - holdout))))
        assert self.is_init is not None
        parts = [
            (self.frames[s], self.masks[s], self.prompt, self.is_init[s])
            for s in (slice(cut), slice(cut, None))
        ]
        return ClipSource(*parts[0]), ClipSource(*parts[1])


class Clips(NamedTuple):
    """N clips of one source, not yet rendered."""

    numbers: Tensor  # [N, 16] int64, frames of the source
    boxes: Tensor  # [N, 16, 4] int64, crop rectangles
    captions: list[str]  # N
    growth: Tensor  # [N] how far the goal fills the view that it did not fill before

    def render(
        self, source: ClipSource, size: tuple[int, int], kept: Sequence[int] = range(FRAMES)
    ) -> Tensor:
        """Pixels of the clips' frames ``kept``: ``[N, K, 3, h, w]`` float32 in 0..255."""
        frames, index = torch.unique(self.numbers[:, list(kept)], return_inverse=True)
        boxes = self.boxes[:, list(kept)].flatten(0, 1)
        return crop_resize(source.frames[frames], boxes, size, index=index.flatten()).unflatten(
            0, index.shape
        )


def make_clips(source: ClipSource, count: int, *, generator: torch.Generator, explore: bool = False) -> Clips:
    """Draw clips with captions.

    Zooms towards the goal and towards random places, zooms out, standing still, and real walks of
    16 or 32 steps. Clips whose goal grows a little (between 2 % and 10 % of the free view) are ambiguous
    and drawn anew.

    Args:
        source: frames, masks and prompt.
        count: clips to draw.
        generator: of every random choice.
        explore: only zooms to boxes of virtual exploration's size, as at labelling time.

    Raises:
        SpecError: 100 draws in a row were ambiguous.
    """
    names = ["goal", "anywhere"] if explore else list(KINDS)
    kinds = torch.multinomial(torch.tensor([KINDS[k] for k in names]), count, True, generator=generator)
    clips = [_draw(source, names[kind], generator, explore) for kind in kinds.tolist()]
    index, boxes, captions, growth = zip(*clips, strict=True)
    return Clips(torch.stack(index), torch.stack(boxes), list(captions), torch.tensor(growth))


def _draw(
    source: ClipSource, kind: str, generator: torch.Generator, explore: bool
) -> tuple[Tensor, Tensor, str, float]:
    """One clip: frame numbers ``[16]``, boxes ``[16, 4]``, caption, growth."""
    height, width = source.frames.shape[2:]
    whole = torch.tensor([0, 0, height, width]).expand(FRAMES, 4)
    for _ in range(100):
        caption, index = AHEAD, torch.full((FRAMES,), _integer(len(source.frames), generator))
        boxes = whole
        walk = _walk(source, generator) if kind == "walk" else None
        if walk is not None:
            index = walk
        elif kind == "still":
            caption = STILL
        else:
            if kind in ("goal", "out") and bool(source.covered.any()):
                frame = int(torch.multinomial(source.covered.float().sqrt(), 1, generator=generator))
                index = torch.full((FRAMES,), frame)
                pixels = source.masks[frame, 0].nonzero()
                y, x = pixels[_integer(len(pixels), generator)].tolist()
            else:
                y, x = _integer(height, generator), _integer(width, generator)
            box = _box(y, x, height, width, generator, explore)
            boxes = zoom_schedule(box, (height, width))
            caption = SKY if y < 0.35 * height else GROUND if y > 0.65 * height else AHEAD
            if kind == "out":
                boxes, caption = boxes.flip(0), AWAY
        first, last = (_share(source.masks[index[i], 0], boxes[i]) for i in (0, -1))
        growth = max(last - first + 1e-3, 0.0) / (1 - first + 1e-3)
        if growth >= GROWN:
            return index, boxes, source.prompt, growth
        if growth <= UNCHANGED:
            return index, boxes, caption, growth
    raise SpecError(
        f"clips for {source.prompt!r}: found 100 ambiguous draws in a row, wanted frames in which the goal "
        "is sometimes far and sometimes absent; collect more varied frames"
    )


def _box(y: int, x: int, height: int, width: int, generator: torch.Generator, explore: bool) -> Tensor:
    """A box around a point, moved into the frame: ``[4]``; the point lies anywhere in its middle half."""
    fraction = FRACTION if explore else 0.12 + 0.2 * float(torch.rand((), generator=generator)) ** 2
    h, w = int(fraction * height), int(fraction * width)
    shift = 0.5 * (torch.rand(2, generator=generator) - 0.5)
    top = min(max(y - h // 2 + int(shift[0] * h), 0), height - h)
    left = min(max(x - w // 2 + int(shift[1] * w), 0), width - w)
    return torch.tensor([top, left, top + h, left + w])


def _walk(source: ClipSource, generator: torch.Generator) -> Tensor | None:
    """16 frames one or two steps apart within an episode ``[16]``, or None where there are none."""
    assert source.is_init is not None
    for _ in range(10):
        stride = 1 + _integer(2, generator)
        span = stride * (FRAMES - 1)
        if span >= len(source.frames):
            continue
        start = _integer(len(source.frames) - span, generator)
        if not bool(source.is_init[start + 1 : start + span + 1].any()):
            return torch.arange(start, start + span + 1, stride)
    return None


def _share(mask: Tensor, box: Tensor) -> float:
    """Share of a box that a mask ``[H, W]`` covers."""
    top, left, bottom, right = box.tolist()
    return float(mask[top:bottom, left:right].float().mean())


def _integer(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))


def caption_table(captions: Sequence[str], bank: Sequence[str]) -> tuple[list[str], Tensor]:
    """Distinct captions (the bank's included) and the number of each clip's own.

    >>> caption_table(["b", "a", "b"], ["c"])
    (['a', 'b', 'c'], tensor([1, 0, 1]))
    """
    table = sorted({*captions, *bank})
    return table, torch.tensor([table.index(caption) for caption in captions])
