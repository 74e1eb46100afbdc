"""Convolutions that halve or double an image, in shapes that are slow in PyTorch on a CPU.

Doubling, by a transposed convolution or by repeating pixels and convolving, is an ordinary convolution to the
four phases of the output: the taps that meet the same input pixel are added up beforehand, and the doubled
input is never written. A convolution to few positions is a matrix product over patches. Numbers are those of
the plain form at the top of each function; timings in ``docs/performance.md``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from wmkit.fast.products import linear, matmul
from wmkit.fast.switch import enabled

# Output channels up to which doubling by phases is faster: as one 3 x 3 convolution, whose phases lie
# on one grid, or as one 2 x 2 convolution without idle taps, whose phases are a pixel apart.
_FEW, _SOME = 8, 16
_FEW_POSITIONS = 4  # output positions up to which a product over patches is faster


def halving_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Kernel 4, stride 2, padding 1: ``[N, C, 2H, 2W] -> [N, D, H, W]``, weight ``[D, C, 4, 4]``.

    >>> halving_conv(torch.zeros(2, 3, 8, 8), torch.zeros(5, 3, 4, 4)).shape
    torch.Size([2, 5, 4, 4])
    """
    if not enabled(x):
        return F.conv2d(x, weight, stride=2, padding=1)
    return _Halve.apply(x, weight)


def doubling_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, patch: int | None = None) -> Tensor:
    """Transposed, kernel 4, stride 2, padding 1, then channels as blocks of ``patch x patch`` pixels.

    Args:
        x: ``[N, C, H, W]``.
        weight: ``[C, D, 4, 4]``.
        bias: ``[D]``.
        patch: side of a block; none leaves channels alone and may leave them last in memory.

    Returns:
        ``[N, D / patch², 2 H patch, 2 W patch]``.

    >>> doubling_conv(torch.zeros(2, 5, 4, 4), torch.zeros(5, 12, 4, 4), patch=2).shape
    torch.Size([2, 3, 16, 16])
    """
    if not enabled(x):
        return F.pixel_shuffle(F.conv_transpose2d(x, weight, bias, 2, 1), patch or 1)
    return _Double.apply(x, weight, bias, patch)


def upsampling_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, fill: str, patch: int | None = None
) -> Tensor:
    """Double the resolution, convolve 5 x 5, then channels as blocks of ``patch x patch`` pixels.

    Args:
        x: ``[N, C, H, W]``.
        weight: ``[D, C, 5, 5]``.
        bias: ``[D]``.
        fill: ``"nearest"`` repeats every pixel, ``"zeros"`` puts it at odd rows and columns.
        patch: see :func:`doubling_conv`.

    Returns:
        ``[N, D / patch², 2 H patch, 2 W patch]``.

    >>> upsampling_conv(torch.zeros(2, 5, 4, 4), torch.zeros(3, 5, 5, 5), None, "nearest").shape
    torch.Size([2, 3, 8, 8])
    """
    if not enabled(
        x, autocast=True, everywhere=True, compiled=True
    ):  # it takes nine products a pixel instead of twenty-five
        doubled = F.interpolate(x, scale_factor=2)
        if fill == "zeros":
            doubled = doubled * _odd(doubled)
        return F.pixel_shuffle(F.conv2d(doubled, weight, bias, padding=2), patch or 1)
    taps = _met(_met(weight, fill, 3), fill, 2)  # [D, C, 2, 3, 2, 3]
    return _by_phases(x, taps, bias, patch)


def strided_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Stride 2 without padding: ``[N, C, H, W] -> [N, D, (H - k) // 2 + 1, (W - k) // 2 + 1]``.

    >>> strided_conv(torch.zeros(2, 3, 6, 6), torch.zeros(5, 3, 4, 4)).shape
    torch.Size([2, 5, 2, 2])
    """
    kernel = weight.shape[-1]
    height, width = ((side - kernel) // 2 + 1 for side in x.shape[2:])
    if height * width > _FEW_POSITIONS or not enabled(x, autocast=True):
        return F.conv2d(x, weight, bias, stride=2)
    rows = _Patches.apply(x, kernel)  # [N h w, k k C]
    y = linear(rows, weight.permute(0, 2, 3, 1).flatten(1), bias)
    return y.view(len(x), height, width, -1).permute(0, 3, 1, 2)


def strided_transposed_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Transposed, stride 2 without padding: ``[N, C, H, W] -> [N, D, 2 (H - 1) + k, 2 (W - 1) + k]``.

    >>> strided_transposed_conv(torch.zeros(2, 5, 2, 2), torch.zeros(5, 3, 4, 4)).shape
    torch.Size([2, 3, 6, 6])
    """
    if x.shape[2:] == (1, 1) and enabled(
        x, autocast=True, everywhere=True, compiled=True
    ):  # nothing overlaps
        y = matmul(x.flatten(1), weight.flatten(1)).view(len(x), *weight.shape[1:])
        y = y.contiguous(memory_format=torch.channels_last)
        return y if bias is None else y + bias.view(-1, 1, 1)
    if not enabled(x):
        return F.conv_transpose2d(x, weight, bias, stride=2)
    return _StridedTransposed.apply(x, weight, bias)


# -- doubling as an ordinary convolution to four phases --------------------------------------


def _by_phases(
    x: Tensor, taps: Tensor, bias: Tensor | None, patch: int | None, memory: torch.memory_format | None = None
) -> Tensor:
    """A 3 x 3 convolution to the four phases of the output.

    Args:
        x: ``[N, C, H, W]``.
        taps: ``[D, C, 2, 3, 2, 3]``: phase and input pixel before, at and after, of either axis.
        bias: ``[D]``.
        patch: see :func:`doubling_conv`.
        memory: what the input is laid out to, if it is to be a block of pixels.
    """
    if patch is None:
        kernel = taps.permute(2, 4, 0, 1, 3, 5).flatten(0, 2)  # [2 2 D, C, 3, 3]
        return _interleave(F.conv2d(x, kernel, None if bias is None else bias.repeat(4), padding=1))
    blocks = taps.unflatten(0, (-1, patch, patch))  # [D/p², p, p, C, 2, 3, 2, 3]
    kernel = blocks.permute(0, 4, 1, 6, 2, 3, 5, 7).flatten(0, 4)  # [D/p² (2 p) (2 p), C, 3, 3]
    if bias is not None:
        bias = bias.view(-1, 1, patch, 1, patch).expand(-1, 2, -1, 2, -1).flatten()
    x = x if memory is None else x.contiguous(memory_format=memory)
    return F.pixel_shuffle(F.conv2d(x, kernel, bias, padding=1), 2 * patch)


def _interleave(phases: Tensor) -> Tensor:
    """``[N, 2 2 D, H, W] -> [N, D, 2H, 2W]`` in channels-last memory."""
    phases = phases.permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1)).transpose(2, 3)  # [N, H, 2, W, 2, D]
    return phases.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _met(weight: Tensor, fill: str, axis: int) -> Tensor:
    """``[.., 5, ..] -> [.., 2, 3, ..]``: per phase, the taps that meet the pixel before, at and after."""
    a, b, c, d, e = weight.unbind(axis)
    if fill == "nearest":
        pixels = (a + b, c + d, e), (a, b + c, d + e)
    else:
        pixels = (b, d, torch.zeros_like(a)), (a, c, e)
    return torch.stack([torch.stack(phase, axis) for phase in pixels], axis)


