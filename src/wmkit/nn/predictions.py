"""What heads return: a prediction that knows its loss, its mean, its mode and how to sample.

Plain tensors inside, no ``torch.distributions``: nothing validates, nothing synchronises.
Every ``loss`` is per sample, in nats or squared units, with the event dimension removed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.functional import (
    autocast_dtype,
    one_hot,
    sample_one_hot,
    straight_through,
    symlog,
    unimix_probs,
    widened,
)
from wmkit.nn.two_hot import TwoHot

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def total_loss(prediction: Any, *targets: Tensor) -> Tensor:
    """The losses of a prediction to several targets, added up; ``[*B]``.

    A two-hot prediction goes over its bins once.

    >>> total_loss(SquaredError(torch.zeros(1, 1), 1), torch.ones(1, 1), 2 * torch.ones(1, 1))
    tensor([5.])
    """
    if isinstance(prediction, TwoHot):
        return prediction.loss(*targets)
    losses = [prediction.loss(target) for target in targets]
    return torch.stack(losses).sum(0)


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

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy to ``target`` ``[*B, 1]`` (bool or soft label); ``[*B]``."""
        return F.binary_cross_entropy_with_logits(
            self.logits, target.to(self.logits.dtype), reduction="none"
        ).squeeze(-1)


class SquaredError:
    """A mean scored by its squared error, summed over the event, without a half.

    Args:
        mean: ``[*B, *event]`` float; below float32 it is computed with in float32.
        event_dims: how many trailing dimensions are one event.

    >>> SquaredError(torch.zeros(2, 3, 4, 4), 3).loss(torch.ones(2, 3, 4, 4))
    tensor([48., 48.])
    >>> SquaredError(torch.zeros(1, 2), 1).loss(torch.tensor([[3.0, -torch.inf]]))
    tensor([9.])
    """

    def __init__(self, mean: Tensor, event_dims: int) -> None:
        self.mean = self.mode = widened(mean)
        self.event_dims = event_dims

    def loss(self, target: Tensor) -> Tensor:
        """Squared error to ``target`` of the same shape; ``[*B]``.

        Targets in uint8 are read as /255; a float of -inf is one that is missing and costs nothing.
        """
        scale = 1 / 255 if target.dtype == torch.uint8 else 1.0
        if target.is_floating_point():
            target = torch.where(target == -math.inf, self.mean.detach(), target)
        difference = torch.sub(self.mean, target, alpha=scale)
        return _SquaredNorm.apply(
            difference.flatten(-self.event_dims) if self.event_dims else difference.unsqueeze(-1)
        )


class _SquaredNorm(torch.autograd.Function):
    """Sum of squares over the last dimension; half the passes over memory that autograd's own takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.linalg.vecdot(x, x) if autocast_dtype(x) is None else x.square().sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return x * (2 * grad).unsqueeze(-1)


class SymlogSquaredError(SquaredError):
    """Squared error in symlog units; :attr:`mean` stays in symlog units.

    >>> SymlogSquaredError(torch.zeros(1, 1), 1).loss(torch.zeros(1, 1))
    tensor([0.])
    """

    def loss(self, target: Tensor) -> Tensor:
        """Squared error to ``symlog(target)``; ``[*B]``."""
        return super().loss(symlog(target.float()))


class Categorical:
    """One class, or several that are independent, scored by cross-entropy.

    The discrete observations of DreamerV3 (danijar/dreamerv3 e3f0224).

    Args:
        logits: ``[*B, *event, C]`` float.
        event_dims: how many dimensions before the last are one event.

    >>> Categorical(torch.zeros(2, 3, 4), event_dims=1).loss(torch.tensor([[0, 1, 2], [3, 0, -1]]))
    tensor([4.1589, 2.7726])
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

        A class of -1 is one that is missing and costs nothing.
        """
        log_probs = torch.log_softmax(self.logits.float(), -1)
        missing = target == -1
        index = target.long().masked_fill(missing, 0).unsqueeze(-1)
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
        return (self.log_probs * action).sum(-1)


class BoundedNormal:
    """A continuous action: independent normals of bounded mean and spread (DreamerV3, danijar/dreamerv3
    e3f0224).

    Samples are neither squashed nor clipped: the environment clips, replay and model keep what
    was drawn, and :meth:`log_prob` is that of the plain normal.

    Args:
        mean: ``[*B, A]`` float before the tanh.
        std: ``[*B, A]`` float before the sigmoid; zero gives 0.88 of the way from ``low`` to ``high``.
        low: smallest standard deviation.
        high: largest.

    >>> policy = BoundedNormal(torch.zeros(1, 2), torch.zeros(1, 2))
    >>> policy.mode, policy.entropy / 2
    (tensor([[0., 0.]]), tensor([1.3055]))
    >>> policy.sample(torch.tensor([[1.0, -1.0]]))
    tensor([[ 0.8927, -0.8927]])
    """

    def __init__(self, mean: Tensor, std: Tensor, low: float = 0.1, high: float = 1.0) -> None:
        self.mean = torch.tanh(mean.float())  # [*B, A]
        self.std = (high - low) * torch.sigmoid(std.float() + 2.0) + low  # [*B, A]

    @property
    def mode(self) -> Tensor:
        """The likeliest action, ``[*B, A]``."""
        return self.mean

    @property
    def entropy(self) -> Tensor:
        """Nats, summed over the action, ``[*B]``."""
        return (torch.log(self.std) + (0.5 + _LOG_SQRT_2PI)).sum(-1)

    def sample(self, normal: Tensor | None = None) -> Tensor:
        """Sample ``[*B, A]`` from standard normals ``[*B, A]`` (drawn here if none are given).

        Reparameterised: gradients reach mean and spread.
        """
        if normal is None:
            normal = torch.randn_like(self.mean)
        return self.mean + self.std * normal

    rsample = sample

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of an ``action`` ``[*B, A]``, summed over it; ``[*B]``."""
        distance = (action - self.mean) / self.std
        return -(0.5 * distance.square() + torch.log(self.std) + _LOG_SQRT_2PI).sum(-1)
