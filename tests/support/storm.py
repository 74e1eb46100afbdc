"""STORM at the smallest size."""

from __future__ import annotations

import torch
from torchrl.data import Composite, OneHot, UnboundedDiscrete

import wmkit
from wmkit.systems import System

ATARI = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))
TINY = [
    "preset=paper",  # leaves the size at the small one
    *("size.deter=16", "size.groups=4", "size.classes=4", "size.hidden=8", "size.units=8", "size.depth=2"),
    *("batch.size=3", "batch.length=8", "controller.starts.count=12", "controller.starts.context=3"),
    "controller.horizon=4",
]


def build(*overrides: str, spec: Composite = ATARI, actions: int = 5) -> System:
    torch.manual_seed(0)
    return wmkit.build(
        "storm", observation_spec=spec, action_spec=OneHot(actions), overrides=[*TINY, *overrides]
    )
