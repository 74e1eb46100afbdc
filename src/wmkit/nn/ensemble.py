"""Several networks of one shape, computed at once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmkit.arguments import check_range
from wmkit.errors import ConfigError
from wmkit.nn.init import init_hidden, init_output
from wmkit.nn.style import STYLE_2023, LayerStyle


class EnsembleMLP(nn.Module):
    """K stacks of linear, norm and activation with a linear output each, over one input.

    Args:
        in_dim: input width.
        out_dim: width of an output.
        members: K.
        units: width of the hidden layers.
        layers: how many of them, one or more.
        style: of all of them; a layer norm.
        dropout: of the first layer's product (TD-MPC2), where something learns; else nothing is dropped.
        outscale: of the output layers, see :func:`~wmkit.nn.init_output`.
        bias: the output layers start with this everywhere; left to ``style`` if not given.

    Raises:
        ConfigError: no member, no layer, or another norm.

    >>> EnsembleMLP(3, 2, members=5, units=8, layers=2)(torch.zeros(4, 6, 3)).shape
    torch.Size([5, 4, 6, 2])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        members: int,
        units: int,
        layers: int,
        style: LayerStyle = STYLE_2023,
        dropout: float = 0.0,
        outscale: float = 1.0,
        bias: float | None = None,
    ) -> None:
        super().__init__()
        check_range("members", members, 1)
        check_range("layers", layers, 1)
        check_range("dropout", dropout, 0, 1, open_end=True)
        if style.norm != "layer":
            raise ConfigError(f"style.norm is {style.norm!r}: wanted layer; correct style.norm")
        self.members, self.style, self.rate = members, style, dropout
        widths = [in_dim] + [units] * layers
        self.layers = nn.ModuleList(
            _Layer([init_hidden(nn.Linear(n, m), style.init) for _ in range(members)], norm=True)
            for n, m in pairwise(widths)
        )
        outs = [init_output(nn.Linear(units, out_dim), outscale, style.init) for _ in range(members)]
        if bias is not None:
            for out in outs:
                nn.init.constant_(out.bias, bias)
        self.out = _Layer(outs, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, in_dim] -> [K, *B, out_dim]``."""
        lead = x.shape[:-1]
        layers: Any = self.layers
        first, *others = layers
        rows = x.reshape(-1, x.shape[-1])
        hidden = first.of_one(rows)  # [K, N, units]
        if self.rate and self.training and torch.is_grad_enabled():
            hidden = F.dropout(hidden, self.rate)
        hidden = self.style.activate(first.normed(hidden, self.style.eps))
        for layer in others:
            hidden = self.style.activate(layer.normed(layer(hidden), self.style.eps))
        return self.out(hidden).unflatten(1, lead) if len(lead) != 1 else self.out(hidden)


class _Layer(nn.Module):
    """K affine maps, each of which may have a layer norm behind it."""

    def __init__(self, linears: list[nn.Linear], *, norm: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([one.weight.detach() for one in linears]))  # [K, out, in]
        self.bias = nn.Parameter(torch.stack([one.bias.detach() for one in linears]))  # [K, out]
        self.norm: Any = None
        if norm:
            self.norm = nn.ParameterDict(
                {"weight": torch.ones_like(self.bias), "bias": torch.zeros_like(self.bias)}
            )

    def of_one(self, x: Tensor) -> Tensor:
        """One input ``[N, in]`` for all: ``[K, N, out]``."""
        made = F.linear(x, self.weight.flatten(0, 1), self.bias.flatten())
        return made.unflatten(-1, self.bias.shape).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[K, N, in] -> [K, N, out]``."""
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.transpose(1, 2))

    def normed(self, x: Tensor, eps: float) -> Tensor:
        """Each member's layer norm of ``[K, N, out]``."""
        even = F.layer_norm(x, x.shape[-1:], eps=eps)
        return torch.addcmul(self.norm["bias"].unsqueeze(1), even, self.norm["weight"].unsqueeze(1))
