"""TransDreamer at the smallest size."""

from __future__ import annotations

import torch
from torchrl.data import Composite, OneHot, UnboundedDiscrete

import wmkit
from wmkit.systems import System

GREY = Composite(pixels=UnboundedDiscrete((1, 64, 64), dtype=torch.uint8))
TINY = [
    "preset=paper",  # leaves the size at the small one
    *("size.width=8", "size.blocks=2", "size.deter=16", "size.heads=2", "size.head=4", "size.feed_forward=8"),
    *("size.groups=4", "size.classes=4", "size.hidden=8", "size.units=8", "size.layers=1", "size.depth=2"),
    *("batch.size=3", "batch.length=8", "controller.horizon=4", "controller.starts.most=4"),
]


def build(*overrides: str, spec: Composite = GREY, actions: int = 5) -> System:
    torch.manual_seed(0)
    return wmkit.build(
        "transdreamer", observation_spec=spec, action_spec=OneHot(actions), overrides=[*TINY, *overrides]
    )
