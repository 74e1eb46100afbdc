"""Dense layers: linear maps, dropout, and stacks of linear, norm, activation in a :class:`LayerStyle`."""

from __future__ import annotations

from torch import Tensor, nn

from wmkit import fast
from wmkit.nn.features import Feature
from wmkit.nn.init import init_hidden, init_output
from wmkit.nn.style import STYLE_2023, Activation, LayerStyle


class Linear(nn.Linear):
    """:class:`torch.nn.Linear` with the same weights, initialisation and results.

    >>> import torch
    >>> Linear(3, 8)(torch.zeros(2, 3)).shape
    torch.Size([2, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, in_features] -> [*B, out_features]``."""
        return fast.linear(x, self.weight, self.bias)


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014); on a CPU its masks are other ones than :class:`torch.nn.Dropout`'s.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> y = Dropout(0.25)(torch.ones(1000, 10))
    >>> round((y == 0).float().mean().item(), 2), y.unique()
    (0.25, tensor([0.0000, 1.3333]))
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return fast.dropout(x, self.p) if self.training else x


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
        """Bias, norm and activation of a product ``[*B, out_dim]``."""
        return self.style.activate(self.norm(x if self.linear.bias is None else x + self.linear.bias))

    def forward(self, x: Tensor | Feature) -> Tensor:
        """``[*B, in_dim] -> [*B, out_dim]``."""
        if isinstance(x, Tensor):
            return self.style.activate(self.norm(self.linear(x)))
        return self.finish(x.linear(self.linear.weight))


class MLP(nn.Sequential):
    """A stack of :class:`DenseNormAct` of equal width and, where ``out_dim`` is given, a linear output.

    Args:
        in_dim: input width.
        out_dim: width of the output; none ends with the last hidden layer.
        units: width of the hidden layers.
        layers: how many; none with an ``out_dim`` leaves one linear map.
        style: norm, activation, bias and initialisation.
        dropout: after every hidden layer.
        activate_input: pass the input through the activation first, for outputs of a residual stream
            (TWM, arXiv:2303.07109).
        outscale: of the output layer, see :func:`~wmkit.nn.init_output`.
        bias: the output layer starts with this everywhere; left to ``style`` if not given.

    >>> import torch
    >>> MLP(3, units=8, layers=2)(torch.zeros(2, 3)).shape
    torch.Size([2, 8])
    >>> MLP(3, 2, units=8, layers=2, dropout=0.1, outscale=0.0, bias=0.5)(torch.zeros(1, 3))
    tensor([[0.5000, 0.5000]], grad_fn=<AddmmBackward0>)
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int | None = None,
        *,
        units: int = 0,
        layers: int,
        style: LayerStyle = STYLE_2023,
        dropout: float = 0.0,
        activate_input: bool = False,
        outscale: float = 1.0,
        bias: float | None = None,
    ) -> None:
        super().__init__()
        if activate_input:
            self.append(Activation(style))
        for i in range(layers):
            self.append(DenseNormAct(units if i else in_dim, units, style))
            if dropout:
                self.append(Dropout(dropout))
        if out_dim is not None:
            out: nn.Linear = init_output(Linear(units if layers else in_dim, out_dim), outscale, style.init)
            if bias is not None:
                nn.init.constant_(out.bias, bias)
            self.append(out)
