"""Losses that go over memory fewer times than autograd's own gradient of them does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wmkit.fast.switch import enabled


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
        # The largest probability is at least 1 / K: its logarithm is exact. Logits are taken apart from
        # the largest before anything else, or their common level would round the loss.
        below = logits.amax(-1, keepdim=True) - logits.gather(-1, index)  # [*B, M]
        return torch.sub((mass * below).sum(-1), probs.amax(-1).log(), alpha=index.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        probs, index, mass = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        whole = grad * (index.shape[-1] // 2)
        return (probs * whole).scatter_add_(-1, index, -mass * grad), None, None, None
