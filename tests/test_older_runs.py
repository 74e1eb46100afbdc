"""Runs made before the parts were lists: their configurations build systems of the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torchrl.data import Composite, OneHot, UnboundedDiscrete

from wmkit.systems import build_from
from wmkit.training.older_runs import upgraded

OLD = Path(__file__).parent / "older_runs"  # config.yaml of smoke runs at d1d1ae5


@pytest.mark.parametrize(
    ("name", "parameters", "place", "value"),
    [
        ("twm", 1_530_220, "schedule.phases.behaviour.share", 0.7),
        ("storm", 2_115_270, "controller.starts.context", 8),
        ("ls_imagine", 2_157_889, "controller.hooks.gate.extra_step", True),
    ],
)
def test_an_older_run_opens(name: str, parameters: int, place: str, value: float) -> None:
    old = OmegaConf.load(OLD / f"{name}.yaml")
    today = upgraded(old)
    assert OmegaConf.select(today, place) == value
    assert today.training.steps == old.training.steps and today.env.name == old.env.name
    pixels = UnboundedDiscrete((3, 64, 64), dtype=torch.uint8)
    system = build_from(today, Composite(pixels=pixels), OneHot(5))
    assert sum(parameter.numel() for parameter in system.parameters()) == parameters
    assert upgraded(today) is today
