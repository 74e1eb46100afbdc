"""Convolutional blocks whose norm runs over channels, pixel by pixel.

Activations are kept in channels-last memory, so that the norm reads contiguous channels
and no copy is made around it.
"""

from __future__ import annotations

from torch import Tensor, nn

from wmkit.nn.mlp import NORM_EPS


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``[N, C, H, W]``.

    >>> import torch
    >>> ChannelNorm(8)(torch.zeros(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(self, channels: int, eps: float = NORM_EPS) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
