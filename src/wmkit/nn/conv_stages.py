"""The convolutions of DreamerV3 since 2024 (danijar/dreamerv3 e3f0224): kernel 5, halving and doubling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmkit.errors import ConfigError
from wmkit.nn.conv import block_bias, interleave
from wmkit.nn.init import init_hidden
from wmkit.nn.norms import channel_norm
from wmkit.nn.style import STYLE_2024, LayerStyle

Down = Literal["pool", "stride", "none"]
Fill = Literal["nearest", "zeros"]

# For phase 0 and 1 of one axis: which of five taps meet the input pixel before, at and after.
_TAPS = {
    "nearest": (((0, 1), (2, 3), (4,)), ((0,), (1, 2), (3, 4))),
    "zeros": (((1,), (3,), ()), ((0,), (2,), (4,))),
}


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

    Computed as a 3 x 3 convolution to the four phases of the output: of the five taps of an axis,
    those that meet the same input pixel are added up beforehand. Equal at the borders too, and
    the doubled input is never written. On one CPU core, forward and backward take 0.1 to 1 of the
    time of the plain form: least for large images of few channels.

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
        if fill not in _TAPS:
            raise ConfigError(f"fill is {fill!r}: wanted {' or '.join(_TAPS)}; correct the layer's fill")
        self.fill, self.patch = fill, patch
        taps = torch.zeros(2, 3, 5)  # phase, input pixel, tap
        for phase, pixels in enumerate(_TAPS[fill]):
            for pixel, tap in enumerate(pixels):
                taps[phase, pixel, list(tap)] = 1
        fold = torch.einsum("aik,bjl->abijkl", taps, taps).reshape(4, 9, 25)
        self.fold: Tensor
        self.register_buffer("fold", fold, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, D / patch², 2 H patch, 2 W patch]``, with a patch of 1 if none was given."""
        kernel = torch.einsum("pts,dcs->pdct", self.fold, self.weight.flatten(2)).unflatten(-1, (3, 3))
        kernel = kernel.unflatten(0, (2, 2))  # [2, 2, D, C, 3, 3]
        if self.patch is None:
            bias = None if self.bias is None else self.bias.repeat(4)
            return interleave(F.conv2d(x, kernel.flatten(0, 2), bias, padding=1))
        blocks = kernel.unflatten(2, (-1, self.patch, self.patch))  # [2, 2, D/p², p, p, C, 3, 3]
        kernel = blocks.permute(2, 0, 3, 1, 4, 5, 6, 7).flatten(0, 4)  # [D/p² (2 p) (2 p), C, 3, 3]
        bias = None if self.bias is None else block_bias(self.bias, self.patch)
        return F.pixel_shuffle(F.conv2d(x, kernel, bias, padding=1), 2 * self.patch)


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
        return self.style.activate(self.norm(self.conv(x)))
