"""What a policy adds to its own chance while it collects: acting only, never in imagination."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AdditiveGaussian(nn.Module):
    """Gaussian noise on continuous actions, clipped to [-1, 1] (DreamerV1, arXiv:1912.01603).

    Args:
        scale: standard deviation.

    >>> AdditiveGaussian(0.0)(torch.tensor([[0.5, 2.0]]))
    tensor([[0.5000, 1.0000]])
    """

    def __init__(self, scale: float = 0.3) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, action: Tensor) -> Tensor:
        """``[B, A] -> [B, A]``."""
        return (action + self.scale * torch.randn_like(action)).clamp(-1, 1)


class EpsilonGreedy(nn.Module):
    """Now and then a random choice instead of the policy's (DreamerV1 on Atari).

    Args:
        amount: how often, at first.
        half_life: actions, over all environments, until it is half as often; none keeps it.
        least: how often at least.

    >>> EpsilonGreedy(amount=0.0)(torch.tensor([[0.0, 1.0]]))
    tensor([[0., 1.]])
    """

    def __init__(self, amount: float, half_life: float | None = None, least: float = 0.0) -> None:
        super().__init__()
        self.amount, self.half_life, self.least = amount, half_life, least
        self.taken: Tensor
        self.register_buffer("taken", torch.zeros(()))

    def forward(self, action: Tensor) -> Tensor:
        """One-hot ``[B, A] -> [B, A]``."""
        amount = torch.as_tensor(self.amount, device=action.device)
        if self.half_life is not None:
            amount = amount * 0.5 ** (self.taken / self.half_life)
        self.taken += len(action)
        other = torch.randint(action.shape[-1], action.shape[:1], device=action.device)
        greedy = torch.rand(len(action), 1, device=action.device) >= amount.clamp(min=self.least)
        return torch.where(greedy, action, F.one_hot(other, action.shape[-1]).to(action.dtype))
