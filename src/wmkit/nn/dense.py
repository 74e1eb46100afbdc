"""Dense layers: what they read, linear maps, dropout, stacks in a :class:`LayerStyle`, maps in blocks.

A :class:`Feature` is what heads and layers read: parts side by side, with what is known of those that are
one-hot. A stack is of linear, norm, activation. In a :class:`BlockLinear` each block of the output reads only
its own block of the input: DreamerV3 since 2024 (danijar/dreamerv3 e3f0224), where a belief of U numbers in g
blocks costs U²/g weights instead of U².
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from wmkit import fast
from wmkit.errors import ConfigError
from wmkit.fast import block_product
from wmkit.nn.init import init_hidden, init_output, truncated_normal_
from wmkit.nn.style import STYLE_2023, Activation, LayerStyle


class Feature:
    """Parts side by side, of any leading dimensions; layers take it wherever they take a tensor.

    A state is G one-hot vectors of C classes; a belief is numbers. A layer reads either, both, or those of
    two steps.

    Args:
        parts: each ``[*B, D]`` float, in the order in which a layer's columns read them.
        classes: for each part ``[*B, G]`` int64, the class of each of its one-hot groups, or ``None`` where
            it is not one-hot or its classes are not known; of no part if not given.
        products: what some weights make of it, where that is known (:mod:`wmkit.fast`).

    >>> state, belief = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0]])
    >>> feature = Feature(state, belief, classes=[torch.tensor([[1]]), None])
    >>> with torch.no_grad():
    ...     feature.linear(torch.tensor([[10.0, 20.0, 1.0]]))
    tensor([[22.]])
    """

    def __init__(
        self, *parts: Tensor, classes: Sequence[Tensor | None] = (), products: fast.Products | None = None
    ) -> None:
        self.parts, self.products = parts, products
        self.classes = tuple(classes) or (None,) * len(parts)

    @property
    def dense(self) -> Tensor:
        """``[*B, sum of D]``."""
        return torch.cat(self.parts, -1) if len(self.parts) > 1 else self.parts[0]

    def linear(self, weight: Tensor) -> Tensor:
        """``F.linear(self.dense, weight)``."""
        made = None if self.products is None else self.products.of(weight)
        return fast.linear_of_parts(self.parts, self.classes, weight, made)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Feature:
        """The same of every part, e.g. a slice of the leading dimensions."""
        classes = [None if known is None else fn(known) for known in self.classes]
        products = None if self.products is None else self.products._replace(made=fn(self.products.made))
        return Feature(*map(fn, self.parts), classes=classes, products=products)


class Linear(nn.Linear):
    """:class:`torch.nn.Linear` with the same weights, initialisation and results.

    >>> import torch
    >>> Linear(3, 8)(torch.zeros(2, 3)).shape
    torch.Size([2, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, in_features] -> [*B, out_features]``."""
        return fast.linear(x, self.weight, self.bias)


class SlotLinear(Linear):
    """One affine map, applied to each of several parts side by side.

    Args:
        in_dim: width of all parts together.
        out_dim: of what is made of them.
        slots: how many.

    Raises:
        ConfigError: ``slots`` does not divide a width.

    >>> import torch
    >>> SlotLinear(6, 8, slots=2)(torch.zeros(3, 6)).shape
    torch.Size([3, 8])
    """

    def __init__(self, in_dim: int, out_dim: int, *, slots: int) -> None:
        if slots < 1 or in_dim % slots or out_dim % slots:
            raise ConfigError(
                f"a layer {in_dim} -> {out_dim} cannot be cut into {slots} equal slots: wanted a divisor of "
                "both widths; change slots or the widths"
            )
        super().__init__(in_dim // slots, out_dim // slots)
        self.slots = slots

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, in_dim] -> [*B, out_dim]``."""
        return super().forward(x.unflatten(-1, (self.slots, self.in_features))).flatten(-2)


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
        made = self.norm(x if self.linear.bias is None else x + self.linear.bias)
        return self.style.activate(made, fresh=made is not x)

    def forward(self, x: Tensor | Feature) -> Tensor:
        """``[*B, in_dim] -> [*B, out_dim]``."""
        if isinstance(x, Tensor):
            return self.style.activate(self.norm(self.linear(x)), fresh=True)
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
        norm_output: put the style's norm behind the output layer (TD-MPC2).

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
        norm_output: bool = False,
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
            if norm_output:
                self.append(style.make_norm(out_dim))


def side_by_side(x: Tensor) -> Tensor:
    """``[g, N, O] -> [N, g*O]``.

    >>> side_by_side(torch.tensor([[[1.0]], [[2.0]]]))
    tensor([[1., 2.]])
    """
    return x.transpose(0, 1).flatten(1)


class BlockLinear(nn.Module):
    """An affine map in blocks (DreamerV3, danijar/dreamerv3 e3f0224).

    The weights start as those of a dense layer of the same width would: the variance is one
    over the full ``in_dim``, not over the ``in_dim / blocks`` numbers that an output sees.

    Args:
        in_dim: input width.
        out_dim: output width.
        blocks: how many blocks g.

    Attributes:
        weight: ``[g, in_dim/g, out_dim/g]`` float.
        bias: ``[out_dim]`` float.

    Raises:
        ConfigError: ``blocks`` does not divide a width.

    >>> layer = BlockLinear(8, 12, 4)
    >>> layer.weight.shape, layer(torch.zeros(2, 8)).shape
    (torch.Size([4, 2, 3]), torch.Size([2, 12]))
    """

    def __init__(self, in_dim: int, out_dim: int, blocks: int) -> None:
        super().__init__()
        if blocks < 1 or in_dim % blocks or out_dim % blocks:
            raise ConfigError(
                f"block-linear layer {in_dim} -> {out_dim} cannot be cut into {blocks} equal blocks: "
                "wanted a divisor of both widths; change blocks or the widths"
            )
        self.weight = nn.Parameter(torch.empty(blocks, in_dim // blocks, out_dim // blocks))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        truncated_normal_(self.weight, math.sqrt(1.0 / in_dim))

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, in_dim] -> [*B, out_dim]``."""
        product = block_product(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return side_by_side(product).view(*x.shape[:-1], -1)
