"""RMSNorm, with a backward pass that a CPU does quickly.

PyTorch computes RMSNorm on a CPU by a dozen small operations, six times slower backwards than
its LayerNorm. Both have nearly the same gradient: LayerNorm's, told that the mean is zero,
lacks one term, which is a product with a vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.fast.switch import enabled


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``F.rms_norm`` over the last dimension, in float32.

    Args:
        x: ``[*B, dim]``.
        weight: ``[dim]``.
        eps: inside the root.

    Returns:
        ``[*B, dim]``, in the dtype of ``x``.

    >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2), 1e-4)
    tensor([[0.8485, 1.1314]])
    """
    if x.dtype != torch.float32 or not enabled(x, autocast=True):
        return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)
    return _RMSNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _normalised(x, weight, eps)[0]


def _normalised(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The output ``[*B, dim]`` and the scale of each row, ``[*B, 1]``."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = length.mul_(length).div_(x.shape[-1]).add_(eps).rsqrt_()
    return torch.mul(x, scale).mul_(weight), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out, scale = _normalised(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        grad = grad.contiguous()
        zero = torch.zeros_like(scale)
        inputs, weights, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, weight.shape, zero, scale, weight, None, [True, True, False]
        )
        # What LayerNorm takes off for its mean: scale * mean(grad * weight).
        total = torch.mv(grad.view(-1, len(weight)), weight).view(scale.shape)
        return inputs.add_(total.mul_(scale), alpha=1 / len(weight)), weights, None
