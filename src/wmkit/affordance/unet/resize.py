"""Bring a map to the frame's size and smooth it, in two matrix products.

Bilinear resizing and a Gaussian blur are both linear and both separable, so one after the
other is ``rows @ map @ columns.T`` with two small matrices per pair of sizes. LS-Imagine's
released inference blurs each predicted map with a kernel of 51 (x) by 79 (y) pixels and
OpenCV's automatic sigma (8.0 and 12.2 pixels, reflect-101 border).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmkit.affordance.labels.blur import gaussian_blur_matrix
from wmkit.errors import ConfigError


class SmoothResize(nn.Module):
    """Bilinear resize followed by a separable Gaussian blur.

    Args:
        blur: odd kernel (height, width) in pixels of the *output*; 1 leaves that axis alone.

    Raises:
        ConfigError: an even or non-positive kernel.

    >>> smooth = SmoothResize(blur=(3, 5))
    >>> smooth(torch.full((2, 10, 16), 0.5), (40, 64)).shape
    torch.Size([2, 40, 64])
    """

    def __init__(self, blur: tuple[int, int] = (79, 51)):
        super().__init__()
        if any(k < 1 or k % 2 == 0 for k in blur):
            raise ConfigError(f"blur kernel is {tuple(blur)}: wanted two odd positive numbers; try (79, 51)")
        self.blur = (int(blur[0]), int(blur[1]))
        self._matrices: dict[tuple, Tensor] = {}

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """``maps`` [*B, h, w] to [*B, *size]; a convex combination, so [0, 1] stays [0, 1]."""
        rows = self._matrix(maps.shape[-2], size[0], self.blur[0], maps)  # [H, h]
        columns = self._matrix(maps.shape[-1], size[1], self.blur[1], maps)  # [W, w]
        return rows @ maps @ columns.mT  # [*B, H, W]

    def _matrix(self, source: int, target: int, kernel: int, like: Tensor) -> Tensor:
        key = (source, target, kernel, like.device, like.dtype)
        if key not in self._matrices:
            self._matrices[key] = _smooth_resize_matrix(source, target, kernel).to(like.device, like.dtype)
        return self._matrices[key]


def _smooth_resize_matrix(source: int, target: int, kernel: int) -> Tensor:
    """[target, source]: what one axis does to each unit vector."""
    identity = torch.eye(source, dtype=torch.float64)[:, None]  # [source, 1, source]
    resized = F.interpolate(identity, size=target, mode="linear", align_corners=False)[
        :, 0
    ].T  # [target, source]
    return (gaussian_blur_matrix(target, kernel).double() @ resized).float().contiguous()
