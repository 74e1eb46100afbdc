"""The optimiser of today's DreamerV3 against its specification and against TorchRL's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torchrl.trainers.algorithms import DreamerV3Optimizer

from wmkit.errors import ConfigError
from wmkit.optim import LaProp


def tensors() -> list[nn.Parameter]:
    torch.manual_seed(0)
    shapes: list[tuple[int, ...]] = [(7, 5), (5,), (), (2, 3, 4), (4,)]
    parameters = [nn.Parameter(torch.randn(shape) * 0.3) for shape in shapes]
    nn.init.zeros_(parameters[1])  # counts as pmin
    return parameters


def gradients(update: int) -> list[Tensor]:
    """One tensor far above its clipping, one far below, one that is always zero."""
    torch.manual_seed(update)
    scales = (1.0, 1.0, 1e4, 1e-6, 0.0)
    return [torch.randn_like(p) * s for p, s in zip(tensors(), scales, strict=True)]


def by_the_book(values: list[Tensor], updates: int, lr: float, warmup: int) -> list[Tensor]:
    """The optimiser of the specification, one tensor and one line at a time, in double precision."""
    values = [v.detach().double().clone() for v in values]
    rms, momentum = [torch.zeros_like(v) for v in values], [torch.zeros_like(v) for v in values]
    for t in range(1, updates + 1):
        for i, g in enumerate(gradients(t)):
            g = g.double()
            upper = 0.3 * max(1e-3, values[i].norm().item())
            g = g * (1 / max(1.0, g.norm().item() / upper))
            rms[i] = 0.999 * rms[i] + 0.001 * g * g
            g = g / ((rms[i] / (1 - 0.999**t)).sqrt() + 1e-20)
            momentum[i] = 0.9 * momentum[i] + 0.1 * g
            values[i] = values[i] - lr * min(1.0, (t - 1) / warmup) * momentum[i] / (1 - 0.9**t)
    return values


def test_laprop_follows_the_specification() -> None:
    mine, theirs = tensors(), tensors()
    expected = by_the_book(mine, 12, 1e-2, 8)
    optimizer = LaProp(mine, 1e-2, warmup=8)
    oracle = DreamerV3Optimizer(theirs, lr=1e-2, warmup_steps=8)
    for t in range(1, 13):
        for parameters, learner in ((mine, optimizer), (theirs, oracle)):
            for p, g in zip(parameters, gradients(t), strict=True):
                p.grad = g
            learner.step()
    for p, value, other, start in zip(mine, expected, theirs, tensors(), strict=True):
        torch.testing.assert_close(p.data, value.float(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(p.data, other.data, atol=1e-6, rtol=1e-5)
        assert not torch.equal(p, start) or not gradients(1)[4].any()
    assert torch.equal(mine[4], tensors()[4])  # a gradient of zero moves nothing


def test_laprop_starts_gently() -> None:
    parameters = [nn.Parameter(p.double()) for p in tensors()]  # float32 would round moves this small
    optimizer, before = LaProp(parameters), [p.detach().clone() for p in parameters]
    largest = []
    for t in (1, 2):
        for p, g in zip(parameters, gradients(t), strict=True):
            p.grad = g.double()
        optimizer.step()
        moved = [(p.detach() - b).abs().max() for p, b in zip(parameters, before, strict=True)]
        largest.append(float(max(moved)))
    assert largest[0] == 0  # the first learning rate is zero
    assert 0 < largest[1] < 4e-8 * 1.23  # of the second, and how far a momentum of two can reach


def test_laprop_goes_on_from_its_state() -> None:
    mine, theirs = tensors(), tensors()
    first, second = LaProp(mine, 1e-2, warmup=8), LaProp(theirs, 1e-2, warmup=8)
    for t in range(1, 9):
        if t == 5:
            second = LaProp(theirs, 1e-2, warmup=8)
            second.load_state_dict(copy.deepcopy(first.state_dict()))  # as a file would
            for p, q in zip(mine, theirs, strict=True):
                assert torch.equal(p, q)
        for parameters, learner in ((mine, first), (theirs, second)):
            for p, g in zip(parameters, gradients(t), strict=True):
                p.grad = g
            learner.step()
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))
    assert float(second.param_groups[0]["step"]) == 8


def test_laprop_reads_nothing_back() -> None:
    with FakeTensorMode():  # tensors without values: asking for one raises
        parameter = nn.Parameter(torch.ones(3))
        optimizer = LaProp([parameter])
        for _ in range(2):
            parameter.grad = torch.ones(3)
            optimizer.step()


def test_laprop_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match=r"bfloat16"):
        LaProp([nn.Parameter(torch.ones(2, dtype=torch.bfloat16))])
    with pytest.raises(ConfigError, match="option agc of LaProp is 0"):
        LaProp(tensors(), agc=0)
