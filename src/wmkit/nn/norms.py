"""Norms over the channels of an image, pixel by pixel, and activations, as a style has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmkit.nn.rms_norm import RMSNorm
from wmkit.nn.style import STYLE_2023, LayerStyle


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``[N, C, H, W]``.

    >>> import torch
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

    >>> import torch
    >>> ChannelRMSNorm(8)(torch.zeros(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def channel_norm(channels: int, style: LayerStyle = STYLE_2023) -> nn.Module:
    """A style's norm over the channels of ``[N, C, H, W]``.

    >>> channel_norm(8, LayerStyle(norm="rms"))
    ChannelRMSNorm()
    """
    if style.norm == "none":
        return nn.Identity()
    return ChannelNorm(channels, style.eps) if style.norm == "layer" else ChannelRMSNorm(channels, style.eps)


class Activation(nn.Module):
    """A style's activation as a module.

    Args:
        style: names it.
        overwrites: write into the input where no gradients are recorded; for inputs that nobody else reads.

    >>> import torch
    >>> Activation(LayerStyle(activation="relu"))(torch.tensor([-1.0, 1.0]))
    tensor([0., 1.])
    """

    def __init__(self, style: LayerStyle = STYLE_2023, *, overwrites: bool = False) -> None:
        super().__init__()
        self.style, self.overwrites = style, overwrites

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return self.style.activate(x, inplace=self.overwrites and not torch.is_grad_enabled())
