"""Dense layers whose product goes to the quickest library (:mod:`wmkit.functional.products`)."""

from __future__ import annotations

from torch import Tensor, nn

from wmkit.functional.products import linear


class Linear(nn.Linear):
    """:class:`torch.nn.Linear`, weights, initialisation and results alike.

    >>> import torch
    >>> Linear(3, 8)(torch.zeros(2, 3)).shape
    torch.Size([2, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, in_features] -> [*B, out_features]``."""
        return linear(x, self.weight, self.bias)
