"""A last layer over many bins, multiplied out and worked on block by block.

Hidden layers are narrow and bins are many. The logits of all rows of a roll-out are more than a CPU's caches
hold, and each pass over them waits for memory; a block is done with while it is near.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.fast.products import linear, matmul, transposed_matmul
from wmkit.fast.switch import enabled, learns

_BLOCK = 1024  # rows; with 256 columns a megabyte
_EVEN = 8  # columns; a product of 256 takes less time than one of 255


class _Kept(NamedTuple):
    """What a loss and its gradient need of a block of rows."""

    logits: Tensor  # [n, K]
    probs: Tensor  # [n, K]


class LastLayer:
    """Stands for the logits ``[*B, K]`` of a linear layer.

    Args:
        hidden: ``[*B, D]`` float32.
        weight: ``[K, D]``.
        bias: ``[K]``.

    >>> layer = LastLayer(torch.ones(5, 2), torch.eye(3, 2), torch.zeros(3))
    >>> layer.logits[0], layer.reduce(lambda probs: probs.argmin(-1))
    (tensor([1., 1., 0.]), tensor([2, 2, 2, 2, 2]))
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.hidden, self.weight, self.bias, self.width = hidden, weight, bias, len(weight)
        if spare := -self.width % _EVEN:  # columns that say never
            self.weight = F.pad(weight, (0, 0, 0, spare))
            self.bias = F.pad(bias, (0, spare), value=-math.inf)
        self.learns = learns(hidden, weight)
        self._kept: list[_Kept] = []

    @staticmethod
    def helps(hidden: Tensor) -> bool:
        """Whether it is of use: for many rows on a CPU, in float32."""
        many = hidden.dtype == torch.float32 and hidden.shape[:-1].numel() >= 2 * _BLOCK
        return many and enabled(hidden)

    @property
    def logits(self) -> Tensor:
        """``[*B, K]``, with gradient."""
        return linear(self.hidden, self.weight, self.bias)[..., : self.width]

    @torch.no_grad()
    def reduce(self, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """``fn`` of all probabilities, as constants ``[*B]``; it maps rows ``[n, K]`` to ``[n]``."""
        if self._kept:
            parts = [fn(block.probs[:, : self.width]) for block in self._kept]
        else:
            parts = [fn(self._block(x)[:, : self.width]) for x in _rows(self.hidden).split(_BLOCK)]
        return torch.cat(parts).view(self.hidden.shape[:-1])

    def _block(self, x: Tensor) -> Tensor:
        """The probabilities of some rows, kept if a loss may want them."""
        logits = linear(x, self.weight, self.bias)
        probs = torch.softmax(logits, -1)
        if self.learns:
            self._kept.append(_Kept(logits, probs))
        return probs

    def cross_entropy(self, index: Tensor, mass: Tensor) -> Tensor:
        """:func:`~wmkit.fast.coded_cross_entropy` of the logits, ``[*B]``, with gradient."""
        if not self.learns:
            logits = self.logits
            return coded(logits, torch.softmax(logits, -1), index, mass)
        if not self._kept:
            self.reduce(lambda probs: probs[:, 0])
        layer = _rows(self.hidden), self.weight, self.bias
        loss = _LayerCrossEntropy.apply(*layer, _rows(index), _rows(mass), self._kept)
        return loss.view(self.hidden.shape[:-1])


def coded(logits: Tensor, probs: Tensor, index: Tensor, mass: Tensor) -> Tensor:
    """Cross-entropy ``[*B]`` to codes of ``mass [*B, M]`` on the bins ``index``, without gradient."""
    # The largest probability is at least 1 / K: its logarithm is exact. Logits are taken apart from
    # the largest before anything else, or their common level would round the loss.
    below = logits.amax(-1, keepdim=True) - logits.gather(-1, index)  # [*B, M]
    return torch.sub((mass * below).sum(-1), probs.amax(-1).log(), alpha=index.shape[-1] // 2)


def _rows(x: Tensor) -> Tensor:
    """``[*B, D] -> [N, D]``."""
    return x.reshape(-1, x.shape[-1])


class _LayerCrossEntropy(torch.autograd.Function):
    """Loss and gradient of the layer by blocks."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, index: Tensor, mass: Tensor, kept: list[_Kept]
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, index, mass)
        ctx.probs = [block.probs for block in kept]
        blocks = zip(kept, index.split(_BLOCK), mass.split(_BLOCK), strict=True)
        return torch.cat([coded(*block, i, m) for block, i, m in blocks])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, index, mass = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        whole, code = grad * (index.shape[-1] // 2), -mass * grad
        d_hidden, d_weight, d_bias = [], torch.zeros_like(weight), weight.new_zeros(len(weight))
        rows = (tensor.split(_BLOCK) for tensor in (hidden, whole, index, code))
        for p, x, w, i, c in zip(ctx.probs, *rows, strict=True):
            d_logits = torch.mul(p, w).scatter_add_(-1, i, c)
            d_hidden.append(matmul(d_logits, weight))
            d_weight.add_(transposed_matmul(d_logits, x))
            d_bias.add_(d_logits.sum(0))
        return torch.cat(d_hidden), d_weight, d_bias, None, None, None
