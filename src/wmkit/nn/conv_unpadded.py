"""Convolutions without padding as TWM and the first two Dreamers stack them, in channels-last memory.

The numbers are those of PyTorch's own layers. On a CPU the shapes of such a stack are slow there and
computed otherwise: few positions as a matrix product over patches, a single position as a matrix
product, a transposed convolution of even kernel as an ordinary one to the four phases of the output; and
a bias has its gradient summed over rows, which inside PyTorch's transposed convolution takes nine times as
long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from wmkit.functional import autocast_dtype, linear, matmul
from wmkit.nn.conv import FEW, interleave
from wmkit.nn.features import rows_are_free

FEW_POSITIONS = 4  # output positions up to which a product over patches is faster


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
        kernel = self.kernel_size[0]
        height, width = ((side - kernel) // 2 + 1 for side in x.shape[2:])
        if not rows_are_free(x) or height * width > FEW_POSITIONS:
            return F.conv2d(x, self.weight, self.bias, stride=2)
        rows = _Patches.apply(x, kernel)  # [N h w, k k C]
        y = linear(rows, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)
        return y.view(len(x), height, width, -1).permute(0, 3, 1, 2)


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
        kernel = self.kernel_size[0]
        if x.shape[2:] == (1, 1):  # nothing overlaps
            y = matmul(x.flatten(1), self.weight.flatten(1)).view(len(x), -1, kernel, kernel)
            y = y.contiguous(memory_format=torch.channels_last)
            return y if self.bias is None else y + self.bias.view(-1, 1, 1)
        x = x.contiguous(memory_format=torch.channels_last)
        if rows_are_free(x) and autocast_dtype(x) is None:
            return _Transposed.apply(x, self.weight, self.bias)
        return F.conv_transpose2d(x, self.weight, self.bias, stride=2)


class _Patches(torch.autograd.Function):
    """``[N, C, H, W]`` to the ``k x k`` patches that a convolution of stride 2 sees, one row each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int) -> Tensor:
        ctx.shape, ctx.kernel = x.shape, kernel
        patches = x.permute(0, 2, 3, 1).unfold(1, kernel, 2).unfold(2, kernel, 2)  # [N, h, w, C, k, k]
        return patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, kernel * kernel * x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (rows, channels, height, width), kernel = ctx.shape, ctx.kernel
        across = (width - kernel) // 2 + 1
        patches = grad.view(rows, -1, across, kernel, kernel, channels)
        out = grad.new_zeros(rows, height, width, channels)
        for p in range(patches.shape[1]):
            for q in range(across):
                out[:, 2 * p : 2 * p + kernel, 2 * q : 2 * q + kernel] += patches[:, p, q]
        return out.permute(0, 3, 1, 2), None


class _Transposed(torch.autograd.Function):
    """Transposed convolution of stride 2, whose gradient is the strided one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _by_phases(x, weight, bias) if weight.shape[-1] % 2 == 0 else _plain(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = F.conv2d(grad, weight, stride=2) if ctx.needs_input_grad[0] else None
        return grad_x, conv2d_weight(grad, weight.shape, x, stride=2), grad_bias


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv_transpose2d(x, weight, bias, stride=2)


def _by_phases(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``y[2i + p]`` is the sum over d of ``x[i - d] weight[2d + p]``, for either phase p of an axis."""
    half = weight.shape[-1] // 2
    taps = weight.unflatten(3, (half, 2)).unflatten(2, (half, 2)).flip(2, 4)  # [C, D, d, p, d', p']
    if weight.shape[1] <= FEW:
        kernel = taps.permute(1, 3, 5, 0, 2, 4).flatten(0, 2)  # [D p p', C, d, d']
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        bias = None if bias is None else bias.repeat_interleave(4)
        return F.pixel_shuffle(F.conv2d(x, kernel, bias, padding=half - 1).contiguous(), 2)
    kernel = taps.permute(3, 5, 1, 0, 2, 4).flatten(0, 2)  # [p p' D, C, d, d']
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    return interleave(F.conv2d(x, kernel, None if bias is None else bias.repeat(4), padding=half - 1))
