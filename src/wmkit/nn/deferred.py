"""Weights used at every step of a time loop, whose gradient is computed once at the end.

Autograd adds a weight's gradient up step by step: for T steps of B rows, T products too thin to
be fast and T passes over the whole weight. Kept until the last step, the rows make one product
of T·B rows. The same sum in another order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wmkit.functional import block_product, linear, transposed_matmul
from wmkit.nn.block_linear import side_by_side
from wmkit.nn.dense import Linear

_Rows = list[tuple[Tensor, Tensor]]
_PLAIN = (nn.Linear, Linear)  # another class may multiply otherwise


class LoopWeight:
    """A weight for many products within one forward pass.

    Args:
        weight: ``[D, K]`` as :func:`torch.nn.functional.linear` takes it, or ``[g, I, O]`` as
            :func:`~wmkit.functional.block_product` does.
        bias: ``[D]`` or ``[g*O]``.

    >>> weight = torch.ones(1, 2, requires_grad=True)
    >>> layer = LoopWeight(weight)
    >>> (layer(torch.ones(1, 2)) + layer(torch.ones(1, 2))).sum().backward()
    >>> weight.grad
    tensor([[2., 2.]])
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        self._rows: _Rows | None = None
        if torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_compiling():
            self._rows = []
            self._token: Tensor = _Sum.apply(weight, bias, self._rows)
            self._values = weight.detach(), None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """``[*B, K] -> [*B, D]``, or ``[B, g*I] -> [g, B, O]``."""
        if self._rows is None or not torch.is_grad_enabled():
            return _product(x, self.weight, self.bias)
        return _Product.apply(x, self._token, *self._values, self._rows)


@contextlib.contextmanager
def loop_weights(*modules: nn.Module) -> Iterator[None]:
    """Inside, the plain linear layers of ``modules`` compute their gradients once.

    >>> layer, x = nn.Linear(2, 1), torch.ones(3, 2)
    >>> with loop_weights(layer):
    ...     (layer(x) + layer(x)).sum().backward()
    >>> layer.bias.grad
    tensor([6.])
    """
    layers: list[Any] = []
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        parts = (part for module in modules for part in module.modules())
        layers = [part for part in parts if type(part) in _PLAIN]
    for layer in layers:
        layer.forward = LoopWeight(layer.weight, layer.bias)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.ndim == 2:
        return linear(x, weight, bias)
    return block_product(x, weight, bias)


class _Sum(torch.autograd.Function):
    """Stands for weight and bias; its backward runs when those of all products have."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, rows: _Rows) -> Tensor:
        ctx.rows, ctx.has_bias = rows, bias is not None
        ctx.set_materialize_grads(False)
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        inputs, grads = zip(*ctx.rows, strict=True)
        x, grad = torch.cat(inputs), torch.cat(grads, -2)  # [T*B, K], [T*B, D] or [g, T*B, O]
        ctx.rows.clear()
        if grad.ndim == 2:
            weight = transposed_matmul(grad, x)
        else:
            weight = torch.bmm(x.view(len(x), len(grad), -1).permute(1, 2, 0), grad)
        return weight, grad.sum(-2).flatten() if ctx.has_bias else None, None


class _Product(torch.autograd.Function):
    """One product; its backward leaves input and output gradient with the others'."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, token: Tensor, weight: Tensor, bias: Tensor | None, rows: _Rows
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rows = rows
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        if weight.ndim == 2:  # a cell may have more dimensions than rows
            ctx.rows.append((x.flatten(0, -2), grad.flatten(0, -2)))
        else:
            ctx.rows.append((x, grad))
        inputs = None
        if ctx.needs_input_grad[0]:
            by_block = weight.ndim == 3
            inputs = side_by_side(grad @ weight.mT) if by_block else linear(grad, weight.t())
        return inputs, None, None, None, None  # that it ran is all that _Sum waits for
