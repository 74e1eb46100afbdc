"""A normal of unit variance, which the first two Dreamers put around everything they predicted."""

from __future__ import annotations

import math

from torch import Tensor

from wmkit.nn.predictions import SquaredError


class UnitNormal(SquaredError):
    """A mean scored by the log-density of a normal of unit variance (DreamerV1 and V2).

    Half the squared error and a constant: losses are on the scale of the papers', and gradients are
    half of :class:`SquaredError`'s.

    Args:
        mean: ``[*B, *event]`` float.
        event_dims: how many trailing dimensions are one event.

    >>> import torch
    >>> UnitNormal(torch.zeros(2, 1), 1).loss(torch.tensor([[0.0], [2.0]]))
    tensor([0.9189, 2.9189])
    """

    def loss(self, target: Tensor) -> Tensor:
        """Negative log-density of ``target`` of the same shape; uint8 targets are read as /255; ``[*B]``."""
        count = math.prod(self.mean.shape[self.mean.ndim - self.event_dims :])
        return 0.5 * super().loss(target) + 0.5 * count * math.log(2 * math.pi)