def _odd(image: Tensor) -> Tensor:
    """``[H, W]``: one at odd rows and columns, else zero."""
    height, width = (torch.arange(side, device=image.device) % 2 for side in image.shape[-2:])
    return (height[:, None] * width).to(image.dtype)


# -- kernel 4, padded: each convolution's gradient is the other ------------------------------


def _double(x: Tensor, weight: Tensor, bias: Tensor | None, patch: int | None) -> Tensor:
    if weight.shape[1] > _SOME and patch is None:
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)
    if weight.shape[1] > _FEW and patch is None:
        return _double_apart(x, weight, bias)
    # For phase 0 and 1 of one axis: which tap meets the input before, at and after; 4 is none.
    taps = torch.tensor([[3, 1, 4], [4, 2, 0]])
    kernel = F.pad(weight, (0, 1, 0, 1))[:, :, taps][..., taps]  # [C, D, 2, 3, 2, 3]
    return _by_phases(x, kernel.transpose(0, 1), bias, patch, torch.contiguous_format)


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


def _weight_gradient(large: Tensor, small: Tensor, weight: Tensor) -> Tensor:
    """Of the weight that halves ``large`` to ``small`` or doubles ``small`` to ``large``."""
    return conv2d_weight(large, weight.shape, small, stride=2, padding=1)


class _Halve(torch.autograd.Function):
    """:func:`halving_conv`, whose gradient is :func:`doubling_conv`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, stride=2, padding=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_x = _double(grad, weight, None, None) if ctx.needs_input_grad[0] else None
        return grad_x, _weight_gradient(x, grad, weight)


class _Double(torch.autograd.Function):
    """:func:`doubling_conv`, whose gradient is :func:`halving_conv`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, patch: int | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.patch = patch
        return _double(x, weight, bias, patch)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        if ctx.patch is not None and ctx.patch > 1:
            grad = F.pixel_unshuffle(grad.contiguous(), ctx.patch)
        grad = grad.contiguous(memory_format=torch.channels_last)  # [N, D, 2H, 2W]
        grad_x = F.conv2d(grad, weight, stride=2, padding=1) if ctx.needs_input_grad[0] else None
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return grad_x, _weight_gradient(grad, x, weight), grad_bias, None


# -- any kernel, no padding ------------------------------------------------------------------


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


class _StridedTransposed(torch.autograd.Function):
    """Transposed convolution of stride 2, whose gradient is the strided one.

    A bias has its gradient summed over rows, which inside PyTorch's takes nine times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if weight.shape[-1] % 2:
            return F.conv_transpose2d(x, weight, bias, stride=2)
        return _even_kernel(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = F.conv2d(grad, weight, stride=2) if ctx.needs_input_grad[0] else None
        return grad_x, conv2d_weight(grad, weight.shape, x, stride=2), grad_bias


def _even_kernel(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``y[2i + p]`` is the sum over d of ``x[i - d] weight[2d + p]``, for either phase p of an axis."""
    half = weight.shape[-1] // 2
    taps = weight.unflatten(3, (half, 2)).unflatten(2, (half, 2)).flip(2, 4)  # [C, D, d, p, d', p']
    if weight.shape[1] <= _FEW:
        kernel = taps.permute(1, 3, 5, 0, 2, 4).flatten(0, 2)  # [D p p', C, d, d']
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        bias = None if bias is None else bias.repeat_interleave(4)
        return F.pixel_shuffle(F.conv2d(x, kernel, bias, padding=half - 1).contiguous(), 2)
    kernel = taps.permute(3, 5, 1, 0, 2, 4).flatten(0, 2)  # [p p' D, C, d, d']
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    return _interleave(F.conv2d(x, kernel, None if bias is None else bias.repeat(4), padding=half - 1))
