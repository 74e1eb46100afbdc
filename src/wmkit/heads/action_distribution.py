"""A policy with the face of a :mod:`torch.distributions`, for TorchRL's losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Policy(Protocol):
    """A distribution over actions at ``[*B]``."""

    @property
    def mode(self) -> Tensor:
        """The likeliest action, ``[*B, A]``."""

    @property
    def entropy(self) -> Tensor:
        """Nats, ``[*B]``."""

    def sample(self, noise: Tensor | None = None, /) -> Tensor:
        """A sample ``[*B, A]`` from noise of :meth:`Actor.noise <wmkit.heads.Actor.noise>`, or drawn here."""

    def rsample(self, noise: Tensor | None = None, /) -> Tensor:
        """A sample with gradient."""

    def log_prob(self, action: Tensor, /) -> Tensor:
        """Log-probability of an action ``[*B, A]``; ``[*B]``."""


class ActionDistribution:
    """The distribution that ``actor.get_dist(tensordict)`` returns.

    Args:
        policy: the distribution.
        batch_shape: ``[*B]``.
        noise: draws what the policy samples from, called as ``noise(*lead)``.

    >>> from wmkit.nn import BoundedNormal
    >>> policy = BoundedNormal(torch.zeros(2, 3), torch.zeros(2, 3))
    >>> dist = ActionDistribution(policy, torch.Size([2]), lambda *lead: torch.zeros(*lead, 3))
    >>> dist.rsample((5,)).shape, dist.entropy().shape
    (torch.Size([5, 2, 3]), torch.Size([2]))
    """

    has_rsample = True

    def __init__(self, policy: Policy, batch_shape: torch.Size, noise: Callable[..., Tensor]) -> None:
        self.policy, self.batch_shape, self._noise = policy, batch_shape, noise

    @property
    def mode(self) -> Tensor:
        """The likeliest action, ``[*B, A]``."""
        return self.policy.mode

    deterministic_sample = mode

    def entropy(self) -> Tensor:
        """Nats, ``[*B]``."""
        return self.policy.entropy

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability of actions ``[*S, *B, A]``; ``[*S, *B]``."""
        return self.policy.log_prob(action)

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Samples ``[*S, *B, A]`` with gradient; straight through the probabilities of discrete actions."""
        return self.policy.rsample(self._noise(*sample_shape, *self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Samples ``[*S, *B, A]`` without gradient."""
        return self.rsample(sample_shape)
