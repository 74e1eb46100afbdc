"""Random flips and small affine changes, the same for a frame and its map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class RandomAffine:
    """Flip left and right, rotate, shift and enlarge; borders are reflected.

    Attributes:
        flip: probability of a flip.
        affine: probability of the affine change.
        rotation: largest angle in degrees, either way.
        translation: largest shift as a fraction of width and of height, either way.
        scale: smallest and largest enlargement.

    >>> frames, maps = torch.rand(2, 3, 16, 24), torch.rand(2, 1, 16, 24)
    >>> moved, moved_maps = RandomAffine()(frames, maps, torch.Generator().manual_seed(0))
    >>> moved.shape, moved_maps.shape
    (torch.Size([2, 3, 16, 24]), torch.Size([2, 1, 16, 24]))
    """

    flip: float = 0.5
    affine: float = 0.7
    rotation: float = 5.0
    translation: float = 0.05
    scale: tuple[float, float] = (1.05, 1.15)

    def __call__(self, frames: Tensor, maps: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``frames`` [B,3,H,W] and ``maps`` [B,1,H,W], floats, moved alike."""
        batch, height, width = len(frames), frames.shape[-2], frames.shape[-1]
        theta = self._theta(batch, height / width, generator).to(frames)  # [B, 2, 3]
        grid = F.affine_grid(theta, [batch, 1, height, width], align_corners=False)
        both = torch.cat([frames, maps], 1)  # [B, 4, H, W]
        both = F.grid_sample(both, grid, padding_mode="reflection", align_corners=False)
        return both[:, :3], both[:, 3:]

    def _theta(self, batch: int, aspect: float, generator: torch.Generator) -> Tensor:
        """[B, 2, 3]: output coordinates to input coordinates, in halves of the image; ``aspect`` is H/W."""
        uniform = torch.rand(batch, 6, generator=generator)
        moved = uniform[:, 0] < self.affine
        angle = torch.where(moved, math.radians(self.rotation) * (2 * uniform[:, 1] - 1), 0.0)
        low, high = self.scale
        shrink = torch.where(moved, 1 / (low + (high - low) * uniform[:, 2]), 1.0)
        shift = torch.where(moved[:, None], 2 * self.translation * (2 * uniform[:, 3:5] - 1), 0.0)  # [B, 2]
        mirror = torch.where(uniform[:, 5] < self.flip, -1.0, 1.0)
        cos, sin = shrink * angle.cos(), shrink * angle.sin()
        # A rotation of pixels is sheared by the aspect ratio in these coordinates.
        row_x = torch.stack([mirror * cos, mirror * sin * aspect, mirror * shift[:, 0]], -1)
        row_y = torch.stack([-sin / aspect, cos, shift[:, 1]], -1)
        return torch.stack([row_x, row_y], 1)
