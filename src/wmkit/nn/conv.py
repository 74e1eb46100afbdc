"""Convolutional blocks whose norm runs over channels, pixel by pixel.

Activations are kept in channels-last memory, so that the norm reads contiguous channels
and no copy is made around it.
"""

from __future__ import annotations

import torch
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


class DoublingConv(nn.ConvTranspose2d):
    """Transposed convolution of kernel 4, stride 2, padding 1, computed as one ordinary convolution.

    Each of the four output phases sees two of the four taps per axis. Written as a 3 x 3
    convolution to four times the channels and an interleaving, it gives the same numbers; on a
    CPU it takes half the time where few channels leave (an image), which is where to use it.

    Args:
        in_channels: C.
        out_channels: D.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> x, layer = torch.randn(2, 8, 4, 4), DoublingConv(8, 3)
    >>> torch.allclose(layer(x), nn.ConvTranspose2d.forward(layer, x), atol=1e-5)
    True
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1)
        # For phase 0 and 1 of one axis: which tap meets the input before, at and after; 4 is none.
        self.taps: Tensor
        self.register_buffer("taps", torch.tensor([[3, 1, 4], [4, 2, 0]]), persistent=False)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``[N, C, H, W] -> [N, D, 2H, 2W]``."""
        height, width = x.shape[-2:]
        padded = nn.functional.pad(self.weight, (0, 1, 0, 1))  # [C, D, 5, 5], tap 4 is zero
        kernel = padded[:, :, self.taps][..., self.taps]  # [C, D, phase, 3, phase, 3]
        kernel = kernel.permute(2, 4, 1, 0, 3, 5).flatten(0, 2)  # [4 D, C, 3, 3]
        bias = None if self.bias is None else self.bias.repeat(4)
        phases = nn.functional.conv2d(x, kernel, bias, padding=1).permute(0, 2, 3, 1)
        phases = phases.unflatten(-1, (2, 2, -1)).transpose(2, 3)  # [N, H, 2, W, 2, D]
        return phases.reshape(x.shape[0], 2 * height, 2 * width, -1).permute(0, 3, 1, 2)
