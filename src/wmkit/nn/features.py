"""What heads and layers read: parts side by side, with what is known of those that are one-hot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wmkit import fast


class Feature:
    """Parts side by side, of any leading dimensions; layers take it wherever they take a tensor.

    A state is G one-hot vectors of C classes; a belief is numbers. A layer reads either, both, or those of
    two steps.

    Args:
        parts: each ``[*B, D]`` float, in the order in which a layer's columns read them.
        classes: for each part ``[*B, G]`` int64, the class of each of its one-hot groups, or ``None`` where
            it is not one-hot or its classes are not known; of no part if not given.

    >>> state, belief = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0]])
    >>> feature = Feature(state, belief, classes=[torch.tensor([[1]]), None])
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
        """``F.linear(self.dense, weight)``."""
        return fast.linear_of_parts(self.parts, self.classes, weight)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Feature:
        """The same of every part, e.g. a slice of the leading dimensions."""
        classes = [None if known is None else fn(known) for known in self.classes]
        return Feature(*map(fn, self.parts), classes=classes)
