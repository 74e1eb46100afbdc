"""Predictions over choices: classes, flags, and numbers as a categorical over bins.

Classes are observations scored by cross-entropy, or policies over discrete actions. A two-hot prediction is a
categorical over bins, whose probabilities mean and losses share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit import fast
from wmkit.functional import (
    check_equal,
    check_samples,
    check_shape,
    one_hot,
    sample_index,
    sample_one_hot,
    straight_through,
    symexp,
    symlog,
    two_hot,
    two_hot_cross_entropy,
    two_hot_mean,
    unimix_probs,
    widened,
)


class Categorical:
    """One class, or several that are independent, scored by cross-entropy.

    The discrete observations of DreamerV3 (danijar/dreamerv3 e3f0224).

    Args:
        logits: ``[*B, *event, C]`` float.
        event_dims: how many dimensions before the last are one event.

    >>> Categorical(torch.zeros(2, 3, 4), event_dims=1).loss(torch.tensor([[0, 1, 2], [3, 4, -1]]))
    tensor([4.1589, 1.3863])
    """

    def __init__(self, logits: Tensor, event_dims: int) -> None:
        self.logits, self.event_dims = logits, event_dims

    @property
    def mean(self) -> Tensor:
        """Probabilities, ``[*B, *event, C]`` float32."""
        return torch.softmax(self.logits.float(), -1)

    @property
    def mode(self) -> Tensor:
        """The likeliest classes, ``[*B, *event]`` int64."""
        return self.logits.argmax(-1)

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy to the classes ``target`` ``[*B, *event]``, summed over the event; ``[*B]``.

        A value outside, as -1 where there is none, is missing and costs nothing, as an encoder reads zeros.
        """
        check_shape("Categorical.loss", "target", target, self.logits.shape[:-1], "[*B, *event]")
        log_probs = torch.log_softmax(self.logits.float(), -1)
        index = target.long()
        missing = (index < 0) | (index >= self.logits.shape[-1])
        index = index.masked_fill(missing, 0).unsqueeze(-1)
        picked = log_probs.gather(-1, index).squeeze(-1).masked_fill(missing, 0.0)  # [*B, *event]
        return -(picked.flatten(-self.event_dims).sum(-1) if self.event_dims else picked)


