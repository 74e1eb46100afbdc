"""Matrix products: by the library that is quickest on this processor, and with one-hot vectors by class.

For products of float32 on a CPU PyTorch calls MKL, which leaves AVX-512 to Intel's processors. For
convolutions it calls oneDNN, which does not ask who made them: on an AMD processor with AVX-512 the
same product takes less than half the time there (``docs/performance.md``). What is large enough goes
that way, and with it its gradient; the numbers differ by the order of a sum. Everywhere else these
are PyTorch's own functions.

``torch.backends.mkldnn.flags(enabled=False)`` switches to MKL, as it does for convolutions.

A product with a one-hot vector picks a column of the matrix: over G of them it is a sum of G columns
instead of a product with G·C numbers.
"""

from __future__ import annotations

import functools
import math
import platform
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from wmkit.fast.switch import enabled, learns

_WORTH = 2**20  # multiplications of a product; below, the call costs what the arithmetic saves
_ROWS = 4  # of a product; with fewer, reading the weight is all there is to do
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

_loops = threading.local()  # of each thread the loop that it is in, see wmkit.fast.loop_weights


def loop_of_this_thread() -> Any:
    """What :func:`~wmkit.fast.loop_weights` set, or none."""
    return None if torch.compiler.is_compiling() else getattr(_loops, "now", None)


def set_loop(loop: Any) -> None:
    """For :func:`~wmkit.fast.loop_weights`."""
    _loops.now = loop


