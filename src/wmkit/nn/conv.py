"""The convolutions of DreamerV3 of 2023 (arXiv:2301.04104v1), and images in blocks of pixels.

Activations are kept in channels-last memory, so that a norm over channels reads contiguous
numbers and no copy is made around it.

The two convolutions of kernel 4, stride 2, padding 1 are adjoint to each other: one halves an
image, the other doubles it, and each one's gradient is the other. On a CPU, doubling to few
channels is slow in PyTorch; it is computed here as an ordinary 3 x 3 convolution to the four
phases of the output, which gives the same numbers in a third of the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from wmkit.functional import autocast_dtype
from wmkit.nn.features import rows_are_free

# Output channels up to which doubling by phases is faster: as one 3 x 3 convolution, whose phases lie
# on one grid, or as one 2 x 2 convolution without idle taps, whose phases are a pixel apart.
FEW, SOME = 8, 16


class HalvingConv(nn.Conv2d):
    """Convolution of kernel 4, stride 2, padding 1.

    Args:
        in_channels: C.
        out_channels: D.
        bias: add a learned constant per channel.

    >>> import torch
    >>> HalvingConv(3, 8)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 8, 32, 32])
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, 2H, 2W] -> [N, D, H, W]``."""
        free = rows_are_free(x) and autocast_dtype(x) is None
        x = _Halve.apply(x, self.weight) if free else _halve(x, self.weight)
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

    >>> import torch
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
        if rows_are_free(x) and autocast_dtype(x) is None:
            return _Double.apply(x, self.weight, bias, self.patch)
        return F.pixel_shuffle(F.conv_transpose2d(x, self.weight, bias, 2, 1), self.patch or 1)


def patches(image: Tensor, patch: int) -> Tensor:
    """Blocks of ``patch x patch`` pixels as one position of more channels, in channels-last memory.

    Args:
        image: ``[N, C, H, W]`` float.
        patch: side of a block.

    Returns:
        ``[N, C * patch², H / patch, W / patch]``.

    >>> patches(torch.zeros(2, 3, 64, 64), 2).shape
    torch.Size([2, 12, 32, 32])
    """
    # On contiguous planes this is quick; a permuted copy takes eight times as long.
    blocks = F.pixel_unshuffle(image.contiguous(), patch) if patch > 1 else image
    return blocks.contiguous(memory_format=torch.channels_last)


def _halve(x: Tensor, weight: Tensor) -> Tensor:
    """``[N, C, 2H, 2W] -> [N, D, H, W]``, weight ``[D, C, 4, 4]``."""
    return F.conv2d(x, weight, stride=2, padding=1)


def _double(x: Tensor, weight: Tensor, bias: Tensor | None, patch: int | None) -> Tensor:
    """``[N, C, H, W] -> [N, D/p², 2Hp, 2Wp]``, weight ``[C, D, 4, 4]``."""
    if weight.shape[1] > SOME and patch is None:
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)
    if weight.shape[1] > FEW and patch is None:
        return _double_apart(x, weight, bias)
    # For phase 0 and 1 of one axis: which tap meets the input before, at and after; 4 is none.
    taps = torch.tensor([[3, 1, 4], [4, 2, 0]])
    kernel = F.pad(weight, (0, 1, 0, 1))[:, :, taps][..., taps]  # [C, D, 2, 3, 2, 3]
    if patch is None:
        kernel = kernel.permute(2, 4, 1, 0, 3, 5).flatten(0, 2)  # [2 2 D, C, 3, 3]
        return interleave(F.conv2d(x, kernel, None if bias is None else bias.repeat(4), padding=1))
    blocks = kernel.unflatten(1, (-1, patch, patch))  # [C, D/p², p, p, 2, 3, 2, 3]
    kernel = blocks.permute(1, 4, 2, 6, 3, 0, 5, 7).flatten(0, 4)  # [D/p² (2 p) (2 p), C, 3, 3]
    bias = None if bias is None else block_bias(bias, patch)
    return F.pixel_shuffle(F.conv2d(x.contiguous(), kernel, bias, padding=1), 2 * patch)


def _double_apart(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`_double` by a 2 x 2 convolution over a grid of ``H + 1`` by ``W + 1`` corners."""
    rows, height, width = x.shape[0], x.shape[2], x.shape[3]
    taps = torch.tensor([[3, 1], [2, 0]])  # before and behind a corner, for phase 0 and 1 of one axis
    kernel = weight[:, :, taps][..., taps].permute(2, 4, 1, 0, 3, 5).flatten(0, 2)  # [2 2 D, C, 2, 2]
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    corners = F.conv2d(x, kernel, None if bias is None else bias.repeat(4), padding=1)
    phases = corners.permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1))  # [N, H + 1, W + 1, 2, 2, D]
    out = x.new_empty(rows, height, 2, width, 2, weight.shape[1])
    for p in (0, 1):
        for q in (0, 1):
            out[:, :, p, :, q] = phases[:, p : p + height, q : q + width, p, q]
    return out.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def interleave(phases: Tensor) -> Tensor:
    """``[N, 2 2 D, H, W] -> [N, D, 2H, 2W]`` in channels-last memory."""
    phases = phases.permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1)).transpose(2, 3)  # [N, H, 2, W, 2, D]
    return phases.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def block_bias(bias: Tensor, patch: int) -> Tensor:
    """``[D] -> [D/p² (2 p) (2 p)]``, the same for the four phases of each channel."""
    return bias.view(-1, 1, patch, 1, patch).expand(-1, 2, -1, 2, -1).flatten()


def _weight_gradient(large: Tensor, small: Tensor, weight: Tensor) -> Tensor:
    """Gradient of ``weight`` in ``small = _halve(large, weight)`` or ``large = _double(small, weight)``."""
    return conv2d_weight(large, weight.shape, small, stride=2, padding=1)


class _Halve(torch.autograd.Function):
    """:func:`_halve`, whose gradient is :func:`_double`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _halve(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_x = _double(grad, weight, None, None) if ctx.needs_input_grad[0] else None
        return grad_x, _weight_gradient(x, grad, weight)


class _Double(torch.autograd.Function):
    """:func:`_double`, whose gradient is :func:`_halve`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, patch: int | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.patch = patch
        return _double(x, weight, bias, patch)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad = patches(grad, ctx.patch or 1)  # [N, D, 2H, 2W]
        grad_x = _halve(grad, weight) if ctx.needs_input_grad[0] else None
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return grad_x, _weight_gradient(grad, x, weight), grad_bias, None
