"""Predictions of classes: observations scored by cross-entropy, and policies over discrete actions."""

from __future__ import annotations

import torch
from torch import Tensor

from wmkit.functional import one_hot, sample_one_hot, straight_through, unimix_probs, widened


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
