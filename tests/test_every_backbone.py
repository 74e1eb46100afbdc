"""Every way of using a backbone with every backbone: composed, built, and taught for one update."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchrl.data import Composite, OneHot, Unbounded, UnboundedDiscrete

import wmkit
from wmkit.errors import ConfigError
from wmkit.systems import System

BACKBONES = wmkit.available("backbone")
TINY = [
    "preset=paper",
    *("size.deter=16", "size.groups=2", "size.hidden=8", "size.units=8"),
    *("batch.size=2", "batch.length=4", "controller.horizon=2"),
]
VECTORS = Composite(observation=Unbounded((2,)))
IMAGES = Composite(
    pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8),
    affordance=UnboundedDiscrete((1, 64, 64), dtype=torch.uint8),
)
CLASSES, LAYERS = "size.classes=3", "size.layers=1"
# One page for each way in which a sequence model is used; the other Dreamers use it as these do.
OWN = {
    "dreamer_v2": (CLASSES,),  # state and action in one layer
    "dreamer_v3": (
        CLASSES,
        "schedule.learners.joint.optimizer.warmup=0",
    ),  # or it learns nothing at first
    "ls_imagine": ("size=tiny", CLASSES, LAYERS, "size.depth=2"),  # steps and jumps
    "storm": (CLASSES, LAYERS, "controller.starts.count=2", "controller.starts.context=1"),
    "transdreamer": (CLASSES, LAYERS, "size.width=8", "controller.starts.most=2"),  # an acting window
    "twm": (CLASSES, LAYERS, "controller.starts.count=2"),  # three tokens a step
}
LAYERED = {"adaln", "gpt", "s5", "stacked_transformer", "transformer_xl"}


def build(system: str, backbone: str, *overrides: str) -> System:
    torch.manual_seed(0)
    spec = IMAGES if system == "ls_imagine" else VECTORS
    overrides = (f"backbone={backbone}", *TINY, *OWN[system], *overrides)
    return wmkit.build(system, observation_spec=spec, action_spec=OneHot(3), overrides=overrides)


def learns(system: System) -> None:
    dynamics = system.world_model.dynamics
    backbone: nn.Module = getattr(dynamics, "short", dynamics).backbone
    before = [parameter.clone() for parameter in backbone.parameters()]
    metrics = system.update(system.example_batch())
    assert all(bool(value.isfinite().all()) for value in metrics.values(True, True))
    assert before and not any(map(torch.equal, before, backbone.parameters()))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("system", OWN)
def test_learns(system: str, backbone: str) -> None:
    learns(build(system, backbone))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_only_layers_can_start_alike(backbone: str) -> None:
    """The one choice on a page that not every backbone goes with: TWM as released."""
    if backbone in LAYERED:
        learns(build("twm", backbone, "compat=released"))
        return
    with pytest.raises(ConfigError, match="layers") as e:
        build("twm", backbone, "compat=released")
    assert "\n" not in str(e.value) and ". " not in str(e.value)


@pytest.mark.parametrize(
    ("backbone", "override", "message"),
    [
        ("block_gru", "size.deter=12", "cannot be cut into 8 equal blocks: wanted a divisor"),
        ("gpt", "backbone.window=1", "the window of a transformer is 1: wanted 2 tokens or more; set window"),
        ("transformer_xl", "backbone.heads=3", "cannot be cut into 3 equal heads: wanted a divisor"),
        ("s5", "backbone.layers=0", "has 0 layers: wanted 1 or more; set"),
        (
            "gru",
            "+backbone.window=8",
            "backbone.window is 8, which GRU does not take: wanted one of .*initial",
        ),
        ("nothing", "seed=0", "'nothing'.*wanted one of adaln, .*transformer_xl"),
    ],
)
@pytest.mark.parametrize("system", ["dreamer_v3", "twm"])
def test_what_does_not_fit_is_refused(system: str, backbone: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as e:
        build(system, backbone, override)
    assert "\n" not in str(e.value) and ". " not in str(e.value)
