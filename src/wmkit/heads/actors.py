"""Policies over features."""

from __future__ import annotations

from torch import Tensor, nn

from wmkit.nn import MLP, Feature, OneHotCategorical, init_output


class DiscreteActor(nn.Module):
    """Categorical policy with a share of uniform exploration (DreamerV3 of 2023).

    Args:
        in_dim: width of the features.
        action_dim: number of actions A.
        units: width of the trunk.
        layers: depth of the trunk.
        unimix: share of the uniform.
        outscale: scale of the output layer.

    >>> import torch
    >>> DiscreteActor(16, 12, units=8, layers=1)(torch.zeros(2, 16)).mode.shape
    torch.Size([2, 12])
    """

    def __init__(
        self,
        in_dim: int,
        action_dim: int,
        *,
        units: int,
        layers: int,
        unimix: float = 0.01,
        outscale: float = 1.0,
    ) -> None:
        super().__init__()
        self.trunk = MLP(in_dim, units, layers)
        self.out = init_output(nn.Linear(units if layers else in_dim, action_dim), outscale)
        self.unimix = unimix

    def forward(self, features: Tensor | Feature) -> OneHotCategorical:
        """Distribution over actions at features ``[*B, in_dim]``."""
        return OneHotCategorical(self.out(self.trunk(features)), self.unimix)
