"""Two-hot predictions: a categorical over bins, whose probabilities mean and losses share.

Hidden layers are narrow and bins are many. Over all rows of a roll-out the logits are more than a
CPU's caches hold, and every pass over them waits for memory; :class:`LastLayer` makes them block by
block and does with a block all there is to do while it is near.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wmkit.functional import (
    linear,
    matmul,
    symexp,
    symlog,
    transposed_matmul,
    two_hot,
    two_hot_cross_entropy,
    two_hot_mean,
    two_hot_mean_wide,
)
from wmkit.functional.two_hot import coded_loss
from wmkit.nn.features import rows_are_free

_BLOCK = 1024  # rows; with 256 columns a megabyte


class _Kept(NamedTuple):
    """What a loss and its gradient need of a block of rows."""

    logits: Tensor  # [n, K]
    probs: Tensor  # [n, K]
    top: Tensor  # [n] largest logit
    most: Tensor  # [n] largest probability


class LastLayer:
    """A linear layer over bins that is multiplied out block by block.

    Args:
        hidden: ``[*B, D]`` float32.
        weight: ``[K, D]``.
        bias: ``[K]``; minus infinity where a column is no bin.

    >>> layer = LastLayer(torch.ones(5, 2), torch.eye(3, 2), torch.zeros(3))
    >>> layer.logits[0], layer.reduce(lambda probs: probs.argmin(-1))
    (tensor([1., 1., 0.]), tensor([2, 2, 2, 2, 2]))
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.learns = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
        self._kept: list[_Kept] = []

    @staticmethod
    def helps(hidden: Tensor) -> bool:
        """Whether blocks are of use: on a CPU, in float32, outside of a compiled graph."""
        plain = hidden.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return plain and rows_are_free(hidden)

    @property
    def logits(self) -> Tensor:
        """``[*B, K]``, with gradient."""
        return linear(self.hidden, self.weight, self.bias)

    @torch.no_grad()
    def reduce(self, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """``fn`` of all probabilities, as constants ``[*B]``; of some rows ``[n, K]`` it gives ``[n]``."""
        if self._kept:
            parts = [fn(block.probs) for block in self._kept]
        else:
            parts = [self._block(x, fn) for x in _rows(self.hidden).split(_BLOCK)]
        return torch.cat(parts).view(self.hidden.shape[:-1])

    def _block(self, x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """``fn`` of the probabilities of some rows, kept if a loss may want them."""
        logits = linear(x, self.weight, self.bias)
        probs = torch.softmax(logits, -1)
        if self.learns:
            self._kept.append(_Kept(logits, probs, logits.amax(-1), probs.amax(-1)))
        return fn(probs)

    def cross_entropy(self, index: Tensor, mass: Tensor) -> Tensor:
        """To codes of ``mass [*B, M]`` on the bins ``index [*B, M]``; ``[*B]``, with gradient."""
        if not self._kept:
            self.reduce(lambda probs: probs[..., 0])
        layer = _rows(self.hidden), self.weight, self.bias
        loss = _LayerCrossEntropy.apply(*layer, _rows(index), _rows(mass), self._kept)
        return loss.view(self.hidden.shape[:-1])


def _rows(x: Tensor) -> Tensor:
    """``[*B, D] -> [N, D]``."""
    return x.reshape(-1, x.shape[-1])


class _LayerCrossEntropy(torch.autograd.Function):
    """As :func:`~wmkit.functional.two_hot_cross_entropy`, with the layer's gradient made by blocks."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, index: Tensor, mass: Tensor, kept: list[_Kept]
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, index, mass)
        ctx.probs = [block.probs for block in kept]
        codes = zip(kept, index.split(_BLOCK), mass.split(_BLOCK), strict=True)
        return torch.cat([coded_loss(k.logits, k.top, k.most, i, m) for k, i, m in codes])

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


class TwoHot:
    """A categorical over bins; see :class:`SymexpTwoHot` and :class:`SymlogTwoHot`.

    Args:
        logits: ``[*B, K]`` float, or wider: what is beyond the bins is minus infinity
            (:class:`~wmkit.heads.TwoHotHead`). Or the layer that makes them.
        bins: ``[K]`` float.
    """

    _in_bins: Callable[[Tensor], Tensor]  # a target in the units of the bins

    def __init__(self, logits: Tensor | LastLayer, bins: Tensor) -> None:
        self._layer = logits if isinstance(logits, LastLayer) else None
        self._given = logits if isinstance(logits, Tensor) else None
        self.bins = bins
        self._constant: Tensor | None = None

    @property
    def _logits(self) -> Tensor:
        if self._given is not None:
            return self._given.float()
        assert self._layer is not None
        logits = self._layer.logits
        if torch.is_grad_enabled() or not self._layer.learns:  # or a gradient would be missing later
            self._given = logits
        return logits

    @property
    def logits(self) -> Tensor:
        """``[*B, K]`` float32."""
        return self._logits[..., : len(self.bins)]

    @property
    def probs(self) -> Tensor:
        """``[*B, K]`` float32."""
        learns = torch.is_grad_enabled() and self._logits.requires_grad
        probs = torch.softmax(self._logits, -1) if learns else self._probs()
        return probs[..., : len(self.bins)]

    def _probs(self) -> Tensor:
        """As constants and, maybe, wider."""
        if self._constant is None:
            self._constant = torch.softmax(self._logits.detach(), -1)
        return self._constant

    def _reduced(self, mean: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``mean(probs, bins)``, ``[*B]``."""
        if self._layer is None or (self._layer.learns and torch.is_grad_enabled()):
            return mean(self.probs, self.bins)
        return self._layer.reduce(lambda probs: mean(probs[..., : len(self.bins)], self.bins))

    def loss(self, *targets: Tensor) -> Tensor:
        """Cross-entropy to the two-hot code of each target ``[*B, 1]``, added up; ``[*B]`` float32."""
        return self._loss(self._in_bins(torch.cat(targets, -1)))

    def _loss(self, target: Tensor) -> Tensor:
        """Cross-entropy to targets ``[*B, N]`` in the units of the bins; ``[*B]``."""
        if self._layer is None or not (self._layer.learns and torch.is_grad_enabled()):
            return two_hot_cross_entropy(self._logits, target, self.bins, self._probs())
        index, mass = two_hot(target, self.bins)
        return self._layer.cross_entropy(index.flatten(-2), mass.flatten(-2))


class SymlogTwoHot(TwoHot):
    """Scalar read out from bins that are equidistant in symlog space (DreamerV3 of 2023).

    Args:
        logits: ``[*B, K]`` float, or the layer that makes them.
        bins: ``[K]`` float, symlog units.

    >>> from wmkit.functional import symmetric_bins
    >>> p = SymlogTwoHot(torch.zeros(2, 255), symmetric_bins(20.0, 255))
    >>> p.mean
    tensor([[0.],
            [0.]])
    >>> p.loss(torch.ones(2, 1))
    tensor([5.5413, 5.5413])
    """

    _in_bins = staticmethod(symlog)

    @property
    def mean(self) -> Tensor:
        """``[*B, 1]``, in the quantity's own units: symexp of the mean in symlog space."""
        return symexp(self._reduced(two_hot_mean)).unsqueeze(-1)

    mode = mean


class SymexpTwoHot(TwoHot):
    """Scalar read out from bins in its own units (DreamerV3, danijar/dreamerv3 e3f0224).

    Unlike :class:`SymlogTwoHot`, what lies between two bins and the mean over all of them are
    linear in the quantity itself, so that the prediction is an unbiased expectation.

    Args:
        logits: ``[*B, K]`` float, or the layer that makes them; computed with in float32.
        bins: ``[K]`` float32, the quantity's own units (:func:`~wmkit.functional.symexp_bins`).

    >>> from wmkit.functional import symexp_bins
    >>> p = SymexpTwoHot(torch.zeros(2, 255), symexp_bins(20.0, 255))
    >>> p.mean
    tensor([[0.],
            [0.]])
    >>> p.loss(torch.ones(2, 1))
    tensor([5.5413, 5.5413])
    """

    _in_bins = staticmethod(Tensor.float)

    @property
    def mean(self) -> Tensor:
        """``[*B, 1]`` float32, the expected bin; exactly zero where all logits are equal."""
        return self._reduced(two_hot_mean_wide).unsqueeze(-1)

    mode = mean
