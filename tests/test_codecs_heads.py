"""Codecs, heads and predictions of DreamerV3 since 2024, against anchors, plain PyTorch and TorchRL."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import SymExpTwoHot as TorchRLTwoHot

from support.gradients import same_with_gradients
from wmkit.errors import ConfigError
from wmkit.functional import symexp, symexp_bins
from wmkit.heads import ContinueHead, ContinuousActor, Critic, DiscreteActor, RewardHead
from wmkit.nn import (
    STYLE_2024,
    BoundedNormal,
    ConvStage,
    SymexpTwoHot,
    SymlogTwoHot,
)

BINS = symexp_bins(20.0, 255)
PIXELS = {"pixels": (3, 64, 64)}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# -- predictions -------------------------------------------------------------------------


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


def test_actors_draw_the_noise_they_sample_from() -> None:
    trunk = dict(units=8, layers=1)
    discrete = DiscreteActor(16, 12, **trunk)
    torch.manual_seed(3)
    noise = discrete.noise(15, 4)
    torch.manual_seed(3)
    assert torch.equal(noise, torch.rand(15, 4, 1))  # what roll-outs have drawn so far
    assert discrete(torch.randn(4, 16)).sample(noise[0]).sum(-1).eq(1).all()
    actor = ContinuousActor(16, 6, **trunk, outscale=0.0)
    noise = actor.noise(15, 4)
    torch.testing.assert_close(actor(torch.randn(4, 16)).sample(noise[0]), noise[0] * 0.892717)
    assert actor.noise(20_000, 1).std().item() == pytest.approx(1.0, abs=0.02)


def test_heads_code_and_label_as_their_page_says() -> None:
    torch.manual_seed(1)
    trunk = dict(units=8, layers=1, style=STYLE_2024)
    feature, target = torch.randn(4, 16), torch.tensor([[1.0], [5.0], [-3.0], [1e4]])
    torch.manual_seed(0)
    symlog_head = RewardHead(16, target="reward", outscale=1.0, **trunk)
    torch.manual_seed(0)
    symexp_head = RewardHead(16, target="reward", outscale=1.0, code="symexp", **trunk)
    assert symlog_head.out.weight.equal(symexp_head.out.weight)
    both = [head(feature) for head in (symlog_head, symexp_head)]
    assert both[1].loss(target).sub(both[0].loss(target)).abs().min() > 1e-6
    assert (both[1].mean.abs() > both[0].mean.abs()).all()  # spread mass: the raw mean follows the outer bins
    heads, codes = (symlog_head, symexp_head), (SymlogTwoHot, SymexpTwoHot)
    for head, wide, prediction in zip(heads, both, codes, strict=True):
        plain = prediction(head.out(head.trunk(feature)), head.bins)  # without the column that is never
        torch.testing.assert_close((wide.probs, wide.mean), (plain.probs, plain.mean))
        weights = list(head.parameters())
        of_both = [torch.autograd.grad(p.loss(target).sum(), weights) for p in (wide, plain)]
        torch.testing.assert_close(*of_both)
    # Block by block over more rows than a block has, in any shape; means as constants, then losses.
    many, aim = torch.randn(3, 700, 16), torch.randn(3, 700, 2).unbind(-1)
    aims = [x.unsqueeze(-1) * 50 for x in aim]
    for head, prediction in zip(heads, codes, strict=True):
        weights = list(head.parameters())
        plain, blocks = prediction(head.out(head.trunk(many)), head.bins), head(many)
        with torch.no_grad():
            torch.testing.assert_close(blocks.mean, plain.mean, rtol=1e-4, atol=1e-2)
            torch.testing.assert_close(head(many).mean, plain.mean, rtol=1e-4, atol=1e-2)
            torch.testing.assert_close(head(many).loss(*aims), plain.loss(*aims))
            torch.testing.assert_close((blocks.logits, blocks.probs), (plain.logits, plain.probs))
        torch.testing.assert_close(blocks.loss(*aims), plain.loss(*aims))
        losses = [p.loss(*aims).square().mean() for p in (blocks, plain)]
        of_both = [torch.autograd.grad(loss, weights, retain_graph=True) for loss in losses]
        torch.testing.assert_close(*of_both, rtol=1e-4, atol=1e-5)
        scale = plain.mean.detach().abs().mean()  # a mean asked for with gradients has them
        of_both = [torch.autograd.grad((p.mean / scale).sum(), weights) for p in (blocks, plain)]
        torch.testing.assert_close(*of_both, rtol=1e-3, atol=1e-3)
        assert head(many[0, 0]).mean.shape == (1,) and head(many[:0]).mean.shape == (0, 700, 1)
    head = ContinueHead(16, label="discount", discount=1 - 1 / 333, **trunk)
    label = head.label({"terminated": torch.tensor([[False], [True]])})
    torch.testing.assert_close(label, torch.tensor([[1 - 1 / 333], [0.0]]))
    with pytest.raises(ConfigError, match=r"code 'raw' and 255 bins: wanted code symlog or symexp"):
        RewardHead(16, target="reward", code="raw", **trunk)  # type: ignore[arg-type]


# -- convolutions ------------------------------------------------------------------------


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


# -- sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ((512, 4, 4, 64), (57_663, 41_153, 50_316, 66_111)),
        ((2048, 16, 16, 256), (721_407, 656_129, 791_052, 853_503)),
    ],
)
def test_parameter_counts_are_the_published_ones(size, counts) -> None:
    deter, classes, _, units = size
    width = deter + 32 * classes
    trunk = dict(units=units, style=STYLE_2024)
    modules = (
        RewardHead(width, target="reward", layers=1, code="symexp", **trunk),
        ContinueHead(width, layers=1, label="discount", discount=1 - 1 / 333, **trunk),
        ContinuousActor(width, 6, layers=3, **trunk),
        Critic(width, target="lambda_target", layers=3, code="symexp", **trunk),
    )
    assert tuple(count(module) for module in modules) == counts
