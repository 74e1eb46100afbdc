"""Systems on 64 by 64 images at the smallest size."""

from __future__ import annotations

import torch
from torchrl.data import Composite, OneHot, UnboundedDiscrete

import wmkit
from wmkit.systems import System

TINY = [
    "preset=paper",
    "size.deter=16",
    "size.groups=4",
    "size.classes=4",
    "size.hidden=8",
    "size.units=8",
    "size.layers=1",
    "size.depth=4",
    "batch.size=3",
    "batch.length=5",
]


def build(system: str = "ls_imagine", *overrides: str) -> System:
    torch.manual_seed(0)
    spec = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))
    tiny = [one for one in TINY if system != "dreamer_v3" or "layers" not in one]  # which has its own
    tiny += ["size=tiny"] * (system == "ls_imagine")  # whose preset brings one
    return wmkit.build(system, observation_spec=spec, action_spec=OneHot(12), overrides=[*tiny, *overrides])
