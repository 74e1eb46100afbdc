"""Small functions that go over memory fewer times than PyTorch's own operations one after the other.

Losses have a gradient that is one pass.

RMSNorm has a backward pass that a CPU does quickly. PyTorch computes RMSNorm on a CPU by a dozen small
operations, six times slower backwards than its LayerNorm. Both have nearly the same gradient: LayerNorm's,
told that the mean is zero, lacks one term, which is a product with a vector.

Dropout has masks that take a CPU less than half the time.

Where a categorical has only a few classes, PyTorch goes row by row over rows of a few numbers, where a CPU is
faster going across them.

Last comes one step of a GRU in blocks (:class:`~wmkit.backbones.block_gru.BlockGRU`) where no gradient is
wanted. A product per gate leaves each gate in memory of its own, where the next operations can write; one
product that is cut afterwards leaves thirds of rows, and every operation on them makes a tensor. A step of
1024 rows takes 3.7 ms instead of 5.1, and fifteen of them a quarter of an update of DreamerV3
(docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.fast.last_layer import coded
from wmkit.fast.products import block_product
from wmkit.fast.switch import enabled, learns, suits

_LEVELS = 1 << 16  # a number of 16 bits decides on each element
_FEW = 8  # classes up to which going across rows is faster


def squared_norm(x: Tensor) -> Tensor:
    """``x.square().sum(-1)`` with half the passes over memory.

    >>> squared_norm(torch.tensor([[3.0, 4.0]]))
    tensor([25.])
    """
    return _SquaredNorm.apply(x) if enabled(x) else x.square().sum(-1)


class _SquaredNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.linalg.vecdot(x, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return x * (2 * grad).unsqueeze(-1)


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """``(x * weights).sum(-1)`` as a matrix product, where that is not rounded to less than float32.

    >>> weighted_sum(torch.ones(2, 2), torch.tensor([1.0, 2.0]))
    tensor([3., 3.])
    """
    return x @ weights if enabled(x) else (x * weights).sum(-1)


def coded_cross_entropy(logits: Tensor, index: Tensor, mass: Tensor, probs: Tensor | None = None) -> Tensor:
    """``-(mass * log_softmax(logits).gather(-1, index)).sum(-1)``: cross-entropy to codes of a few bins.

    Args:
        logits: ``[*B, K]`` float.
        index: ``[*B, M]`` int64, bins of the codes.
        mass: ``[*B, M]`` on them; adds up to a whole number, how many codes there are.
        probs: softmax of ``logits`` without gradient, if it is there already.

    Returns:
        ``[*B]`` float, nats.

    >>> coded_cross_entropy(torch.zeros(1, 3), torch.tensor([[1, 2]]), torch.tensor([[0.5, 0.5]]))
    tensor([1.0986])
    """
    if not enabled(logits, autocast=True):
        return -(mass * torch.log_softmax(logits, -1).gather(-1, index)).sum(-1)
    if probs is None:
        probs = torch.softmax(logits.detach(), -1)
    return _CodedCrossEntropy.apply(logits, probs, index, mass)


class _CodedCrossEntropy(torch.autograd.Function):
    """``logsumexp`` and a few logits; the gradient in one pass, with no code and no zeros written out."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, probs: Tensor, index: Tensor, mass: Tensor) -> Tensor:
        ctx.save_for_backward(probs, index, mass)
        return coded(logits, probs, index, mass)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        probs, index, mass = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        whole = grad * (index.shape[-1] // 2)
        return (probs * whole).scatter_add_(-1, index, -mass * grad), None, None, None


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


def dropout(x: Tensor, p: float) -> Tensor:
    """``F.dropout(x, p)`` with masks of its own.

    PyTorch draws one number for each element, on one core of a CPU. Here one number of 64 bits decides on
    four of them, so that the probability is a multiple of ``2**-16``, the nearest to ``p``, and what is kept
    is scaled by just that. Masks are the same with short cuts switched off, so that numbers are.

    >>> _ = torch.manual_seed(0)
    >>> y = dropout(torch.ones(1000, 10), 0.25)
    >>> round((y == 0).float().mean().item(), 2), y.unique()
    (0.25, tensor([0.0000, 1.3333]))
    """
    dropped = round(p * _LEVELS)
    if not 0 < dropped < _LEVELS or not suits(x, autocast=True):
        return F.dropout(x, p)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _LEVELS // 2
    scale = _LEVELS / (_LEVELS - dropped)
    return _Keep.apply(x, keep, scale) if enabled(x, autocast=True) else x * keep * scale


class _Keep(torch.autograd.Function):
    """``x * keep * scale``, remembering no more than the mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return torch.ops.aten.native_dropout_backward(x, keep, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (keep,) = ctx.saved_tensors
        return torch.ops.aten.native_dropout_backward(grad, keep, ctx.scale), None, None


def softmax(logits: Tensor) -> Tensor:
    """``torch.softmax(logits, -1)``: fifteen times as fast where the last dimension has a few numbers.

    >>> softmax(torch.zeros(1, 4))
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    if logits.shape[-1] > _FEW or logits.ndim < 2 or not enabled(logits, autocast=True):
        return torch.softmax(logits, -1)
    across = torch.softmax(logits.transpose(-1, -2).contiguous(), -2)
    return across.transpose(-1, -2)


def sample_index(probs: Tensor, uniform: Tensor) -> Tensor:
    """``(probs[..., :-1].cumsum(-1) <= uniform).sum(-1)``, classes ``[*B]`` int64.

    Args:
        probs: ``[*B, C]`` probabilities.
        uniform: ``[*B, 1]`` in [0, 1).

    >>> sample_index(torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.6]))
    tensor(1)
    """
    classes = probs.shape[-1]
    if not 2 <= classes <= _FEW or not enabled(probs, autocast=True):
        return (probs[..., :-1].cumsum(-1) <= uniform).sum(-1)
    uniform, total = uniform.squeeze(-1), probs[..., 0].clone()
    index = (total <= uniform).to(torch.uint8)
    for k in range(1, classes - 1):
        index += total.add_(probs[..., k]) <= uniform
    return index.long()


def add_blocks(x: Tensor, y: Tensor, blocks: Tensor) -> Tensor:
    """``x + y + z``, where z ``[N, g*O]`` is given block by block.

    Args:
        x: ``[N, g*O]``.
        y: ``[N, g*O]``, or one row for all.
        blocks: ``[g, N, O]``.

    >>> add_blocks(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[[1.0]], [[2.0]]]))
    tensor([[2., 3.]])
    """
    total = x + y
    if learns(total, blocks) or not enabled(x):
        return total + blocks.transpose(0, 1).flatten(1)
    _cut(total, len(blocks)).add_(blocks)
    return total


def gated_update(hidden: Tensor, weight: Tensor, bias: Tensor, belief: Tensor) -> Tensor:
    """``u + σ(z - 1) (tanh(σ(r) c) - u)``, the gates r, c and z by a product in blocks.

    Args:
        hidden: ``[N, U]``.
        weight: ``[g, U/g, 3U/g]``, per block r, c, z.
        bias: ``[3U]``, per block r, c, z.
        belief: ``[N, U]``, u.

    Returns:
        ``[N, U]`` in the precision of ``belief``.

    >>> u = torch.ones(1, 2)
    >>> gated_update(u, torch.zeros(2, 1, 3), torch.zeros(6), u)  # 1 - σ(-1)
    tensor([[0.7311, 0.7311]])
    """
    count = len(weight)
    if learns(hidden, weight, bias, belief) or not enabled(hidden):
        gates = block_product(hidden, weight, bias).to(belief.dtype)  # [g, N, 3U/g]
        reset, candidate, update = gates.chunk(3, -1)
        new = torch.tanh(torch.sigmoid(reset) * candidate)
        after = torch.lerp(_cut(belief, count), new, torch.sigmoid(update - 1))
        return after.transpose(0, 1).flatten(1)
    layers = zip(weight.chunk(3, -1), bias.view(count, -1).chunk(3, -1), strict=True)
    reset, candidate, update = (block_product(hidden, w, b.flatten()) for w, b in layers)  # [g, N, U/g]
    new, share = candidate.mul_(reset.sigmoid_()).tanh_(), update.sub_(1).sigmoid_()
    after = torch.empty_like(belief)
    torch.lerp(_cut(belief, count), new, share, out=_cut(after, count))
    return after


def _cut(x: Tensor, blocks: int) -> Tensor:
    """``[N, U] -> [g, N, U/g]``, a view."""
    return x.view(len(x), blocks, -1).transpose(0, 1)
