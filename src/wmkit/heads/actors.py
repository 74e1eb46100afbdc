"""Policies over features.

A policy says what chance it needs: ``actor.noise(H, N)`` draws, for H steps of N rows, what
``actor(feature).sample(noise[t])`` turns into actions, so that a roll-out draws before its loop.
``actor.actions`` names the kinds of action it can choose, ``"discrete"`` or ``"continuous"``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.nn import (
    MLP,
    STYLE_2023,
    BoundedNormal,
    Feature,
    LayerStyle,
    Linear,
    OneHotCategorical,
    init_output,
)


class DiscreteActor(nn.Module):
    """Categorical policy with a share of uniform exploration (DreamerV3).

    Args:
        in_dim: width of the features.
        action_dim: number of actions A.
        units: width of the trunk.
        layers: depth of the trunk.
        unimix: share of the uniform: 0.01 as published, of which danijar/dreamerv3 e3f0224 uses none.
        outscale: scale of the output layer: 1 in 2023, 0.01 since 2024.
        style: norm, activation, bias and initialisation.

    >>> DiscreteActor(16, 12, units=8, layers=1)(torch.zeros(2, 16)).mode.shape
    torch.Size([2, 12])
    """

    actions: ClassVar[tuple[str, ...]] = ("discrete",)

    def __init__(
        self,
        in_dim: int,
        action_dim: int,
        *,
        units: int,
        layers: int,
        unimix: float = 0.01,
        outscale: float = 1.0,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        check_range("actor unimix", unimix, 0, 1, open_end=True)
        self.trunk = MLP(in_dim, units, layers, style)
        self.out = init_output(Linear(units if layers else in_dim, action_dim), outscale, style.init)
        self.unimix = self._told = unimix

    def get_extra_state(self) -> dict[str, float]:
        """The share of uniform, which loading official weights changes, and the one it was built with."""
        return {"unimix": self.unimix, "told": self._told}

    def set_extra_state(self, state: dict[str, float]) -> None:
        """Take the share of uniform back, unless this actor was built with another one than the saved."""
        # An older state does not say. Only official weights make it zero, whatever it was built with.
        told = state.get("told", state["unimix"] or self._told)
        if told == self._told:
            self.unimix = state["unimix"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # An older state has no share: it stays as built.
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """Uniforms ``[*lead, 1]`` that :meth:`OneHotCategorical.sample` takes."""
        return torch.rand(*lead, 1, device=device)

    def forward(self, features: Tensor | Feature) -> OneHotCategorical:
        """Distribution over actions at features ``[*B, in_dim]``."""
        return OneHotCategorical(self.out(self.trunk(features)), self.unimix)


class ContinuousActor(nn.Module):
    """Independent normals of bounded mean and spread (DreamerV3, danijar/dreamerv3 e3f0224).

    Actions are neither squashed nor clipped here: the environment clips them to [-1, 1].

    Args:
        in_dim: width of the features.
        action_dim: width A of an action.
        units: width of the trunk.
        layers: depth of the trunk.
        low: smallest standard deviation.
        high: largest.
        outscale: scale of the two output layers.
        style: norm, activation, bias and initialisation.

    >>> actor = ContinuousActor(16, 6, units=8, layers=1, outscale=0.0)
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
        low: float = 0.1,
        high: float = 1.0,
        outscale: float = 0.01,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        self.action_dim, self.low, self.high = action_dim, low, high
        width = units if layers else in_dim
        self.trunk = MLP(in_dim, units, layers, style)
        # Two layers, not one of twice the width: the optimiser clips gradients tensor by tensor.
        self.mean = init_output(Linear(width, action_dim), outscale, style.init)
        self.std = init_output(Linear(width, action_dim), outscale, style.init)

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """Standard normals ``[*lead, A]`` that :meth:`BoundedNormal.sample` takes."""
        return torch.randn(*lead, self.action_dim, device=device)

    def forward(self, features: Tensor | Feature) -> BoundedNormal:
        """Distribution over actions at features ``[*B, in_dim]``."""
        hidden = self.trunk(features)
        return BoundedNormal(self.mean(hidden), self.std(hidden), self.low, self.high)


class ActorChoice:
    """One policy or the other, as the environment's actions ask; for pages that take both.

    Not a module: :func:`wmkit.build` asks it for the one that the system gets.

    Args:
        discrete: makes the policy over one-hot actions, called as ``discrete(in_dim, action_dim)``.
        continuous: likewise, over actions that are numbers.

    >>> from functools import partial
    >>> makers = [partial(actor, units=8, layers=1) for actor in (DiscreteActor, ContinuousActor)]
    >>> choice = ActorChoice(discrete=makers[0], continuous=makers[1])
    >>> type(choice.of("continuous")(16, 6)).__name__
    'ContinuousActor'
    """

    actions = ("discrete", "continuous")

    def __init__(self, *, discrete: Callable[..., nn.Module], continuous: Callable[..., nn.Module]) -> None:
        self.discrete, self.continuous = discrete, continuous

    def of(self, kind: str) -> Callable[..., nn.Module]:
        """The maker for ``kind``, one of :attr:`actions`."""
        return self.continuous if kind == "continuous" else self.discrete
