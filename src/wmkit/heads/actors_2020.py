"""Continuous policies of the first two Dreamers, whose actions never leave [-1, 1]."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from wmkit.nn import MLP, STYLE_2023, Feature, LayerStyle, Linear, TanhNormal, TruncatedNormal, init_output


class TanhNormalActor(nn.Module):
    """The tanh of a normal (DreamerV1, arXiv:1912.01603, eq. 8).

    Args:
        in_dim: width of the features.
        action_dim: width A of an action.
        units: width of the trunk.
        layers: depth of the trunk.
        scale: bound of the mean before the tanh.
        initial: standard deviation before the tanh of an untrained policy, nearly.
        low: smallest standard deviation before the tanh.
        style: norm, activation, bias and initialisation.

    >>> actor = TanhNormalActor(16, 6, units=8, layers=1)
    >>> actor(torch.zeros(2, 16)).sample(actor.noise(2)).shape
    torch.Size([2, 6])
    """

    actions: ClassVar[tuple[str, ...]] = ("continuous",)

    def __init__(
        self,
        in_dim: int,
        action_dim: int,
        *,
        units: int,
        layers: int,
        scale: float = 5.0,
        initial: float = 5.0,
        low: float = 1e-4,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.scale, self.initial, self.low = scale, initial, low
        self.trunk = MLP(in_dim, units, layers, style)
        self.out = init_output(Linear(units if layers else in_dim, 2 * action_dim), init=style.init)

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """Standard normals ``[*lead, A]`` that :meth:`TanhNormal.sample` takes."""
        return torch.randn(*lead, self.action_dim, device=device)

    def forward(self, features: Tensor | Feature) -> TanhNormal:
        """Distribution over actions at features ``[*B, in_dim]``."""
        mean, std = self.out(self.trunk(features)).chunk(2, -1)
        return TanhNormal(mean, std, scale=self.scale, initial=self.initial, low=self.low)


class TruncatedNormalActor(nn.Module):
    """A normal cut at -1 and 1 (DreamerV2, arXiv:2010.02193).

    Args:
        in_dim: width of the features.
        action_dim: width A of an action.
        units: width of the trunk.
        layers: depth of the trunk.
        low: smallest standard deviation.
        style: norm, activation, bias and initialisation.

    >>> actor = TruncatedNormalActor(16, 6, units=8, layers=1)
    >>> actor(torch.zeros(2, 16)).sample(actor.noise(2)).abs().max().item() <= 1
    True
    """

    actions: ClassVar[tuple[str, ...]] = ("continuous",)

    def __init__(
        self,
        in_dim: int,
        action_dim: int,
        *,
        units: int,
        layers: int,
        low: float = 0.1,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        self.action_dim, self.low = action_dim, low
        width = units if layers else in_dim
        self.trunk = MLP(in_dim, units, layers, style)
        self.mean = init_output(Linear(width, action_dim), init=style.init)
        self.std = init_output(Linear(width, action_dim), init=style.init)

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """Uniforms ``[*lead, A]`` that :meth:`TruncatedNormal.sample` takes."""
        return torch.rand(*lead, self.action_dim, device=device)

    def forward(self, features: Tensor | Feature) -> TruncatedNormal:
        """Distribution over actions at features ``[*B, in_dim]``."""
        hidden = self.trunk(features)
        return TruncatedNormal(self.mean(hidden), self.std(hidden), low=self.low)