@functools.cache
def onednn_is_quicker() -> bool:
    """Whether oneDNN is the faster of the two here: on AMD's processors with AVX-512."""
    if not _HAS_ONEDNN or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    listed = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (listed.read_text() if listed.is_file() else platform.processor())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear`.

    Args:
        x: ``[*B, K]``.
        weight: ``[D, K]``.
        bias: ``[D]``.

    Returns:
        ``[*B, D]``.

    >>> linear(torch.ones(2, 3), torch.ones(1, 3), torch.ones(1))
    tensor([[4.],
            [4.]])
    """
    loop = loop_of_this_thread()
    if loop is not None and learns(weight):
        return loop.product(x, weight, bias)
    if not _by_onednn(x, weight, len(weight) * x.numel()):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias) if learns(x, weight, bias) else _onednn_linear(x, weight, bias)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of matrices ``[N, K]`` and ``[K, M]``; with gradient.

    >>> matmul(torch.ones(1, 2), torch.ones(2, 1))
    tensor([[2.]])
    """
    return linear(a, b.t())


def transposed_matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a.t() @ b`` of ``[K, N]`` and ``[K, M]``, many rows to few numbers: the gradient of a weight.

    >>> transposed_matmul(torch.ones(5, 1), torch.ones(5, 2))
    tensor([[5., 5.]])
    """
    if a.shape[1] > b.shape[1]:  # the first factor is copied, so let it be the narrower one
        return linear(b.t(), a.t()).t()
    return linear(a.t(), b.t())


def block_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply block k of the input with matrix k, and leave the results block by block.

    Args:
        x: ``[N, g*I]``, blocks one after the other.
        weight: ``[g, I, O]``.
        bias: ``[g*O]``.

    Returns:
        ``[g, N, O]``. Where blocks are read apart anyway, putting them side by side would be a copy; where
        no gradient is wanted and oneDNN is the faster, they lie side by side already.

    >>> weight = torch.tensor([[[10.0]], [[100.0]]])  # two blocks, one number each
    >>> block_product(torch.tensor([[1.0, 2.0]]), weight).flatten()
    tensor([ 10., 200.])
    """
    loop = loop_of_this_thread()
    if loop is not None and learns(weight):
        return loop.product(x, weight, bias)
    blocks, rows, columns = weight.shape
    if not learns(x, weight) and _by_onednn(x, weight, len(x) * weight.numel()):
        image = x.reshape(1, len(x), 1, -1).permute(0, 3, 1, 2)  # rows as pixels, blocks as groups
        kernel = weight.mT.reshape(-1, rows, 1, 1)
        out = torch.mkldnn_convolution(image, kernel, bias, (0, 0), (1, 1), (1, 1), blocks)
        return out.permute(0, 2, 3, 1).reshape(len(x), blocks, columns).transpose(0, 1)
    per_block = x.view(-1, blocks, rows).transpose(0, 1)  # [g, N, I]
    if bias is None:
        return torch.bmm(per_block, weight)
    return torch.baddbmm(bias.view(blocks, 1, columns), per_block, weight)


def one_hot_linear(index: Tensor, weight: Tensor) -> Tensor:
    """``F.linear`` of one-hot groups given by their classes; no gradient.

    Args:
        index: ``[*B, G]`` int64, class of each group.
        weight: ``[D, G*C]``. Its transpose is read: one that lies so in memory already is not copied.

    Returns:
        ``[*B, D]``.

    >>> weight = torch.arange(8.0).view(2, 4)
    >>> one_hot_linear(torch.tensor([[1, 0]]), weight)  # columns 1 and 2 + 0
    tensor([[ 3., 11.]])
    """
    groups, weight = index.shape[-1], weight.detach()
    classes = weight.shape[1] // groups
    if not enabled(weight, autocast=True, everywhere=True, compiled=True):
        one_hot = F.one_hot(index, classes).flatten(-2).to(weight.dtype)
        return F.linear(one_hot, weight)
    rows = index + torch.arange(groups, device=index.device) * classes
    picked = F.embedding_bag(rows.reshape(-1, groups), weight.t().contiguous(), mode="sum")
    return picked.view(*index.shape[:-1], weight.shape[0])


def linear_of_parts(
    parts: Sequence[Tensor], classes: Sequence[Tensor | None], weight: Tensor, made: Tensor | None = None
) -> Tensor:
    """``F.linear(torch.cat(parts, -1), weight)``.

    Where the parts want no gradient, one-hot ones whose classes are known are looked up and nothing is
    concatenated.

    Args:
        parts: each ``[*B, D_i]``.
        classes: of each part ``[*B, G]`` int64 if it is G one-hot vectors side by side, or nothing.
        weight: ``[D, sum of D_i]``.
        made: the result without gradient, where it is there already.

    Returns:
        ``[*B, D]``, with gradient.

    >>> state, belief = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0]])
    >>> linear_of_parts([state, belief], [torch.tensor([[1]]), None], torch.tensor([[10.0, 20.0, 1.0]]))
    tensor([[22.]])
    """
    known = any(index is not None for index in classes)
    if not known or learns(*parts) or not enabled(weight, autocast=True, everywhere=True, compiled=True):
        return linear(torch.cat(list(parts), -1), weight)
    if not learns(weight):
        return sum_of_parts(parts, classes, weight) if made is None else made
    return _Parts.apply(weight, tuple(classes), made, *parts)


def sum_of_parts(
    parts: Sequence[Tensor],
    classes: Sequence[Tensor | None],
    weight: Tensor | Sequence[Tensor],
    out: Tensor | None = None,
) -> Tensor:
    """The sum over parts of a product or of picked rows.

    Args:
        parts: see :func:`linear_of_parts`.
        classes: likewise.
        weight: ``[D, sum of D_i]``, or the columns ``[D, D_i]`` of each part.
        out: where two parts' sum ``[*B, D]`` is written, if given.
    """
    columns = weight.split([x.shape[-1] for x in parts], 1) if isinstance(weight, Tensor) else weight
    products = []
    for part, index, column in zip(parts, classes, columns, strict=True):
        if index is not None:
            products.append(one_hot_linear(index, column))
        else:  # in rows: a product with a slice of a larger tensor would go batch by batch
            products.append(linear(_rows(part), column).view(*part.shape[:-1], len(column)))
    if out is not None:
        return torch.add(*products, out=out)
    total, *others = products
    for product in others:
        total = total + product
    return total


class _Parts(torch.autograd.Function):
    """:func:`sum_of_parts` whose gradient goes to the weight alone."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, classes: tuple[Tensor | None, ...], made: Tensor | None, *parts: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*parts)
        return sum_of_parts(parts, classes, weight) if made is None else made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, parts = _rows(grad), ctx.saved_tensors
        weight = torch.cat([transposed_matmul(rows, _rows(part)) for part in parts], -1)
        return weight, None, None, *(None for _ in parts)


def _rows(x: Tensor) -> Tensor:
    """``[*B, D] -> [N, D]``, also of an empty D."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _by_onednn(x: Tensor, weight: Tensor, multiplications: int) -> bool:
    return (
        multiplications >= _WORTH
        and x.numel() >= _ROWS * x.shape[-1]
        and x.dtype == weight.dtype == torch.float32
        and enabled(x)
        and onednn_is_quicker()
        and bool(torch.backends.mkldnn.enabled)
    )


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # oneDNN has no fast way for a part of a larger matrix
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        d_x = linear(grad, weight.t()) if ctx.needs_input_grad[0] else None
        d_weight = transposed_matmul(rows, x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        d_bias = rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return d_x, d_weight, d_bias


def _linear_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _convolution_flops(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return conv_flop_count(x, weight, out_shape)


def _count(operation: Any, formula: Any) -> None:
    """Tell PyTorch's counter of FLOPs, which would not know of these products otherwise."""
    if operation not in flop_registry:
        register_flop_formula(operation)(formula)


if _HAS_ONEDNN:
    _count(torch.ops.mkldnn._linear_pointwise, _linear_flops)
    _count(torch.ops.aten.mkldnn_convolution, _convolution_flops)
