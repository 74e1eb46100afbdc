"""An oracle affordance model: the simulator's own object mask, blurred.

What a perfect labeller followed by a perfect U-Net would see. It bounds what the learned map
can be worth (an ablation), and makes tests of everything after the map exact.
"""

from __future__ import annotations

from torch import Tensor

from wmkit.affordance.labels.blur import gaussian_blur_matrix


class MaskAffordance:
    """Blurred exact mask of the task's goal objects, in place of a U-Net.

    Reads ``goal_mask`` instead of ``frame``; the text is ignored, since the mask already belongs to
    the task. The blurred mask is scaled to peak at 1 where any goal pixel is visible, so that a far
    object is as certain as a near one and only its extent tells the distance.

    Args:
        kernel: odd taps of the Gaussian blur in pixels, (y, x); 51 has a standard deviation of 8.
        peak: scale each map to a maximum of 1; without it a small object stays faint.

    >>> import torch
    >>> mask = torch.zeros(1, 1, 160, 256, dtype=torch.bool)
    >>> mask[..., 70:90, 120:140] = True
    >>> maps = MaskAffordance().predict(mask)
    >>> maps.shape, round(maps.max().item(), 4)
    (torch.Size([1, 160, 256]), 1.0)
    """

    reads = "goal_mask"

    def __init__(self, *, kernel: tuple[int, int] = (51, 51), peak: bool = True) -> None:
        self.kernel, self.peak = kernel, peak

    def predict(self, frames: Tensor, text: Tensor | None = None) -> Tensor:
        """``[B, 1, H, W]`` (bool, or any number that is positive on the goal) to ``[B, H, W]`` in [0, 1]."""
        mask = (frames[:, 0] > 0).float()  # [B, H, W]
        rows, columns = (
            gaussian_blur_matrix(size, kernel).to(mask)
            for size, kernel in zip(mask.shape[-2:], self.kernel, strict=True)
        )
        maps = rows @ mask @ columns.mT
        if self.peak:
            maps = maps / maps.amax((-2, -1), keepdim=True).clamp_min(1e-6)
        return maps.clamp(0.0, 1.0)
