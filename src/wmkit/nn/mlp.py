"""Dense trunks: linear, norm, activation, in the style of a generation (:class:`~wmkit.nn.LayerStyle`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmkit.nn.features import Feature, FeaturePair, linear
from wmkit.nn.init import init_hidden
from wmkit.nn.linear import Linear
from wmkit.nn.style import STYLE_2023, LayerStyle


class DenseNormAct(nn.Module):
    """``act(norm(W x + b))``.

    :meth:`finish` applies bias, norm and activation to a product ``W x`` that the caller
    assembled itself, e.g. from parts hoisted out of a time loop.

    Args:
        in_dim: input width.
        out_dim: output width.
        style: norm, activation, bias and initialisation.

    >>> import torch
    >>> DenseNormAct(3, 8)(torch.zeros(2, 3)).shape
    torch.Size([2, 8])
    """

    def __init__(self, in_dim: int, out_dim: int, style: LayerStyle = STYLE_2023) -> None:
        super().__init__()
        self.style = style
        self.linear: nn.Linear = init_hidden(Linear(in_dim, out_dim, bias=style.bias), style.init)
        self.norm = style.make_norm(out_dim)

    def finish(self, x: Tensor) -> Tensor:
        """Bias, norm and activation of a product ``[*B, out_dim]``, which is left as it is."""
        out = self.norm(x if self.linear.bias is None else x + self.linear.bias)
        return self.style.activate(out, inplace=out is not x and not torch.is_grad_enabled())

    def forward(self, x: Tensor | Feature | FeaturePair) -> Tensor:
        """``[*B, in_dim] -> [*B, out_dim]``."""
        if isinstance(x, Tensor):
            return self.style.activate(self.norm(self.linear(x)), inplace=not torch.is_grad_enabled())
        return self.finish(linear(x, self.linear.weight))


class MLP(nn.Sequential):
    """A stack of :class:`DenseNormAct` of equal width.

    Args:
        in_dim: input width.
        units: width of every layer.
        layers: how many.
        style: see :class:`DenseNormAct`.

    >>> import torch
    >>> MLP(3, 8, 2)(torch.zeros(2, 3)).shape
    torch.Size([2, 8])
    """

    def __init__(self, in_dim: int, units: int, layers: int, style: LayerStyle = STYLE_2023) -> None:
        super().__init__(*(DenseNormAct(in_dim if i == 0 else units, units, style) for i in range(layers)))
