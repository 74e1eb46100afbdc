"""TWM at the smallest size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrl.data import Composite, OneHot, UnboundedDiscrete

import wmkit
from wmkit.dynamics import Latent
from wmkit.systems import System

ATARI = Composite(pixels=UnboundedDiscrete((1, 64, 64), dtype=torch.uint8))
TINY = [
    "preset=paper",  # leaves the size at the small one
    *("size.deter=16", "size.groups=4", "size.classes=4", "size.hidden=8", "size.units=8", "size.layers=1"),
    *("size.depth=2", "batch.size=3", "batch.length=8", "controller.starts.count=12", "training.pretrain=0"),
]


def build(*overrides: str, spec: Composite = ATARI, actions: int = 5) -> System:
    torch.manual_seed(0)
    return wmkit.build(
        "twm", observation_spec=spec, action_spec=OneHot(actions), overrides=[*TINY, *overrides]
    )


def paper(*overrides: str, device: str = "meta") -> System:
    with torch.device(device):
        return wmkit.build(
            "twm",
            observation_spec=ATARI,
            action_spec=OneHot(18),
            overrides=["size=paper", "batch.size=100", "batch.length=18", *overrides],
        )


def outcome(model: nn.Module, latent: Latent) -> tuple[Tensor, Tensor]:
    """Expected reward, in the head's units, and discount on arriving at states."""
    return model.predict("reward", latent).mean, model.continuation(latent)
