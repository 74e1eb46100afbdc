"""The plain side of the update benchmark: the published networks, the official codes' arithmetic."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    before = torch.distributions.Distribution._validate_args
    import token_update_plain

    torch.distributions.Distribution.set_default_validate_args(before)
    yield token_update_plain
    sys.modules.pop("token_update_plain")


class Counter(TorchDispatchMode):
    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_plain_networks_have_the_published_parameters(plain: ModuleType) -> None:
    twm, storm = plain.PlainTWM(1, 1), plain.PlainSTORM(1, 1)
    parts = [(twm.encoder,), (twm.decoder,), (twm.dynamics,), (twm.actor,), (twm.critic,)]
    counts = [3_126_992, 5_107_540, 10_782_466, 1_322_002, 1_313_281]
    assert [parameters(*part) for part in parts] == counts
    assert [parameters(x) for x in (storm.model, storm.actor, storm.critic)] == [
        16_513_155,
        1_059_858,
        1_181_439,
    ]


@pytest.mark.parametrize(
    ("system", "official"),
    [
        ("twm", (10.79, 2.285, 0.2475)),
        ("storm", (419 / 16, 1.43, 220 / 1024)),
    ],  # GFLOP of a window and of a start
)
def test_plain_updates_do_the_official_arithmetic(
    plain: ModuleType, system: str, official: tuple[float, ...]
) -> None:
    for (name, piece), wanted in zip(plain.pieces(system, 1, 4).items(), official, strict=True):
        with Counter() as counter:
            piece()
        found = counter.total / 1e9 / (1 if name == "world model" else 4)
        assert found == pytest.approx(wanted, rel=0.03)
