"""What heads read, kept in its parts so that one-hot parts need no matrix product.

A feature is a stochastic state (G one-hot vectors of C classes) beside a deterministic belief.
Multiplying a one-hot vector with a matrix picks a row of it: where the feature itself wants no
gradient, a linear layer over the state is a sum of G rows instead of a product with G·C
columns. Same numbers up to rounding, a quarter of the time on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.fast import linear as product_of
from wmkit.fast import rows_are_free as rows_are_free
from wmkit.fast import transposed_matmul
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


class Products:
    """What several weights make of one feature, side by side (:class:`~wmkit.nn.FirstLayers`).

    Args:
        weights: each ``[D_i, F]``, with the version it had; known again by identity.
        values: ``[*B, sum of D_i]``, the products with them.
    """

    def __init__(self, weights: Sequence[tuple[Tensor, int]], values: Tensor) -> None:
        self.weights, self.values = weights, values

    def get(self, weight: Tensor) -> Tensor | None:
        """``[*B, D]`` of one of the weights; nothing of another, or of one that has changed."""
        begin = 0
        for known, version in self.weights:
            if known is weight:
                unchanged = weight._version == version
                return self.values[..., begin : begin + len(weight)] if unchanged else None
            begin += len(known)
        return None

    def map(self, fn: Callable[[Tensor], Tensor]) -> Products:
        """The same of the values, e.g. a slice."""
        return Products(self.weights, fn(self.values))


@dataclass(frozen=True)
class Feature:
    """State and belief of any leading dimensions; heads take it wherever they take a tensor.

    Attributes:
        state: ``[*B, G*C]`` float, one-hot per group.
        belief: ``[*B, U]`` float.
        classes: ``[*B, G]`` int64, class of each group of ``state``; ``None`` where not known.
        products: what some weights make of it, where that is known already.

    >>> feature = Feature(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0]]), torch.tensor([[1]]))
    >>> with torch.no_grad():
    ...     feature.linear(torch.tensor([[10.0, 20.0, 1.0]]))
    tensor([[22.]])
    """

    state: Tensor
    belief: Tensor
    classes: Tensor | None = None
    products: Products | None = None

    @property
    def dense(self) -> Tensor:
        """``[*B, G*C + U]``, state first."""
        return torch.cat([self.state, self.belief], -1)

    def linear(self, weight: Tensor) -> Tensor:
        """``F.linear(self.dense, weight)``, without building ``dense`` where it wants no gradient."""
        wanted = torch.is_grad_enabled() and (self.state.requires_grad or self.belief.requires_grad)
        if self.classes is None or wanted:
            return product_of(self.dense, weight)
        known = None if self.products is None else self.products.get(weight)
        return _PickedRows.apply(self.state, self.belief, self.classes, weight, known)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Feature:
        """The same of every part, e.g. a slice of the leading dimensions."""
        classes = None if self.classes is None else fn(self.classes)
        products = None if self.products is None else self.products.map(fn)
        return Feature(fn(self.state), fn(self.belief), classes, products)


class _PickedRows(torch.autograd.Function):
    """A linear layer over a known feature; the gradient goes to the weight alone."""

    @staticmethod
    def forward(
        ctx: Any, state: Tensor, belief: Tensor, classes: Tensor, weight: Tensor, known: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(state, belief)
        if known is not None:
            return known.view_as(known)
        width = state.shape[-1]
        # In rows: a product with a slice of a larger tensor would go batch by batch.
        product = product_of(_rows(belief), weight[:, width:])
        return one_hot_linear(classes, weight[:, :width]) + product.view(*belief.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None, Tensor, None]:  # type: ignore[override]
        rows = _rows(grad)  # [N, D]
        parts = [transposed_matmul(rows, _rows(part)) for part in ctx.saved_tensors]
        return None, None, None, torch.cat(parts, -1), None


def _rows(x: Tensor) -> Tensor:
    """``[*B, D] -> [N, D]``, also of an empty D (a feature without a belief)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


@dataclass(frozen=True)
class FeaturePair:
    """The features before and after a transition.

    Attributes:
        before: where it starts.
        after: where it ends.
    """

    before: Feature
    after: Feature

    @property
    def dense(self) -> Tensor:
        """``[*B, 2 * (G*C + U)]``."""
        return torch.cat([self.before.dense, self.after.dense], -1)

    def linear(self, weight: Tensor) -> Tensor:
        """``F.linear(self.dense, weight)``, likewise."""
        half = weight.shape[1] // 2
        return self.before.linear(weight[:, :half]) + self.after.linear(weight[:, half:])

    def map(self, fn: Callable[[Tensor], Tensor]) -> FeaturePair:
        """The same of every part."""
        return FeaturePair(self.before.map(fn), self.after.map(fn))


def linear(x: Tensor | Feature | FeaturePair, weight: Tensor) -> Tensor:
    """``F.linear`` of a tensor or of a feature in parts."""
    return product_of(x, weight) if isinstance(x, Tensor) else x.linear(weight)
