"""Every short cut gives the numbers of the plain code, gradients included; one switch turns them off."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Composite, OneHot, Unbounded

import wmkit
from wmkit import backbones, fast
from wmkit.functional import sample_index, symexp_bins, unimix_probs
from wmkit.nn import (
    MLP,
    BlockLinear,
    ChannelRMSNorm,
    ConvStage,
    DoublingConv,
    Dropout,
    Feature,
    HalvingConv,
    Linear,
    RMSNorm,
    SquaredError,
    SymexpTwoHot,
    UnpaddedConv,
    UnpaddedTransposedConv,
    UpsamplingConv,
    UpsamplingStage,
)


def same_with_gradients(
    found: Tensor, expected: Tensor, inputs: list[Tensor], tolerance: float = 1e-9
) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    weight = torch.randn_like(expected)
    grads = (torch.autograd.grad(y, inputs, weight) for y in (found, expected))
    for one, other in zip(*grads, strict=True):
        scale = max(other.abs().max().item(), 1.0)
        torch.testing.assert_close(one, other, atol=tolerance * scale, rtol=tolerance)


# -- the switch --------------------------------------------------------------------------


def test_one_predicate_tells_where_short_cuts_may_be_taken() -> None:
    x, seen = torch.zeros(2, 2), []
    assert fast.enabled(x) and not fast.enabled(x.to("meta")) and fast.enabled(x.to("meta"), everywhere=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fast.enabled(x) and fast.enabled(x, autocast=True)

    def watched(x: Tensor) -> Tensor:
        seen.extend([fast.enabled(x), fast.enabled(x, compiled=True)])
        return x

    torch.func.vmap(watched)(x)
    torch.jit.trace(watched, (x,), check_trace=False)
    assert seen == [False, True, False, True]
    assert torch.compile(lambda x: x + fast.enabled(x), backend="eager", fullgraph=True)(x).sum() == 0


def test_the_switch_is_put_back_and_holds_in_every_thread() -> None:
    x, elsewhere = torch.zeros(1), []
    with pytest.raises(KeyError), fast.disabled():
        with fast.disabled():
            pass
        thread = threading.Thread(target=lambda: elsewhere.append(fast.enabled(x, everywhere=True)))
        thread.start()
        thread.join()
        raise KeyError
    assert elsewhere == [False] and fast.enabled(x)


# -- part by part ------------------------------------------------------------------------

STATE = F.one_hot(torch.arange(12).view(3, 4) % 5, 5).float().flatten(1)  # [3, 4 * 5]


def scored(x: Tensor) -> Tensor:
    prediction = SymexpTwoHot(x, symexp_bins(20.0, 7))
    return (
        prediction.loss(torch.tensor([[0.3], [-9.0]]), torch.tensor([[0.0], [1e9]]))
        + prediction.mean[:, 0] / 1e9
    )


def drawn(x: Tensor) -> Tensor:
    torch.manual_seed(1)
    return Dropout(0.3)(x)


def stepped(gru: backbones.SequenceModel, x: Tensor) -> Tensor:
    return gru.step(*x.split([6, 16], -1), torch.zeros(2, dtype=torch.bool))[0]


PARTS: dict[str, tuple[Callable[[], Callable[[Tensor], Tensor]], tuple[int, ...]]] = {
    "linear": (lambda: Linear(128, 256), (64, 128)),
    "block_linear": (lambda: BlockLinear(128, 256, 4), (128, 128)),
    "mlp": (lambda: MLP(6, 3, units=8, layers=2), (2, 5, 6)),
    "rms_norm": (lambda: RMSNorm(24), (2, 5, 24)),
    "channel_rms_norm": (lambda: ChannelRMSNorm(6), (2, 6, 4, 5)),
    "halving": (lambda: HalvingConv(3, 8), (2, 3, 8, 12)),
    "doubling": (lambda: DoublingConv(8, 3, bias=True, offset=0.5, patch=1), (2, 8, 4, 6)),
    "doubling, many": (lambda: DoublingConv(32, 64), (2, 32, 4, 6)),
    "doubling, some": (lambda: DoublingConv(32, 16), (2, 32, 4, 6)),
    "doubling, in blocks": (lambda: DoublingConv(16, 48, patch=4), (2, 16, 4, 6)),
    "upsampling": (lambda: UpsamplingConv(5, 12), (2, 5, 4, 6)),
    "upsampling zeros": (lambda: UpsamplingConv(5, 12, fill="zeros", patch=2), (2, 5, 4, 6)),
    "stages": (lambda: nn.Sequential(ConvStage(3, 8), UpsamplingStage(8, 3)), (2, 3, 8, 8)),
    "few positions": (lambda: UnpaddedConv(8, 6, 4), (3, 8, 6, 6)),
    "one position": (lambda: UnpaddedTransposedConv(8, 6, 5), (3, 8, 1, 1)),
    "even kernel": (lambda: UnpaddedTransposedConv(8, 6, 6), (3, 8, 3, 3)),
    "even kernel, many": (lambda: UnpaddedTransposedConv(8, 12, 6), (3, 8, 3, 3)),
    "odd kernel": (lambda: UnpaddedTransposedConv(8, 12, 5), (3, 8, 3, 3)),
    "block_gru": (lambda: partial(stepped, backbones.build("block_gru", 6, 16)), (2, 22)),
    "dropout": (lambda: drawn, (33, 7)),
    "squared_error": (lambda: lambda x: SquaredError(x, 2).loss(torch.ones(2, 3, 4)), (2, 3, 4)),
    "two_hot": (lambda: scored, (2, 7)),
    "few classes": (lambda: partial(unimix_probs, mix=0.01), (2, 3, 4)),
    "parts": (
        lambda: (
            lambda w: fast.linear_of_parts(
                [STATE, torch.ones(3, 2)], [STATE.view(3, 4, 5).argmax(-1), None], w
            )
        ),
        (6, 22),
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_the_same_numbers_with_short_cuts_off(part: str) -> None:
    make, shape = PARTS[part]
    torch.manual_seed(0)
    layer = make()
    learned = [*layer.parameters()] if isinstance(layer, nn.Module) else []
    for parameter in learned:
        nn.init.normal_(parameter, 0.0, 0.3)
    x = torch.randn(shape, requires_grad=True)
    quick = layer(x)
    with torch.no_grad():
        without_gradient = layer(x)
    with fast.disabled():
        plain = layer(x)
    torch.testing.assert_close(without_gradient, plain, atol=1e-5, rtol=1e-5)
    same_with_gradients(quick, plain, [x, *learned], 1e-5)


@pytest.mark.parametrize("classes", [2, 4, 8, 9])
def test_the_same_classes_with_short_cuts_off(classes: int) -> None:
    torch.manual_seed(0)
    probs, uniform = unimix_probs(torch.randn(50, 3, classes), 0.01), torch.rand(50, 3, 1)
    uniform[0] = 1 - 2**-24
    index = sample_index(probs, uniform)
    weight = torch.randn(6, 3 * classes)
    products = fast.one_hot_linear(index, weight)
    with fast.disabled():
        assert torch.equal(sample_index(probs, uniform), index)
        torch.testing.assert_close(fast.one_hot_linear(index, weight), products)


# -- against PyTorch ---------------------------------------------------------------------


@pytest.mark.parametrize("channels", [(8, 12, 2), (8, 3, 1), (32, 16, None), (16, 48, 4), (32, 64, None)])
def test_doubling_and_halving_equal_pytorch(channels) -> None:
    torch.manual_seed(0)
    few, many, patch = channels
    x = torch.randn(2, few, 4, 6, dtype=torch.double, requires_grad=True)
    layer = DoublingConv(
        few, many, bias=patch is not None, offset=0.5 if patch else 0.0, patch=patch
    ).double()
    bias = None if layer.bias is None else layer.bias + 0.5
    plain = F.pixel_shuffle(F.conv_transpose2d(x, layer.weight, bias, 2, 1), patch or 1)
    same_with_gradients(layer(x), plain, [x, *layer.parameters()])
    large = torch.randn(2, few, 8, 12, dtype=torch.double, requires_grad=True)
    halving = HalvingConv(few, many).double()
    plain = F.conv2d(large, halving.weight, stride=2, padding=1)
    same_with_gradients(halving(large), plain, [large, halving.weight])


@pytest.mark.parametrize("side", [4, 6, 7, 13])
def test_convolutions_without_padding_equal_pytorch(side: int) -> None:
    """Whichever way is taken for a shape: patches for few positions, one position, phases, few channels."""
    torch.manual_seed(0)
    x = torch.randn(3, 8, side, side, dtype=torch.double, requires_grad=True)
    for bias in (True, False):
        down = UnpaddedConv(8, 6, 4, bias=bias).double()
        same_with_gradients(down(x), F.conv2d(x, down.weight, down.bias, 2), [x, *down.parameters()])
        small = x.detach()[..., : side - 3, : side - 3].requires_grad_()
        for channels, kernel in ((3, 6), (12, 6), (12, 5), (3, 5)):
            up = UnpaddedTransposedConv(8, channels, kernel, bias=bias).double()
            plain = F.conv_transpose2d(small, up.weight, up.bias, 2)
            same_with_gradients(up(small), plain, [small, *up.parameters()])


def test_dropout_drops_its_share_everywhere_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropout, x = Dropout(0.1), torch.ones(401, 999, requires_grad=True)  # not a multiple of four
    y = dropout(x)
    scale = 2**16 / (2**16 - round(0.1 * 2**16))
    assert y.detach().unique().tolist() == pytest.approx([0.0, scale])
    dropped = (y == 0).float().flatten()
    assert dropped.mean() == pytest.approx(0.1, abs=2e-3)  # four standard errors
    for lane in range(4):  # of one drawn number
        assert dropped[lane::4].mean() == pytest.approx(0.1, abs=4e-3)
    for lag in range(1, 5):  # neighbours know nothing of each other
        assert (dropped[lag:] * dropped[:-lag]).mean() == pytest.approx(0.01, abs=1e-3)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y) and not torch.equal(dropout(x), y)
    assert dropout.eval()(x) is x
    for share in (0.0, 1e-9):
        assert torch.equal(Dropout(share)(x), x)


@pytest.mark.parametrize("fill", ["nearest", "zeros"])
@pytest.mark.parametrize("patch", [None, 1, 2])
def test_upsampling_conv_equals_pytorch(fill, patch) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4, 6, dtype=torch.double, requires_grad=True)
    layer = UpsamplingConv(5, 12, fill=fill, patch=patch).double()
    if fill == "nearest":
        up = F.interpolate(x, scale_factor=2, mode="nearest")
    else:  # values at odd rows and columns
        up = F.pad(x[..., None, :, None], (1, 0, 0, 0, 1, 0)).reshape(2, 5, 8, 12)
    plain = F.pixel_shuffle(F.conv2d(up, layer.weight, layer.bias, padding=2), patch or 1)
    same_with_gradients(layer(x), plain, [x, *layer.parameters()])


@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 8)])
def test_rms_norm_is_pytorchs_with_its_gradients(shape):
    norm, x = RMSNorm(shape[-1]), torch.randn(shape, requires_grad=True)
    nn.init.normal_(norm.weight)
    plain = F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
    wanted = [x, norm.weight]
    results = [(y, *torch.autograd.grad(y.sin().sum(), wanted)) for y in (plain, norm(x))]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# -- loops -------------------------------------------------------------------------------


def test_a_loop_sums_a_weights_gradient_once() -> None:
    """Also where gradients of inputs alone were asked for before, and in a thread that is in no loop."""
    dense, blocks = Linear(6, 6).double(), torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    start = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    def loop() -> Tensor:
        x = start
        for _ in range(3):
            x = torch.tanh(dense(x)) + fast.block_product(x, blocks).transpose(0, 1).flatten(1)
        return x

    plain = loop()
    with fast.loop_weights(start):
        summed = loop()
        elsewhere: list[Tensor] = []
        thread = threading.Thread(target=lambda: elsewhere.append(dense(start)))
        thread.start()
        thread.join()
    assert "_Product" in _nodes(summed.grad_fn) and "_Product" not in _nodes(plain.grad_fn)
    assert "_Product" not in _nodes(elsewhere[0].grad_fn)
    torch.autograd.grad(summed.sum(), start, retain_graph=True)
    same_with_gradients(summed, plain, [start, dense.weight, dense.bias, blocks], 1e-12)
    with fast.disabled(), fast.loop_weights(start):
        assert "_Product" not in _nodes(loop().grad_fn)


def _nodes(node: object) -> str:
    """Names of all operations of a graph."""
    seen, waiting = set(), [node]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in seen:
            seen.add(one)
            waiting += [before for before, _ in one.next_functions]  # type: ignore[attr-defined]
    return " ".join(type(x).__name__ for x in seen)


def test_an_update_over_many_rows_is_the_same_with_short_cuts_off() -> None:
    """First and last layers of a roll-out take their short cuts from so many rows on alone."""
    found = []
    for switch in (contextlib.nullcontext, fast.disabled):
        torch.manual_seed(0)
        with switch():
            system = wmkit.build(
                "dreamer_v3",
                observation_spec=Composite(observation=Unbounded((3,))),
                action_spec=OneHot(3),
                overrides=["size=tiny", "batch.size=32", "batch.length=17"],
            )
            for weight in system.parameters():  # heads begin with zeros
                torch.nn.init.trunc_normal_(weight, std=0.05)
            batch = system.example_batch()
            torch.manual_seed(1)
            metrics = system.update(batch)
        found.append(
            (metrics, dict(system.critic.named_parameters()) | dict(system.actor.named_parameters()))
        )
    (metrics, weights), (plain, expected) = found
    for name, value in plain.items():
        torch.testing.assert_close(metrics[name], value, atol=1e-5, rtol=1e-4, msg=name)
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=1e-4, msg=name)


def test_first_layers_give_each_reader_its_share_and_its_gradient() -> None:
    torch.manual_seed(0)
    classes, belief = torch.randint(4, (1024, 2)), torch.randn(1024, 5)
    state = F.one_hot(classes, 4).flatten(1).float()
    weights = [torch.randn(width, 13, requires_grad=True) for width in (3, 6)]
    layers = fast.FirstLayers.of(weights, state, classes)
    assert layers is not None and fast.FirstLayers.of(weights, state[:8], classes[:8]) is None
    made = layers.room(2, 1024)
    feature = Feature(state, belief, classes=[classes, None])
    made.take(feature, 0)
    known = Feature(state, belief, classes=[classes, None], products=made._replace(made=made.made[0]))
    for weight in weights:
        same_with_gradients(known.linear(weight), feature.linear(weight), [weight], 1e-5)
    with torch.no_grad():
        weights[0].mul_(2)  # what was made before is not used any more
        torch.testing.assert_close(known.linear(weights[0]), feature.linear(weights[0]))


@pytest.mark.parametrize("learns", [True, False])
def test_a_last_layer_in_blocks_is_that_layer(learns: bool, monkeypatch) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(shape, requires_grad=learns) for shape in ((3, 1000, 6), (9, 6), (9,))]
    bins, targets = torch.linspace(-2, 2, 9), [torch.randn(3, 1000, 1) for _ in range(2)]
    blocks, plain = (SymexpTwoHot(make(*inputs), bins) for make in (fast.LastLayer, F.linear))
    with torch.no_grad():
        torch.testing.assert_close(blocks.mean, plain.mean)
    with monkeypatch.context() as patch:
        if learns:  # no loss multiplies the whole layer out beside its blocks
            patch.setattr(fast.LastLayer, "logits", None)
        found, expected = blocks.loss(*targets), plain.loss(*targets)
    if learns:
        same_with_gradients(found, expected, inputs, 1e-5)
        torch.testing.assert_close(blocks.probs, plain.probs)
    else:
        torch.testing.assert_close(found, expected)
