"""Convolutions of the published codecs, and images in blocks of pixels.

==========================  ==========================  =======================================
layers                      kernel, stride, padding     codec
==========================  ==========================  =======================================
``HalvingConv``,            4, 2, 1                     DreamerV3 of 2023 (arXiv:2301.04104v1)
``DoublingConv``
``ConvStage``,              5, pooled or strided,       DreamerV3 since 2024 (danijar/dreamerv3
``UpsamplingStage``         "same"                      e3f0224)
``UnpaddedConv``,           any, 2, 0                   DreamerV1 and V2, TWM
``UnpaddedTransposedConv``
==========================  ==========================  =======================================

Activations are kept in channels-last memory, so that a norm over channels reads contiguous
numbers and no copy is made around it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmkit import fast
from wmkit.errors import ConfigError
from wmkit.nn.init import init_hidden
from wmkit.nn.style import STYLE_2024, LayerStyle, channel_norm

Down = Literal["pool", "stride", "none"]
Fill = Literal["nearest", "zeros"]


def patches(image: Tensor, patch: int) -> Tensor:
    """Blocks of ``patch x patch`` pixels as one position of more channels, in channels-last memory.

    Args:
        image: ``[N, C, H, W]`` float.
        patch: side of a block.

    Returns:
        ``[N, C * patch², H / patch, W / patch]``.

    >>> patches(torch.zeros(2, 3, 64, 64), 2).shape, patches(torch.zeros(0, 3, 64, 64), 2).shape
    (torch.Size([2, 12, 32, 32]), torch.Size([0, 12, 32, 32]))
    """
    if not image.shape[0]:  # of no images pixel_unshuffle keeps the shape
        _, channels, height, width = image.shape
        return image.reshape(0, channels * patch**2, height // patch, width // patch)
    # On contiguous planes this is fast; a permuted copy takes eight times as long.
    blocks = F.pixel_unshuffle(image.contiguous(), patch) if patch > 1 else image
    return blocks.contiguous(memory_format=torch.channels_last)


class HalvingConv(nn.Conv2d):
    """Convolution of kernel 4, stride 2, padding 1.

    Args:
        in_channels: C.
        out_channels: D.
        bias: add a learned constant per channel.

    >>> HalvingConv(3, 8)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 8, 32, 32])
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, 2H, 2W] -> [N, D, H, W]``."""
        x = fast.halving_conv(x, self.weight)
        return x if self.bias is None else x + self.bias.view(-1, 1, 1)


class DoublingConv(nn.ConvTranspose2d):
    """Transposed convolution of kernel 4, stride 2, padding 1.

    Args:
        in_channels: C.
        out_channels: D.
        bias: add a learned constant per channel.
        offset: number added to that constant.
        patch: make an image: spread D channels over blocks of ``patch x patch`` pixels, plane by plane
            in memory; none leaves a hidden stage with its channels last.

    >>> _ = torch.manual_seed(0)
    >>> x, layer = torch.randn(2, 8, 4, 4), DoublingConv(8, 12, bias=True, patch=2)
    >>> plain = F.pixel_shuffle(F.conv_transpose2d(x, layer.weight, layer.bias, 2, 1), 2)
    >>> torch.allclose(layer(x), plain, atol=1e-5)
    True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = False,
        offset: float = 0.0,
        patch: int | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1, bias=bias)
        self.offset, self.patch = offset, patch

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``[N, C, H, W] -> [N, D / patch², 2 H patch, 2 W patch]``, with a patch of 1 if none was given."""
        bias = None if self.bias is None else self.bias + self.offset
        return fast.doubling_conv(x, self.weight, bias, self.patch)


class ConvStage(nn.Module):
    """``act(norm(down(conv5x5(x))))``: one stage of an encoder (DreamerV3, danijar/dreamerv3 e3f0224).

    Args:
        in_channels: C.
        out_channels: D.
        down: ``"pool"`` halves by 2 x 2 max-pooling ahead of the norm, ``"stride"`` by the stride of the
            convolution, ``"none"`` keeps the resolution. Padding is "same" as JAX has it: with a
            stride one zero before and two behind.
        style: norm, activation, bias and initialisation.

    Raises:
        ConfigError: an unknown ``down``.

    >>> ConvStage(3, 8)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 8, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        down: Down = "pool",
        style: LayerStyle = STYLE_2024,
    ) -> None:
        super().__init__()
        if down not in ("pool", "stride", "none"):
            raise ConfigError(f"down is {down!r}: wanted pool, stride or none; correct the stage's down")
        self.down, self.style = down, style
        stride, padding = (2, 0) if down == "stride" else (1, 2)
        conv = nn.Conv2d(in_channels, out_channels, 5, stride, padding, bias=style.bias)
        self.conv: nn.Conv2d = init_hidden(conv, style.init)
        self.norm = channel_norm(out_channels, style)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, 2H, 2W] -> [N, D, H, W]``, or the same resolution."""
        x = self.conv(F.pad(x, (1, 2, 1, 2)) if self.down == "stride" else x)
        if self.down == "pool":
            x = F.max_pool2d(x, 2)
        return self.style.activate(self.norm(x))


class UpsamplingConv(nn.Conv2d):
    """Double the resolution, then convolve 5 x 5 (DreamerV3, danijar/dreamerv3 e3f0224).

    Args:
        in_channels: C.
        out_channels: D.
        fill: ``"nearest"`` repeats every input pixel, ``"zeros"`` puts it at odd rows and columns of
            a grid of zeros, which makes the layer a transposed convolution of stride 2.
        bias: add a learned constant per channel.
        patch: as in :class:`DoublingConv`.

    Raises:
        ConfigError: an unknown ``fill``.

    >>> _ = torch.manual_seed(0)
    >>> x, layer = torch.randn(2, 8, 4, 4), UpsamplingConv(8, 6)
    >>> plain = F.conv2d(F.interpolate(x, scale_factor=2), layer.weight, layer.bias, padding=2)
    >>> torch.allclose(layer(x), plain, atol=1e-5)
    True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        fill: Fill = "nearest",
        bias: bool = True,
        patch: int | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, 5, padding=2, bias=bias)
        if fill not in ("nearest", "zeros"):
            raise ConfigError(f"fill is {fill!r}: wanted nearest or zeros; correct the layer's fill")
        self.fill, self.patch = fill, patch

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, D / patch², 2 H patch, 2 W patch]``, with a patch of 1 if none was given."""
        return fast.upsampling_conv(x, self.weight, self.bias, self.fill, self.patch)


class UpsamplingStage(nn.Module):
    """``act(norm(conv5x5(up(x))))``: one stage of a decoder (DreamerV3, danijar/dreamerv3 e3f0224).

    Args:
        in_channels: C.
        out_channels: D.
        fill: see :class:`UpsamplingConv`.
        style: norm, activation, bias and initialisation.

    >>> UpsamplingStage(8, 6)(torch.zeros(2, 8, 4, 4)).shape
    torch.Size([2, 6, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        fill: Fill = "nearest",
        style: LayerStyle = STYLE_2024,
    ) -> None:
        super().__init__()
        self.style = style
        self.conv = UpsamplingConv(in_channels, out_channels, fill=fill, bias=style.bias)
        init_hidden(self.conv, style.init)
        self.norm = channel_norm(out_channels, style)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, D, 2H, 2W]``."""
        return self.style.activate(self.norm(self.conv(x)), fresh=True)


class UnpaddedConv(nn.Conv2d):
    """Convolution of stride 2 without padding.

    Args:
        in_channels: C.
        out_channels: D.
        kernel_size: k.
        bias: add a learned constant per channel.

    >>> UnpaddedConv(3, 8, 4)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 8, 31, 31])
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, D, (H - k) // 2 + 1, (W - k) // 2 + 1]``."""
        x = x.contiguous(memory_format=torch.channels_last)
        return fast.strided_conv(x, self.weight, self.bias)


class UnpaddedTransposedConv(nn.ConvTranspose2d):
    """Transposed convolution of stride 2 without padding.

    Args:
        in_channels: C.
        out_channels: D.
        kernel_size: k.
        bias: add a learned constant per channel.

    >>> _ = torch.manual_seed(0)
    >>> x, layer = torch.randn(2, 8, 4, 4), UnpaddedTransposedConv(8, 3, 6)
    >>> plain = F.conv_transpose2d(x, layer.weight, layer.bias, 2)
    >>> torch.allclose(layer(x), plain, atol=1e-5)
    True
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=2, bias=bias)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``[N, C, H, W] -> [N, D, 2 (H - 1) + k, 2 (W - 1) + k]``."""
        x = x.contiguous(memory_format=torch.channels_last)
        return fast.strided_transposed_conv(x, self.weight, self.bias)
