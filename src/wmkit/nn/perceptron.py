"""Hidden layers with dropout, then a linear output: the heads of transformer world models."""

from __future__ import annotations

from torch import nn

from wmkit.nn.dropout import Dropout
from wmkit.nn.init import init_output
from wmkit.nn.linear import Linear
from wmkit.nn.mlp import DenseNormAct
from wmkit.nn.norms import Activation
from wmkit.nn.style import STYLE_2023, LayerStyle


class Perceptron(nn.Sequential):
    """Numbers in, numbers out.

    Args:
        in_dim: input width.
        out_dim: output width.
        units: width of the hidden layers.
        layers: how many; none leaves one linear map.
        dropout: after every hidden layer.
        activate_input: pass the input through the activation first, for outputs of a residual stream
            (TWM, arXiv:2303.07109).
        outscale: of the output layer, see :func:`~wmkit.nn.init_output`.
        bias: the output layer starts with this everywhere; left to ``style`` if not given.
        style: norm, activation, bias and initialisation.

    >>> import torch
    >>> Perceptron(3, 2, units=8, layers=2, dropout=0.1, outscale=0.0, bias=0.5)(torch.zeros(1, 3))
    tensor([[0.5000, 0.5000]], grad_fn=<AddmmBackward0>)
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        units: int = 0,
        layers: int,
        dropout: float = 0.0,
        activate_input: bool = False,
        outscale: float = 1.0,
        bias: float | None = None,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        if activate_input:
            self.append(Activation(style))
        for i in range(layers):
            self.append(DenseNormAct(units if i else in_dim, units, style))
            if dropout:
                self.append(Dropout(dropout))
        out: nn.Linear = init_output(Linear(units if layers else in_dim, out_dim), outscale, style.init)
        if bias is not None:
            nn.init.constant_(out.bias, bias)
        self.append(out)
