"""DreamerV1, V2 and V3 at the smallest size, on numbers or images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torchrl.data import Bounded, Composite, OneHot, TensorSpec, Unbounded, UnboundedDiscrete

import wmkit
from wmkit.systems import build_from, compose

PIXELS = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))
VECTOR = Composite(observation=Unbounded((3,)))
BOTH = Composite(observation=Unbounded((3,)), pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))
SIX, CHOICE = Bounded(-1.0, 1.0, (6,)), OneHot(5)
NARROW = ["size.deter=16", "size.hidden=8", "size.units=8", "size.depth=2"]
SMALL = [*NARROW, "size.groups=4", "batch.size=3", "batch.length=5"]


composed = cache(compose)


def build(
    name: str, spec: Composite, actions: TensorSpec, *overrides: str, sizes: Sequence[str] = SMALL
) -> wmkit.System:
    torch.manual_seed(0)
    return build_from(composed(name, ("preset=paper", *sizes, *overrides)), spec, actions)


SYSTEMS = {
    "v1": ("dreamer_v1", SIX, ["controller.horizon=4"]),
    "v1 choice": ("dreamer_v1", CHOICE, ["controller.horizon=4", "domain=v1_atari"]),
    "v2": ("dreamer_v2", SIX, ["controller.horizon=4"]),
    "v2 dmc": ("dreamer_v2", SIX, ["controller.horizon=4", "domain=v2_dmc"]),
    "v2 choice": ("dreamer_v2", CHOICE, ["controller.horizon=4"]),
}
