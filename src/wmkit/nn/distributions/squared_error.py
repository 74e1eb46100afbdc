"""Numbers scored by their squared error: plain, in symlog units, or as a normal's log-density."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wmkit import fast
from wmkit.functional import symlog, widened


class SquaredError:
    """A mean scored by its squared error, summed over the event, without a half.

    Args:
        mean: ``[*B, *event]`` float; below float32 it is computed with in float32.
        event_dims: how many trailing dimensions are one event.

    >>> SquaredError(torch.zeros(2, 3, 4, 4), 3).loss(torch.ones(2, 3, 4, 4))
    tensor([48., 48.])
    >>> SquaredError(torch.zeros(1, 2), 1).loss(torch.tensor([[3.0, -torch.inf]]))
    tensor([9.])
    """

    def __init__(self, mean: Tensor, event_dims: int) -> None:
        self.mean = self.mode = widened(mean)
        self.event_dims = event_dims

    def loss(self, target: Tensor) -> Tensor:
        """Squared error to ``target`` of the same shape; ``[*B]``.

        Targets in uint8 are read as /255; a float of -inf is one that is missing and costs nothing.
        """
        scale = 1 / 255 if target.dtype == torch.uint8 else 1.0
        if target.is_floating_point():
            target = torch.where(target == -math.inf, self.mean.detach(), target)
        difference = torch.sub(self.mean, target, alpha=scale)
        return fast.squared_norm(
            difference.flatten(-self.event_dims) if self.event_dims else difference.unsqueeze(-1)
        )


class SymlogSquaredError(SquaredError):
    """Squared error in symlog units; :attr:`mean` stays in symlog units.

    >>> SymlogSquaredError(torch.zeros(1, 1), 1).loss(torch.zeros(1, 1))
    tensor([0.])
    """

    def loss(self, target: Tensor) -> Tensor:
        """Squared error to ``symlog(target)``; ``[*B]``."""
        return super().loss(symlog(target.float()))


class UnitNormal(SquaredError):
    """A mean scored by the log-density of a normal of unit variance (DreamerV1 and V2).

    Half the squared error and a constant: losses are on the scale of the papers', and gradients are
    half of :class:`SquaredError`'s.

    Args:
        mean: ``[*B, *event]`` float.
        event_dims: how many trailing dimensions are one event.

    >>> UnitNormal(torch.zeros(2, 1), 1).loss(torch.tensor([[0.0], [2.0]]))
    tensor([0.9189, 2.9189])
    """

    def loss(self, target: Tensor) -> Tensor:
        """Negative log-density of ``target`` of the same shape; uint8 targets are read as /255; ``[*B]``."""
        count = math.prod(self.mean.shape[self.mean.ndim - self.event_dims :])
        return 0.5 * super().loss(target) + 0.5 * count * math.log(2 * math.pi)
