"""What heads read, kept in its parts so that one-hot parts need no matrix product.

A state is G one-hot vectors of C classes; a belief is numbers. A layer reads either, both, or those of two steps.
Multiplying a one-hot vector with a matrix picks a row of it: where the feature itself wants no
gradient, a linear layer over the state is a sum of G rows instead of a product with G·C
columns. Same numbers up to rounding, a quarter of the time on a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.fast import enabled, transposed_matmul
from wmkit.fast import linear as product_of
from wmkit.nn.kept import kept


def one_hot_linear(index: Tensor, weight: Tensor) -> Tensor:
    """``F.linear`` of one-hot groups given by their classes; no gradient.

    Args:
        index: ``[*B, G]`` int64, class of each group.
        weight: ``[D, G*C]``.

    Returns:
        ``[*B, D]``.

    >>> weight = torch.arange(8.0).view(2, 4)
    >>> one_hot_linear(torch.tensor([[1, 0]]), weight)  # columns 1 and 2 + 0
    tensor([[ 3., 11.]])
    """
    groups = index.shape[-1]
    classes = weight.shape[1] // groups
    rows = index + torch.arange(groups, device=index.device) * classes
    weight = weight.detach()

    def name() -> Hashable:
        return "rows", weight.data_ptr(), weight.shape, weight.stride()

    table = kept(name, weight, lambda: weight.t().contiguous())  # [G*C, D]
    picked = F.embedding_bag(rows.reshape(-1, groups), table, mode="sum")
    return picked.view(*index.shape[:-1], weight.shape[0])


class Feature:
    """Parts side by side, of any leading dimensions; layers take it wherever they take a tensor.

    Args:
        parts: each ``[*B, D]`` float, in the order in which a layer's columns read them.
        classes: for each part ``[*B, G]`` int64, the class of each of its one-hot groups, or ``None`` where it is
            not one-hot or its classes are not known; of no part if not given.

    >>> feature = Feature(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0]]), classes=[torch.tensor([[1]]), None])
    >>> with torch.no_grad():
    ...     feature.linear(torch.tensor([[10.0, 20.0, 1.0]]))
    tensor([[22.]])
    """

    def __init__(self, *parts: Tensor, classes: Sequence[Tensor | None] = ()) -> None:
        self.parts = parts
        self.classes = tuple(classes) or (None,) * len(parts)

    @property
    def dense(self) -> Tensor:
        """``[*B, sum of D]``."""
        return torch.cat(self.parts, -1) if len(self.parts) > 1 else self.parts[0]

    def linear(self, weight: Tensor) -> Tensor:
        """``F.linear(self.dense, weight)``, without building ``dense`` where it wants no gradient."""
        wanted = torch.is_grad_enabled() and any(part.requires_grad for part in self.parts)
        if wanted or all(classes is None for classes in self.classes):
            return product_of(self.dense, weight)
        return _PickedRows.apply(weight, len(self.parts), *self.parts, *self.classes)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Feature:
        """The same of every part, e.g. a slice of the leading dimensions."""
        classes = [None if known is None else fn(known) for known in self.classes]
        return Feature(*map(fn, self.parts), classes=classes)


class _PickedRows(torch.autograd.Function):
    """A linear layer over parts of which some are one-hot; the gradient goes to the weight alone."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, count: int, *given: Tensor | None) -> Tensor:
        parts, all_classes = given[:count], given[count:]
        ctx.save_for_backward(*parts)
        products, begin = [], 0
        for part, classes in zip(parts, all_classes, strict=True):
            assert part is not None
            columns = weight[:, begin : begin + part.shape[-1]]
            begin += part.shape[-1]
            if classes is None:  # in rows: a product with a slice of a larger tensor would go batch by batch
                product = product_of(_rows(part), columns).view(*part.shape[:-1], len(weight))
            else:
                product = one_hot_linear(classes, columns)
            products.append(product)
        return functools.reduce(torch.add, products)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        rows = _rows(grad)  # [N, D]
        weight = torch.cat([transposed_matmul(rows, _rows(part)) for part in ctx.saved_tensors], -1)
        return weight, None, *(None,) * (2 * len(ctx.saved_tensors))


def _rows(x: Tensor) -> Tensor:
    """``[*B, D] -> [N, D]``."""
    return x.reshape(-1, x.shape[-1])


def rows_are_free(x: Tensor) -> bool:
    """Whether a data-dependent number of rows costs nothing: on a CPU, outside of a compiled graph.

    Elsewhere shapes stay fixed and masks do the choosing; the values are the same.

    >>> rows_are_free(torch.zeros(1))
    True
    """
    return enabled(x, autocast=True)


def linear(x: Tensor | Feature, weight: Tensor) -> Tensor:
    """``F.linear`` of a tensor or of a feature in parts."""
    return product_of(x, weight) if isinstance(x, Tensor) else x.linear(weight)
