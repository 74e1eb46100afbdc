"""Codecs, heads and predictions of DreamerV3 since 2024, against anchors, plain PyTorch and TorchRL."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import SymExpTwoHot as TorchRLTwoHot

from support.gradients import same_with_gradients
from wmkit.functional import symexp, symexp_bins
from wmkit.nn import (
    BoundedNormal,
    ConvStage,
    SymexpTwoHot,
)

BINS = symexp_bins(20.0, 255)


PIXELS = {"pixels": (3, 64, 64)}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def two_hot_code(target: float, logits: Tensor) -> Tensor:
    """The code a loss is taken against: probabilities minus the gradient with respect to the logits."""
    logits = logits.clone().requires_grad_()
    prediction = SymexpTwoHot(logits, BINS)
    (grad,) = torch.autograd.grad(prediction.loss(torch.tensor([[target]])).sum(), logits)
    code = (torch.softmax(logits.detach(), -1) - grad)[0]
    return torch.where(code.abs() < 1e-6, 0.0, code)


def test_symexp_two_hot_at_the_anchors() -> None:
    assert BINS[127] == 0 and torch.equal(BINS, -BINS.flip(0))
    assert BINS[128].item() == pytest.approx(0.170558, abs=1e-6)
    assert BINS[254].item() == pytest.approx(485165194.4, rel=1e-6)
    logits = torch.randn(1, 255)
    assert two_hot_code(0.0, logits)[127] == 1
    code = two_hot_code(0.1, logits)
    assert code.count_nonzero() == 2
    torch.testing.assert_close(code[127:129], torch.tensor([0.4137, 0.5863]), atol=1e-4, rtol=0)
    assert two_hot_code(1e12, logits)[254] == 1 and two_hot_code(-1e12, logits)[0] == 1
    for level in (0.0, 3.7, -250.0):  # whatever the level: exactly zero, no rounding of 1.9e6
        assert SymexpTwoHot(torch.full((1, 255), level), BINS).mean.item() == 0.0
    loss = SymexpTwoHot(torch.zeros(1, 255), BINS).loss(torch.tensor([[3.0]]))
    assert loss.item() == pytest.approx(math.log(255), abs=1e-6)


def test_symexp_two_hot_equals_torchrl() -> None:
    torch.manual_seed(0)
    oracle = TorchRLTwoHot(255)
    torch.testing.assert_close(oracle.bins, BINS, rtol=1e-6, atol=0)
    target = torch.cat(
        [symexp(torch.randn(60, 1) * 8), torch.tensor([[0.0], [1e10], [-1e10]]), BINS[[7]][:, None]]
    )
    logits = torch.randn(len(target), 255, requires_grad=True)
    ours = SymexpTwoHot(logits, oracle.bins)
    same_with_gradients(ours.loss(target), oracle.loss(logits, target), [logits], 1e-6)
    torch.testing.assert_close(ours.mean.squeeze(-1), oracle.decode(logits), rtol=1e-5, atol=50.0)
    # A confident prediction reads back its target. TorchRL decodes in the dtype of the logits,
    # ours always in float32: in bfloat16 it is off by a bin's rounding, 0.4 %.
    sure = torch.full((1, 255), -1e4).index_fill_(1, torch.tensor([160]), 0.0)
    assert SymexpTwoHot(sure.bfloat16(), BINS).mean.item() == BINS[160].item()
    assert oracle.decode(sure.bfloat16()).item() != BINS[160].item()


def test_bounded_normal_equals_pytorch() -> None:
    torch.manual_seed(0)
    zero = BoundedNormal(torch.zeros(1, 6), torch.zeros(1, 6))
    assert zero.std[0, 0].item() == pytest.approx(0.892717, abs=1e-6)
    assert zero.entropy.item() / 6 == pytest.approx(1.305453, abs=1e-6)
    mean, std = torch.randn(2, 5, 6).mul(3).requires_grad_().unbind(0)
    policy = BoundedNormal(mean, std)
    oracle = torch.distributions.Normal(torch.tanh(mean), 0.1 + 0.9 * torch.sigmoid(std + 2))
    action = torch.randn(5, 6) * 2  # beyond [-1, 1]: nothing is squashed or clipped
    same_with_gradients(policy.log_prob(action), oracle.log_prob(action).sum(-1), [mean, std], 1e-5)
    same_with_gradients(policy.entropy, oracle.entropy().sum(-1), [std], 1e-5)
    noise = torch.randn(5, 6)
    same_with_gradients(policy.sample(noise), oracle.loc + noise * oracle.scale, [mean, std], 1e-6)
    assert torch.equal(policy.mode, torch.tanh(mean))
    edges = BoundedNormal(torch.zeros(1, 2), torch.tensor([[-99.0, 99.0]])).std
    torch.testing.assert_close(edges, torch.tensor([[0.1, 1.0]]))


@pytest.mark.parametrize("down", ["pool", "stride", "none"])
def test_conv_stage_is_its_definition(down) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    stage = ConvStage(3, 7, down=down)
    nn.init.normal_(stage.conv.bias)
    nn.init.normal_(stage.norm.weight)
    y = F.conv2d(x, stage.conv.weight, stage.conv.bias, padding=2)
    if down == "pool":
        y = F.max_pool2d(y, 2)
    elif down == "stride":  # SAME padding of JAX: one before, two behind, i.e. centred on odd pixels
        y = y[:, :, 1::2, 1::2]
    y = y * torch.rsqrt(y.square().mean(1, keepdim=True) + 1e-4) * stage.norm.weight.view(-1, 1, 1)
    same_with_gradients(stage(x), F.silu(y), [x, *stage.parameters()], 1e-4)
