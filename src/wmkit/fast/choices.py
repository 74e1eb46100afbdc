"""One-hot vectors as the classes they stand for, and categoricals of a few classes.

A product with a one-hot vector picks a column of the matrix: over G of them it is a sum of G columns instead
of a product with G·C numbers. And where a categorical has only a few classes, PyTorch goes row by row over
rows of a few numbers, where a CPU is faster going across them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.fast.products import linear, transposed_matmul
from wmkit.fast.switch import enabled, learns

_FEW = 8  # classes up to which going across rows is faster


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


def one_hot_linear(index: Tensor, weight: Tensor) -> Tensor:
    """``F.linear`` of one-hot groups given by their classes; no gradient.

    Args:
        index: ``[*B, G]`` int64, class of each group.
        weight: ``[D, G*C]``. Its transpose is read: one that lies so in memory already is not copied.

    Returns:
        ``[*B, D]``.

    >>> weight = torch.arange(8.0).view(2, 4)
    >>> one_hot_linear(torch.tensor([[1, 0]]), weight)  # columns 1 and 2 + 0
    tensor([[ 3., 11.]])
    """
    groups, weight = index.shape[-1], weight.detach()
    classes = weight.shape[1] // groups
    if not enabled(weight, autocast=True, everywhere=True, compiled=True):
        one_hot = F.one_hot(index, classes).flatten(-2).to(weight.dtype)
        return F.linear(one_hot, weight)
    rows = index + torch.arange(groups, device=index.device) * classes
    picked = F.embedding_bag(rows.reshape(-1, groups), weight.t().contiguous(), mode="sum")
    return picked.view(*index.shape[:-1], weight.shape[0])


def linear_of_parts(parts: Sequence[Tensor], classes: Sequence[Tensor | None], weight: Tensor) -> Tensor:
    """``F.linear(torch.cat(parts, -1), weight)``.

    Where the parts want no gradient, one-hot ones whose classes are known are looked up and nothing is
    concatenated.

    Args:
        parts: each ``[*B, D_i]``.
        classes: of each part ``[*B, G]`` int64 if it is G one-hot vectors side by side, or nothing.
        weight: ``[D, sum of D_i]``.

    Returns:
        ``[*B, D]``, with gradient.

    >>> state, belief = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0]])
    >>> linear_of_parts([state, belief], [torch.tensor([[1]]), None], torch.tensor([[10.0, 20.0, 1.0]]))
    tensor([[22.]])
    """
    known = any(index is not None for index in classes)
    if not known or learns(*parts) or not enabled(weight, autocast=True, everywhere=True, compiled=True):
        return linear(torch.cat(list(parts), -1), weight)
    if not learns(weight):
        return _sum_of_parts(parts, classes, weight)
    return _Parts.apply(weight, tuple(classes), *parts)


def _sum_of_parts(parts: Sequence[Tensor], classes: Sequence[Tensor | None], weight: Tensor) -> Tensor:
    """The sum over parts of a product or of picked rows."""
    columns = weight.split([part.shape[-1] for part in parts], 1)
    total: Tensor | None = None
    for part, index, column in zip(parts, classes, columns, strict=True):
        if index is not None:
            product = one_hot_linear(index, column)
        else:  # in rows: a product with a slice of a larger tensor would go batch by batch
            product = linear(_rows(part), column).view(*part.shape[:-1], len(weight))
        total = product if total is None else total + product
    assert total is not None
    return total


class _Parts(torch.autograd.Function):
    """:func:`_sum_of_parts` whose gradient goes to the weight alone."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, classes: tuple[Tensor | None, ...], *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        return _sum_of_parts(parts, classes, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, parts = _rows(grad), ctx.saved_tensors
        weight = torch.cat([transposed_matmul(rows, _rows(part)) for part in parts], -1)
        return weight, None, *(None for _ in parts)


def _rows(x: Tensor) -> Tensor:
    """``[*B, D] -> [N, D]``, also of an empty D."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
