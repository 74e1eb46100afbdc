"""Codecs, heads and predictions of DreamerV3 since 2024, against anchors, plain PyTorch and TorchRL."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import SymExpTwoHot as TorchRLTwoHot

from wmkit.codecs import (
    BatchNormImageDecoder,
    BatchNormImageEncoder,
    Decoder,
    Encoder,
    ImageDecoder,
    ImageDecoder2024,
    ImageEncoder,
    ImageEncoder2024,
    UnpaddedImageDecoder,
    UnpaddedImageEncoder,
)
from wmkit.errors import ConfigError, SpecError
from wmkit.functional import symexp, symexp_bins, symlog
from wmkit.heads import ContinueHead, ContinuousActor, Critic, RewardHead
from wmkit.nn import (
    STYLE_2024,
    BoundedNormal,
    ConvStage,
    LayerStyle,
    SymexpTwoHot,
)

BINS = symexp_bins(20.0, 255)
PIXELS = {"pixels": (3, 64, 64)}


def same_with_gradients(found: Tensor, expected: Tensor, inputs: list[Tensor], tolerance: float) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    weight = torch.randn_like(expected)
    grads = torch.autograd.grad((found * weight).sum(), inputs, retain_graph=True)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs, retain_graph=True)
    for grad, want in zip(grads, wanted, strict=True):
        scale = max(want.abs().max().item(), 1.0)
        torch.testing.assert_close(grad, want, atol=tolerance * scale, rtol=tolerance)


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


# -- codecs ------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [64, 96])
def test_image_codec_is_the_published_one(side) -> None:
    """Against a transcription in plain operations, with the same weights."""
    torch.manual_seed(0)
    shapes, state_dim, deter, blocks = {"pixels": (3, side, side)}, 12, 16, 4
    encoder = ImageEncoder2024(shapes, depth=4)
    decoder = ImageDecoder2024(state_dim + deter, shapes, deter=deter, units=8, blocks=blocks, depth=4)
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        if name.endswith("bias") or "norm" in name:
            nn.init.normal_(parameter)
    image = torch.rand(2, 3, side, side)

    def norm_act(x: Tensor, weight: Tensor) -> Tensor:  # channels last
        return F.silu(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-4) * weight)

    def conv(x: Tensor, layer: nn.Module) -> Tensor:
        y = F.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, padding=2)
        return y.permute(0, 2, 3, 1)

    def pool(x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).amax((2, 4))

    def double(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 1).repeat_interleave(2, 2)

    x = image.permute(0, 2, 3, 1) - 0.5
    for stage in encoder.stages:
        x = norm_act(pool(conv(x, stage.conv)), stage.norm.weight)
    same_with_gradients(encoder(image), x.flatten(1), list(encoder.parameters()), 1e-4)
    assert encoder.out_dim == 16 * (side // 16) ** 2
    assert [stage.conv.weight.shape[0] for stage in encoder.stages] == [8, 12, 16, 16]

    feature = torch.randn(2, state_dim + deter, requires_grad=True)
    state, belief = feature[:, :state_dim], feature[:, state_dim:]
    h, grid = side // 16, decoder.grid
    parts = [belief[:, 4 * k : 4 * k + 4] @ grid.belief.weight[k] for k in range(blocks)]
    s0 = (torch.cat(parts, -1) + grid.belief.bias).view(2, blocks, h, h, 4)
    s0 = torch.cat(s0.unbind(1), -1)  # channels block by block
    s1 = norm_act(grid.state_in.linear(state), grid.state_in.norm.weight)
    s1 = grid.state_out(s1).view(2, h, h, 16)
    x = norm_act(s0 + s1, grid.norm.weight)
    for stage in decoder.stages:
        x = norm_act(conv(double(x), stage.conv), stage.norm.weight)
    x = torch.sigmoid(conv(double(x), decoder.out)).permute(0, 3, 1, 2)
    same_with_gradients(decoder(feature), x, [feature, *decoder.parameters()], 1e-4)


def codec(spaces, vision: bool, deter: int, depth: int, units: int, **options) -> tuple[Encoder, Decoder]:
    keys = dict(images=list(spaces), vectors=[]) if vision else dict(images=[], vectors=list(spaces))
    both = dict(keys, depth=depth, units=units, layers=3, style=STYLE_2024, **options)
    classes = {512: 4, 2048: 16, 16: 1}[deter]
    encoder = Encoder(spaces, image=ImageEncoder2024, vectors_first=True, **both)
    image = partial(ImageDecoder2024, deter=deter, units=units)
    return encoder, Decoder(deter + 32 * classes, spaces, image=image, **both)


@pytest.mark.parametrize(
    ("vision", "size", "counts"),
    [
        (False, (512, 4, 4, 64), (10_112, 51_096, 57_663, 41_153, 50_316, 66_111)),
        (True, (2048, 16, 16, 256), (220_416, 1_272_003, 721_407, 656_129, 791_052, 853_503)),
    ],
)
def test_parameter_counts_are_the_published_ones(vision, size, counts) -> None:
    deter, classes, depth, units = size
    spaces = PIXELS if vision else {"height": (1,), "orientations": (14,), "velocity": (9,)}
    width = deter + 32 * classes
    trunk = dict(units=units, style=STYLE_2024)
    modules = (
        *codec(spaces, vision, deter, depth, units),
        RewardHead(width, layers=1, **trunk),
        ContinueHead(width, layers=1, label="discount", discount=1 - 1 / 333, **trunk),
        ContinuousActor(width, 6, layers=3, **trunk),
        Critic(width, layers=3, **trunk),
    )
    assert tuple(count(module) for module in modules) == counts


def test_vectors_are_squashed_or_one_hot_in_the_given_order() -> None:
    torch.manual_seed(0)
    spaces = {"slots": (2,), "pixels": (3, 64, 64), "weapon": (), "velocity": (3,)}
    options = dict(vectors=["velocity", "slots", "weapon"], discrete={"slots": 5, "weapon": 4})
    options |= dict(images=["pixels"], depth=2, units=8, layers=1, style=STYLE_2024)
    encoder = Encoder(spaces, image=ImageEncoder2024, vectors_first=True, **options)
    batch = {
        "pixels": torch.randint(0, 256, (2, 4, 3, 64, 64), dtype=torch.uint8),
        "velocity": torch.randn(2, 4, 3) * 100,
        "slots": torch.randint(0, 5, (2, 4, 2)),
        "weapon": torch.randint(0, 4, (2, 4)),
    }
    one_hot = F.one_hot(batch["slots"], 5).flatten(-2), F.one_hot(batch["weapon"], 4)
    vector = encoder.vector(torch.cat([symlog(batch["velocity"]), *one_hot], -1))
    image = encoder.image(batch["pixels"].flatten(0, 1) / 255).unflatten(0, (2, 4))
    torch.testing.assert_close(encoder(batch), torch.cat([vector, image], -1), atol=1e-5, rtol=1e-5)
    nothing = dict(batch, weapon=torch.full((2, 4), -1))
    blank = torch.cat([symlog(batch["velocity"]), one_hot[0], torch.zeros(2, 4, 4)], -1)
    torch.testing.assert_close(encoder(nothing)[..., :8], encoder.vector(blank))

    decoder = Decoder(48, spaces, image=partial(ImageDecoder2024, deter=16, units=8, blocks=2), **options)
    predictions = decoder(torch.randn(2, 4, 48))
    assert list(predictions) == list(decoder.targets)
    for key, prediction in predictions.items():
        assert prediction.mode.shape == batch[key].shape
        loss = prediction.loss(batch[key])
        if key in options["discrete"]:
            logits = prediction.logits.movedim(-1, 2)
            wanted = F.cross_entropy(logits.flatten(0, 1), batch[key].flatten(0, 1), reduction="none")
            wanted = wanted.view(2, 4, -1).sum(-1)
        elif key == "velocity":
            wanted = (prediction.mean - symlog(batch[key])).square().sum(-1)
        else:
            wanted = (prediction.mean - batch[key] / 255).square().sum((-3, -2, -1))
        torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize(
    ("options", "widths", "down"),
    [
        (
            dict(multipliers=(1, 2, 3, 4, 4), outer=True, strided=True),
            [4, 8, 12, 16, 16],
            ["none"] + 4 * ["stride"],
        ),
        (dict(patch=2), [12, 16, 16], 3 * ["pool"]),
        (dict(patch=8), [16], ["pool"]),
        (dict(patch=8, multipliers=(1, 2, 3, 4, 4), outer=True), [16], ["pool"]),
    ],
)
def test_variants_of_the_image_codec_keep_their_grid(options, widths, down) -> None:
    encoder = ImageEncoder2024(PIXELS, depth=4, **options)
    assert [stage.conv.out_channels for stage in encoder.stages] == widths
    assert [stage.down for stage in encoder.stages] == down
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, encoder.out_dim) == (2, 256)
    decoder = ImageDecoder2024(32, PIXELS, deter=16, units=8, depth=4, **options)
    image = decoder(torch.randn(2, 32))
    assert image.shape == (2, 3, 64, 64) and image.min() > 0 and image.max() < 1
    image.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_codec_and_head_compile_to_one_graph() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder2024(PIXELS, depth=4, patch=4)
    decoder = ImageDecoder2024(272, PIXELS, deter=16, units=8, depth=4, patch=4)
    critic = Critic(272, units=8, layers=1, distribution="symexp_two_hot", outscale=1.0)

    def losses(image: Tensor, belief: Tensor) -> tuple[Tensor, Tensor]:
        feature = torch.cat([encoder(image), belief], -1)
        value = critic(feature)
        return decoder(feature), value.loss(value.mean + 1)

    inputs = torch.rand(2, 3, 64, 64), torch.randn(2, 16)
    compiled = torch.compile(losses, fullgraph=True, backend="eager")(*inputs)
    for found, expected in zip(compiled, losses(*inputs), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("encode", "decode"),
    [
        (ImageEncoder, ImageDecoder),
        (UnpaddedImageEncoder, UnpaddedImageDecoder),
        (BatchNormImageEncoder, BatchNormImageDecoder),
        (ImageEncoder2024, partial(ImageDecoder2024, deter=16, units=8)),
    ],
)
@pytest.mark.parametrize("depth", [8, 16])
def test_every_style_of_a_codec_learns_and_gives_the_same_without_gradients(encode, decode, depth) -> None:
    torch.manual_seed(0)
    image, features = torch.rand(2, 3, 64, 64), torch.randn(2, 24)
    before = image.clone()
    for norm, activation in itertools.product(("none", "layer", "rms"), ("silu", "elu", "relu")):
        style = LayerStyle(norm=norm, activation=activation)
        for codec, x in (
            (encode(PIXELS, depth=depth, style=style), image),
            (decode(24, PIXELS, depth=depth, style=style), features),
        ):
            codec.eval()
            learning = codec(x)
            learning.square().sum().backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in codec.parameters())
            with torch.no_grad():
                torch.testing.assert_close(codec(x), learning)
    assert image.equal(before)


def test_a_style_reaches_the_codec_of_2023_too() -> None:
    bare = LayerStyle(norm="none", activation="elu", bias=True)
    options = dict(images=["pixels"], vectors=[], depth=4, units=8, layers=1, style=bare)
    encoder, decoder = Encoder(PIXELS, **options), Decoder(16, PIXELS, **options)
    names = [name for half in (encoder, decoder) for name, _ in half.named_parameters()]
    assert not any("norm" in name for name in names)
    x = torch.rand(2, 3, 64, 64)
    y = x - 0.5
    for layer in encoder.image.layers[::3]:
        nn.init.normal_(layer.bias)
        y = F.elu(F.conv2d(y, layer.weight, layer.bias, 2, 1))
    torch.testing.assert_close(encoder({"pixels": x}), y.flatten(1), atol=1e-4, rtol=1e-4)
    assert decoder(torch.zeros(2, 16))["pixels"].mean.shape == (2, 3, 64, 64)


def test_what_a_codec_cannot_take_is_refused_in_one_sentence() -> None:
    def refuse(spaces, kind=SpecError, image=ImageEncoder2024, **options) -> str:
        options = dict(depth=4, units=8, layers=1, style=STYLE_2024) | options
        images = [key for key, shape in spaces.items() if len(shape) == 3]
        vectors = [key for key in spaces if key not in images]
        with pytest.raises(kind) as error:
            Encoder(spaces, images=images, vectors=vectors, image=image, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "shape [3, 72, 72]: wanted [channels, H, H] with H a multiple of 16 from 48 to 256;" in refuse(
        {"a": (3, 72, 72)}
    )
    assert "shape [64, 64, 3]: wanted [channels" in refuse({"a": (64, 64, 3)})
    assert "found 'a' with 64, 'b' with 96" in refuse({"a": (3, 64, 64), "b": (1, 96, 96)})
    assert "patch is 3: wanted 1, 2, 4 or 8" in refuse({"a": (3, 64, 64)}, ConfigError, patch=3)
    two_stages = partial(ImageEncoder2024, multipliers=(1, 2))
    assert "patch 4 leaves no stage" in refuse({"a": (3, 64, 64)}, ConfigError, two_stages, patch=4)
    with pytest.raises(ConfigError, match=r"deter is 64 with features of width 32"):
        ImageDecoder2024(32, PIXELS, deter=64, units=8, depth=4)
    with pytest.raises(ConfigError, match=r"has 12 channels, which 8 blocks cannot share"):
        ImageDecoder2024(32, PIXELS, deter=16, units=8, depth=3)
