"""Made-up steps and known records of the token systems, and what a method was asked."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmkit.dynamics import Latent, Steps


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def watch(module: nn.Module, method: str) -> list[Any]:
    """First arguments of all later calls of a method."""
    seen: list[Any] = []
    original = getattr(module, method)

    def watched(first: Any, *rest: Any, **options: Any) -> Any:
        seen.append(first)
        return original(first, *rest, **options)

    setattr(module, method, watched)
    return seen


def known(dynamics: nn.Module, rows: int, count: int) -> Latent:
    """States ``[rows, count]`` and no beliefs."""
    classes = torch.randint(dynamics.latent.classes, (rows, count, dynamics.latent.groups))
    state = dynamics.latent.one_hot(classes)
    return Latent(state, state.new_zeros(rows, count, dynamics.belief_dim), None, classes)


def record(dynamics: nn.Module, rows: int, count: int, is_init: Tensor | None = None) -> dict[str, Tensor]:
    """Previous actions, rewards and beginnings of episodes; none if not given."""
    action = F.one_hot(torch.randint(dynamics.action_dim, (rows, count)), dynamics.action_dim).float()
    never = torch.zeros(rows, count, dtype=torch.bool)
    found = {"previous_action": action, "is_init": never if is_init is None else is_init}
    return found | {key: torch.randn(rows, count, 1) for key in dynamics.conditions}


def steps(dynamics: nn.Module, rows: int, count: int, is_init: Tensor | None = None) -> Steps:
    latent, told = known(dynamics, rows, count), record(dynamics, rows, count, is_init)
    arrival = torch.randn(rows, count, 1)
    return Steps(latent.state, latent.classes, told["previous_action"], arrival, told["is_init"])


def cut(x: Any, begin: int, end: int) -> Any:
    """Some steps of all."""
    if isinstance(x, dict):
        return {key: value[:, begin:end] for key, value in x.items()}
    return x.map(lambda part: part[:, begin:end])