class OneHotCategorical:
    """A discrete choice with a share of uniform exploration.

    Args:
        logits: ``[*B, A]`` float; computed with in float32.
        unimix: share of the uniform.

    >>> policy = OneHotCategorical(torch.zeros(1, 4), unimix=0.01)
    >>> policy.entropy
    tensor([1.3863])
    >>> policy.sample(torch.tensor([[0.3]]))
    tensor([[0., 1., 0., 0.]])
    """

    def __init__(self, logits: Tensor, unimix: float = 0.0) -> None:
        self.probs = unimix_probs(logits, unimix)  # [*B, A]
        self._logits = None if unimix else widened(logits)

    @property
    def log_probs(self) -> Tensor:
        """``[*B, A]``, finite also where a probability is too small for a float."""
        return torch.log(self.probs) if self._logits is None else torch.log_softmax(self._logits, -1)

    @property
    def entropy(self) -> Tensor:
        """Nats, ``[*B]``."""
        return -(self.probs * self.log_probs).sum(-1)

    @property
    def mode(self) -> Tensor:
        """The likeliest action as one-hot, ``[*B, A]``."""
        return one_hot(self.probs.argmax(-1), self.probs.shape[-1], self.probs.dtype)

    def sample(self, uniform: Tensor | None = None) -> Tensor:
        """One-hot sample ``[*B, A]`` from uniforms ``[*B, 1]`` (drawn here if none are given)."""
        if uniform is None:
            uniform = torch.rand_like(self.probs[..., :1])
        return sample_one_hot(self.probs, uniform)

    def rsample(self, uniform: Tensor | None = None) -> Tensor:
        """:meth:`sample` with the gradient of the probabilities (straight-through)."""
        return straight_through(self.sample(uniform), self.probs)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability of a one-hot ``action`` ``[*B, A]``; ``[*B]``."""
        check_samples("OneHotCategorical.log_prob", "action", action, self.probs.shape, "[*B, A]")
        return (self.log_probs * action).sum(-1)


class Bernoulli:
    """A flag.

    Args:
        logits: ``[*B, 1]`` float; computed with in float32.

    >>> Bernoulli(torch.zeros(1, 1)).mean
    tensor([[0.5000]])
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.float()

    @property
    def mean(self) -> Tensor:
        """Probability that the flag is set, ``[*B, 1]``."""
        return torch.sigmoid(self.logits)

    @property
    def mode(self) -> Tensor:
        """The likelier value, ``[*B, 1]`` bool."""
        return self.logits > 0

    def sample(self) -> Tensor:
        """One draw of the flag, ``[*B, 1]`` bool."""
        return torch.rand_like(self.logits) < self.mean

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy to ``target`` ``[*B, 1]`` (bool or soft label); ``[*B]``."""
        check_equal("Bernoulli.loss", "[*B, 1]", logits=self.logits, target=target)
        return F.binary_cross_entropy_with_logits(
            self.logits, target.to(self.logits.dtype), reduction="none"
        ).squeeze(-1)


class OneOf:
    """A number that is one of a few (IRIS's reward, arXiv:2209.00588).

    Args:
        logits: ``[*B, K]`` float; computed with in float32.
        values: ``[K]`` float.

    >>> prediction = OneOf(torch.zeros(1, 3), torch.tensor([-1.0, 0.0, 1.0]))
    >>> prediction.mean, prediction.loss(torch.tensor([[1.0]]))
    (tensor([[0.]]), tensor([1.0986]))
    """

    def __init__(self, logits: Tensor, values: Tensor) -> None:
        self.logits, self.values = logits.float(), values

    @property
    def mean(self) -> Tensor:
        """``[*B, 1]``."""
        return (torch.softmax(self.logits, -1) * self.values).sum(-1, keepdim=True)

    @property
    def mode(self) -> Tensor:
        """The likeliest, ``[*B, 1]``."""
        return self.values[self.logits.argmax(-1, keepdim=True)]

    def sample(self) -> Tensor:
        """One draw, ``[*B, 1]``."""
        uniform = torch.rand_like(self.logits[..., :1])
        return self.values[sample_index(torch.softmax(self.logits, -1), uniform)].unsqueeze(-1)

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy to the nearest of the numbers, ``target`` ``[*B, 1]``; ``[*B]``."""
        check_shape("OneOf.loss", "target", target, (*self.logits.shape[:-1], 1), "[*B, 1]")
        nearest = (target - self.values).abs().argmin(-1, keepdim=True)
        return -torch.log_softmax(self.logits, -1).gather(-1, nearest).squeeze(-1)


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
        logits: ``[*B, K]`` float; computed with in float32. Or the layer that makes them.
        bins: ``[K]`` float.
    """

    _in_bins: Callable[[Tensor], Tensor]  # a target in the units of the bins

    def __init__(self, logits: Tensor | fast.LastLayer, bins: Tensor) -> None:
        self._layer = logits if isinstance(logits, fast.LastLayer) else None
        self._given = logits.float() if isinstance(logits, Tensor) else None
        self.bins = bins
        self._constant: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """``[*B, K]`` float32."""
        if self._given is not None:
            return self._given
        assert self._layer is not None
        return self._layer.logits

    @property
    def probs(self) -> Tensor:
        """``[*B, K]`` float32."""
        logits = self.logits
        learns = torch.is_grad_enabled() and logits.requires_grad
        return torch.softmax(logits, -1) if learns else self._probs()

    def _probs(self) -> Tensor:
        """As constants, made once for the mean and all losses."""
        if self._constant is None:
            self._constant = torch.softmax(self.logits.detach(), -1)
        return self._constant

    def _mean(self) -> Tensor:
        """In the units of the bins, ``[*B]``."""
        if self._layer is None or (self._layer.learns and torch.is_grad_enabled()):
            return two_hot_mean(self.probs, self.bins)
        return self._layer.reduce(lambda probs: two_hot_mean(probs, self.bins))

    def loss(self, *targets: Tensor) -> Tensor:
        """Cross-entropy to the two-hot code of each target ``[*B, 1]``, added up; ``[*B]`` float32."""
        read = self.logits if self._layer is None else self._layer.hidden  # logits of a layer are a product
        for target in targets:
            check_shape("TwoHot.loss", "target", target, (*read.shape[:-1], 1), "[*B, 1]")
        codes = self._in_bins(torch.cat(targets, -1))
        if self._layer is not None:
            index, mass = two_hot(codes, self.bins)
            return self._layer.cross_entropy(index.flatten(-2), mass.flatten(-2))
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
        return symexp(self._mean()).unsqueeze(-1)

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
        return self._mean().unsqueeze(-1)

    mode = mean
