"""Two-hot predictions: a categorical over bins, whose probabilities mean and losses share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wmkit.functional import symexp, symlog, two_hot_cross_entropy, two_hot_mean


def total_loss(prediction: Any, *targets: Tensor) -> Tensor:
    """The losses of a prediction to several targets, added up; ``[*B]``.

    A two-hot prediction goes over its bins once.

    >>> from wmkit.nn import SquaredError
    >>> total_loss(SquaredError(torch.zeros(1, 1), 1), torch.ones(1, 1), 2 * torch.ones(1, 1))
    tensor([5.])
    """
    if isinstance(prediction, TwoHot):
        return prediction.loss(*targets)
    return torch.stack([prediction.loss(target) for target in targets]).sum(0)


class TwoHot:
    """A categorical over bins; see :class:`SymexpTwoHot` and :class:`SymlogTwoHot`.

    Args:
        logits: ``[*B, K]`` float; computed with in float32.
        bins: ``[K]`` float.

    Attributes:
        logits: ``[*B, K]`` float32.
    """

    _in_bins: Callable[[Tensor], Tensor]  # a target in the units of the bins

    def __init__(self, logits: Tensor, bins: Tensor) -> None:
        self.logits, self.bins = logits.float(), bins
        self._constant: Tensor | None = None

    @property
    def probs(self) -> Tensor:
        """``[*B, K]`` float32."""
        learns = torch.is_grad_enabled() and self.logits.requires_grad
        return torch.softmax(self.logits, -1) if learns else self._probs()

    def _probs(self) -> Tensor:
        """As constants, made once for the mean and all losses."""
        if self._constant is None:
            self._constant = torch.softmax(self.logits.detach(), -1)
        return self._constant

    def loss(self, *targets: Tensor) -> Tensor:
        """Cross-entropy to the two-hot code of each target ``[*B, 1]``, added up; ``[*B]`` float32."""
        codes = self._in_bins(torch.cat(targets, -1))
        return two_hot_cross_entropy(self.logits, codes, self.bins, self._probs())


class SymlogTwoHot(TwoHot):
    """Scalar read out from bins that are equidistant in symlog space (DreamerV3 of 2023).

    Args:
        logits: ``[*B, K]`` float.
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
        return symexp(two_hot_mean(self.probs, self.bins)).unsqueeze(-1)

    mode = mean


class SymexpTwoHot(TwoHot):
    """Scalar read out from bins in its own units (DreamerV3, danijar/dreamerv3 e3f0224).

    Unlike :class:`SymlogTwoHot`, what lies between two bins and the mean over all of them are
    linear in the quantity itself, so that the prediction is an unbiased expectation.

    Args:
        logits: ``[*B, K]`` float; computed with in float32.
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
        return two_hot_mean(self.probs, self.bins).unsqueeze(-1)

    mode = mean
