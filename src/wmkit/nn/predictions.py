"""What heads return: a prediction that knows its loss, its mean, its mode and how to sample.

Plain tensors inside, no ``torch.distributions``: nothing validates, nothing synchronises.
Every ``loss`` is per sample, in nats or squared units, with the event dimension removed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.functional import sample_one_hot, symexp, symlog, two_hot_cross_entropy, two_hot_mean, unimix_probs


class SymlogTwoHot:
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

    def __init__(self, logits: Tensor, bins: Tensor) -> None:
        self.logits, self.bins = logits, bins
        self.log_probs = torch.log_softmax(logits, -1)  # [*B, K], read by mean and loss

    @property
    def mean(self) -> Tensor:
        """``[*B, 1]``, in the quantity's own units: symexp of the mean in symlog space."""
        return symexp(two_hot_mean(self.log_probs.exp(), self.bins)).unsqueeze(-1)

    mode = mean

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy to the two-hot code of ``target`` ``[*B, 1]``; ``[*B]``."""
        return two_hot_cross_entropy(self.log_probs, symlog(target.squeeze(-1)), self.bins)


class Bernoulli:
    """A flag.

    Args:
        logits: ``[*B, 1]`` float.

    >>> Bernoulli(torch.zeros(1, 1)).mean
    tensor([[0.5000]])
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

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
        mean: ``[*B, *event]`` float.
        event_dims: how many trailing dimensions are one event.

    >>> SquaredError(torch.zeros(2, 3, 4, 4), 3).loss(torch.ones(2, 3, 4, 4))
    tensor([48., 48.])
    """

    def __init__(self, mean: Tensor, event_dims: int) -> None:
        self.mean, self.mode, self.event_dims = mean, mean, event_dims

    def loss(self, target: Tensor) -> Tensor:
        """Squared error to ``target`` of the same shape; uint8 targets are read as /255; ``[*B]``."""
        scale = 1 / 255 if target.dtype == torch.uint8 else 1.0
        difference = torch.sub(self.mean, target, alpha=scale).flatten(-self.event_dims)
        return _SquaredNorm.apply(difference)


class _SquaredNorm(torch.autograd.Function):
    """Sum of squares over the last dimension; half the passes over memory that autograd's own takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.linalg.vecdot(x, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return x * (2 * grad).unsqueeze(-1)


class OneHotCategorical:
    """A discrete choice with a share of uniform exploration.

    Args:
        logits: ``[*B, A]`` float.
        unimix: share of the uniform.

    >>> policy = OneHotCategorical(torch.zeros(1, 4), unimix=0.01)
    >>> policy.entropy
    tensor([1.3863])
    >>> policy.sample(torch.tensor([[0.3]]))
    tensor([[0., 1., 0., 0.]])
    """

    def __init__(self, logits: Tensor, unimix: float = 0.0) -> None:
        self.probs = unimix_probs(logits, unimix)  # [*B, A]

    @property
    def log_probs(self) -> Tensor:
        """``[*B, A]``."""
        return torch.log(self.probs)

    @property
    def entropy(self) -> Tensor:
        """Nats, ``[*B]``."""
        return -(self.probs * self.log_probs).sum(-1)

    @property
    def mode(self) -> Tensor:
        """The likeliest action as one-hot, ``[*B, A]``."""
        return F.one_hot(self.probs.argmax(-1), self.probs.shape[-1]).to(self.probs.dtype)

    def sample(self, uniform: Tensor | None = None) -> Tensor:
        """One-hot sample ``[*B, A]`` from uniforms ``[*B, 1]`` (drawn here if none are given)."""
        if uniform is None:
            uniform = torch.rand_like(self.probs[..., :1])
        return sample_one_hot(self.probs, uniform)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability of a one-hot ``action`` ``[*B, A]``; ``[*B]``."""
        return (self.log_probs * action).sum(-1)
