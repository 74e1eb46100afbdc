"""Dense trunks: linear, LayerNorm, SiLU (DreamerV3 of 2023, arXiv:2301.04104v1)."""

from __future__ import annotations

from torch import Tensor, nn

from wmkit.nn.features import Feature, FeaturePair, linear
from wmkit.nn.init import init_hidden

NORM_EPS = 1e-3


class DenseNormAct(nn.Module):
    """``SiLU(LayerNorm(W x))`` with no bias under the norm.

    :meth:`finish` applies norm and activation to a pre-activation that the caller
    assembled itself, e.g. from parts hoisted out of a time loop.

    Args:
        in_dim: input width.
        out_dim: output width.

    >>> import torch
    >>> DenseNormAct(3, 8)(torch.zeros(2, 3)).shape
    torch.Size([2, 8])
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear: nn.Linear = init_hidden(nn.Linear(in_dim, out_dim, bias=False))
        self.norm = nn.LayerNorm(out_dim, eps=NORM_EPS)

    def finish(self, x: Tensor) -> Tensor:
        """Norm and activation of a pre-activation ``[*B, out_dim]``."""
        return nn.functional.silu(self.norm(x))

    def forward(self, x: Tensor | Feature | FeaturePair) -> Tensor:
        """``[*B, in_dim] -> [*B, out_dim]``."""
        return self.finish(linear(x, self.linear.weight))


class MLP(nn.Sequential):
    """A stack of :class:`DenseNormAct` of equal width.

    Args:
        in_dim: input width.
        units: width of every layer.
        layers: how many.

    >>> import torch
    >>> MLP(3, 8, 2)(torch.zeros(2, 3)).shape
    torch.Size([2, 8])
    """

    def __init__(self, in_dim: int, units: int, layers: int) -> None:
        super().__init__(*(DenseNormAct(in_dim if i == 0 else units, units) for i in range(layers)))
