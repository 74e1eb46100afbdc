"""Dropout (Srivastava et al. 2014) whose masks take a CPU less than half the time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmkit.nn.features import rows_are_free

_LEVELS = 1 << 16  # a number of 16 bits decides on each element


class Dropout(nn.Dropout):
    """:class:`torch.nn.Dropout` that draws four elements' chance with one number of 64 bits on a CPU.

    PyTorch draws one number each there, on one core. The probability is a multiple of ``2**-16``, the
    nearest to ``p``, and what is kept is scaled by just that.

    >>> _ = torch.manual_seed(0)
    >>> y = Dropout(0.25)(torch.ones(1000, 10))
    >>> round((y == 0).float().mean().item(), 2), y.unique()
    (0.25, tensor([0.0000, 1.3333]))
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if not self.training:
            return x
        dropped = round(self.p * _LEVELS)
        if not rows_are_free(x) or not 0 < dropped < _LEVELS:
            return F.dropout(x, self.p)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
        return _Keep.apply(x, levels >= dropped - _LEVELS // 2, _LEVELS / (_LEVELS - dropped))


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
