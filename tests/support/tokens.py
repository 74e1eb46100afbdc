"""Made-up steps and dream starts of the token systems."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmkit.dynamics import DreamStart
from wmkit.dynamics.token_dynamics import Steps
from wmkit.nn import Feature
from wmkit.systems import System


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def steps(dynamics: nn.Module, rows: int, count: int, is_init: Tensor | None = None) -> Steps:
    classes = torch.randint(dynamics.classes, (rows, count, dynamics.groups))
    state = dynamics.one_hot(classes)
    action = F.one_hot(torch.randint(dynamics.action_dim, (rows, count)), dynamics.action_dim).float()
    never = torch.zeros(rows, count, dtype=torch.bool)
    return Steps(
        Feature(state, state[..., :0], classes),
        action,
        torch.randn(rows, count, 1),
        never if is_init is None else is_init,
    )


def cut(x: Steps, begin: int, end: int) -> Steps:
    return Steps(x.state.map(lambda part: part[:, begin:end]), *(part[:, begin:end] for part in x[1:]))


def make_start(system: System, rows: int = 5, context: int = 1) -> DreamStart:
    dynamics = system.world_model.dynamics
    init = torch.zeros(rows, context + 1, dtype=torch.bool)
    init[0, -1] = True
    return DreamStart(
        torch.randint(dynamics.classes, (rows, context + 1, dynamics.groups)),
        torch.randn(rows, context + 1, 1),
        init,
        F.one_hot(torch.randint(dynamics.action_dim, (rows, context)), dynamics.action_dim).float(),
        torch.ones(rows, dtype=torch.bool),
    )
