"""Weights of a time loop, whose gradient is computed once, at the end.

Autograd adds a weight's gradient up step by step: for T steps of B rows, T products too thin to be fast and
T passes over the whole weight. Kept until the last step, the rows make one product of T·B rows: the same
sum in another order. DreamerV2 filters a window with it in 0.85 of the time of an update without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wmkit.fast import products
from wmkit.fast.switch import enabled

_Rows = dict[int, list[tuple[Tensor, Tensor]]]  # of each backward pass; one for inputs alone never sums


@contextlib.contextmanager
def loop_weights(x: Tensor) -> Iterator[None]:
    """Inside, :func:`~wmkit.fast.linear` and :func:`~wmkit.fast.block_product` sum a weight's gradient once.

    Args:
        x: any tensor of the computation; only its device is read.

    >>> from wmkit import fast
    >>> weight = torch.ones(1, 2, requires_grad=True)
    >>> with loop_weights(weight):
    ...     (fast.linear(torch.ones(1, 2), weight) + fast.linear(torch.ones(1, 2), weight)).sum().backward()
    >>> weight.grad
    tensor([[2., 2.]])
    """
    if not (torch.is_grad_enabled() and enabled(x, everywhere=True)):
        yield
        return
    before = products.loop_of_this_thread()
    products.set_loop(_Loop())
    try:
        yield
    finally:
        products.set_loop(before)


class _Loop:
    """The weights that one loop has used so far."""

    def __init__(self) -> None:
        self.weights: dict[int, tuple[Tensor, Tensor, _Rows]] = {}

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x`` times ``weight``, which is one and the same tensor at every step."""
        if id(weight) not in self.weights:
            rows: _Rows = {}
            self.weights[id(weight)] = weight, _Sum.apply(weight, bias, rows), rows
        _, token, rows = self.weights[id(weight)]
        return _Product.apply(x, token, weight.detach(), None if bias is None else bias.detach(), rows)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return (products.linear if weight.ndim == 2 else products.block_product)(x, weight, bias)


class _Sum(torch.autograd.Function):
    """Stands for weight and bias; its backward runs when those of all products have."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, rows: _Rows) -> Tensor:
        ctx.rows, ctx.has_bias = rows, bias is not None
        ctx.set_materialize_grads(False)
        return weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        inputs, grads = zip(*ctx.rows.pop(torch._C._current_graph_task_id()), strict=True)
        x, grad = torch.cat(inputs), torch.cat(grads, -2)  # [T*B, K], [T*B, D] or [g, T*B, O]
        if grad.ndim == 2:
            weight = products.transposed_matmul(grad, x)
        else:
            weight = torch.bmm(x.view(len(x), len(grad), -1).permute(1, 2, 0), grad)
        return weight, grad.sum(-2).flatten() if ctx.has_bias else None, None


class _Product(torch.autograd.Function):
    """One product; its backward leaves input and output gradient for the sum."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, token: Tensor, weight: Tensor, bias: Tensor | None, rows: _Rows
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rows = rows
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        kept = (x.flatten(0, -2), grad.flatten(0, -2)) if weight.ndim == 2 else (x, grad)
        ctx.rows.setdefault(torch._C._current_graph_task_id(), []).append(kept)
        inputs = None
        if ctx.needs_input_grad[0] and weight.ndim == 2:
            inputs = products.linear(grad, weight.t())
        elif ctx.needs_input_grad[0]:
            inputs = (grad @ weight.mT).transpose(0, 1).flatten(1)
        return inputs, None, None, None, None  # that it ran is all that _Sum waits for
