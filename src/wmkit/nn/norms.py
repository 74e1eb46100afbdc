"""Norms over the last dimension, and over the channels of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmkit import fast


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x²) + eps) * scale`` over the last dimension, in float32; no shift.

    Args:
        dim: width.
        eps: inside the root.

    >>> RMSNorm(2)(torch.tensor([[3.0, 4.0]])).detach()
    tensor([[0.8485, 1.1314]])
    """

    def __init__(self, dim: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, dim] -> [*B, dim]``, in the dtype of ``x``."""
        return fast.rms_norm(x, self.weight, self.eps)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``[N, C, H, W]``.

    >>> ChannelNorm(8)(torch.zeros(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelRMSNorm(RMSNorm):
    """RMSNorm over the channels of ``[N, C, H, W]``.

    >>> ChannelRMSNorm(8)(torch.zeros(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
