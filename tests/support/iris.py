"""A tiny IRIS."""

from __future__ import annotations

import torch
from torchrl.data import Composite, OneHot, UnboundedDiscrete

import wmkit
from wmkit.systems import System

ATARI = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))
TINY = [
    *("preset=paper", "size=micro", "size.deter=16", "size.hidden=8", "size.units=8", "size.depth=8"),
    *("size.width=6", "size.classes=7", "size.vision=4", "size.patch=4"),
    *("batch.size=3", "batch.length=5", "controller.starts.count=6", "controller.starts.burn_in=3"),
    *("controller.horizon=3", "schedule.batches.frames.size=8", "begin.dynamics=1", "begin.agent=1"),
]


def build(*overrides: str) -> System:
    torch.manual_seed(0)
    return wmkit.build("iris", observation_spec=ATARI, action_spec=OneHot(5), overrides=[*TINY, *overrides])
