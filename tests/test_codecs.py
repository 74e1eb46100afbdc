"""Codecs against plain PyTorch: presets, embeddings of every kind of observation, keys, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn
from torch.nn import functional as F

from support.gradients import same_with_gradients
from wmkit.codecs import (
    BatchNormImageDecoder,
    BatchNormImageEncoder,
    ConvolutionalImageDecoder,
    ConvolutionalImageEncoder,
    Decoder,
    Encoder,
    PooledImageDecoder,
    PooledImageEncoder,
    UnpaddedImageDecoder,
    UnpaddedImageEncoder,
)
from wmkit.errors import ConfigError, SpecError
from wmkit.functional import symlog
from wmkit.nn import STYLE_2023, STYLE_2024, BatchNorm, LayerStyle, init_hidden, init_output

PIXELS = {"pixels": (3, 64, 64)}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# -- image halves ---------------------------------------------------------------------


class ByPosition(nn.LayerNorm):
    """Layer norm over the channels of every position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Row(NamedTuple):
    """A published codec in plain words: ``down`` and ``back`` are kernels, ``shift`` is taken off images."""

    encoder: Callable[..., Any]
    decoder: Callable[..., Any]
    style: LayerStyle
    norm: Callable[[int], nn.Module]
    act: Callable[[], nn.Module]
    padding: int
    back: tuple[int, ...]
    widths: tuple[int, ...]
    shift: float
    dense: str = "linear"
    last_bias: float = 0.0
    down: int = 4


PADDED = (4, 4, 4, 4), (8, 4, 2, 1)
BARE = LayerStyle(norm="none", activation="elu", bias=True, init="glorot")
TWM = LayerStyle(norm="none", bias=True, init="kaiming")
STORM = LayerStyle(eps=1e-5, activation="relu", init="fan_in")
TWM_DECODER = partial(
    UnpaddedImageDecoder, multipliers=[16, 4, 2, 1], dense="activated", centred=False, last_bias=0.5
)
ROWS = {
    "DreamerV3 of 2023": Row(
        ConvolutionalImageEncoder,
        ConvolutionalImageDecoder,
        *(STYLE_2023, partial(ByPosition, eps=1e-3), nn.SiLU, 1, *PADDED, 0.5),
    ),
    "without norm": Row(
        ConvolutionalImageEncoder,
        ConvolutionalImageDecoder,
        *(BARE, nn.Identity, nn.ELU, 1, *PADDED, 0.5),
    ),
    "DreamerV1": Row(
        partial(UnpaddedImageEncoder, activation="relu"),
        partial(UnpaddedImageDecoder, activation="relu"),
        *(BARE, nn.Identity, nn.ReLU, 0, (5, 5, 6, 6), (32, 4, 2, 1), 0.5),
    ),
    "TWM": Row(
        partial(UnpaddedImageEncoder, centred=False),
        TWM_DECODER,
        *(TWM, nn.Identity, nn.SiLU, 0, (5, 5, 6, 6), (16, 4, 2, 1), 0.0, "activated", 0.5),
    ),
    "STORM": Row(
        BatchNormImageEncoder,
        BatchNormImageDecoder,
        *(STORM, nn.BatchNorm2d, nn.ReLU, 1, *PADDED, 0.0, "normed"),
    ),
    "other kernels": Row(
        partial(ConvolutionalImageEncoder, kernel=6, padding=2),
        partial(ConvolutionalImageDecoder, kernels=(6, 6, 6), padding=2, multipliers=(4, 2, 1)),
        *(BARE, nn.Identity, nn.ELU, 2, (6, 6, 6), (4, 2, 1), 0.5, "linear", 0.0, 6),
    ),
}


class PlainEncoder(nn.Sequential):
    def __init__(self, row: Row, depth: int) -> None:
        super().__init__()
        for before, after in pairwise([3, *(depth * 2**i for i in range(4))]):
            conv = nn.Conv2d(before, after, row.down, 2, row.padding, bias=row.style.bias)
            self.extend([init_hidden(conv, row.style.init), row.norm(after), row.act()])
        self.shift = row.shift

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image - self.shift).flatten(1)


class PlainDecoder(nn.Module):
    def __init__(self, row: Row, depth: int, in_dim: int) -> None:
        super().__init__()
        self.row, init = row, row.style.init
        self.side = 1 if row.padding == 0 else 64 // 2 ** len(row.back)
        widths = [depth * factor for factor in row.widths]
        linear = nn.Linear(in_dim, widths[0] * self.side**2, bias=row.dense != "normed")
        self.linear = init_output(linear, 1.0, init) if row.dense == "linear" else init_hidden(linear, init)
        self.layers = nn.Sequential()
        if row.dense == "normed":
            self.layers.extend([row.norm(widths[0]), row.act()])
        for (before, after), kernel in zip(pairwise(widths), row.back, strict=False):
            conv = nn.ConvTranspose2d(before, after, kernel, 2, row.padding, bias=row.style.bias)
            self.layers.extend([init_hidden(conv, init), row.norm(after), row.act()])
        last = init_output(nn.ConvTranspose2d(depth, 3, row.back[-1], 2, row.padding), 1.0, init)
        nn.init.constant_(last.bias, row.last_bias)
        self.layers.append(last)

    def forward(self, features: Tensor) -> Tensor:
        x, side = self.linear(features), self.side
        if self.row.dense == "normed":  # channels first
            x = x.view(len(x), -1, side, side)
        else:
            x = x.view(len(x), side, side, -1).permute(0, 3, 1, 2)
        return self.layers(self.row.act()(x) if self.row.dense == "activated" else x) + self.row.shift


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_convolutional_halves_are_pytorchs_layers_drawn_in_this_order(name: str, half: str) -> None:
    """Names, initial weights under a seed, values and gradients, learning and acting."""
    row, encodes = ROWS[name], half == "encoder"
    torch.manual_seed(0)
    part: Any = (
        row.encoder(PIXELS, depth=8, style=row.style)
        if encodes
        else row.decoder(24, PIXELS, depth=8, style=row.style)
    )
    torch.manual_seed(0)
    plain = PlainEncoder(row, 8) if encodes else PlainDecoder(row, 8, 24)
    prefix = "layers." if encodes else ""
    initial = {prefix + key: value for key, value in plain.state_dict().items()}
    assert list(part.state_dict()) == list(initial)
    assert all(value.equal(initial[key]) for key, value in part.state_dict().items())
    for parameter in part.parameters():
        if parameter.ndim == 1:  # zero or one so far
            nn.init.normal_(parameter)
    plain.load_state_dict({key.removeprefix(prefix): value for key, value in part.state_dict().items()})
    x = (torch.rand(2, 3, 64, 64) if encodes else torch.randn(2, 24)).requires_grad_()
    for learning in (True, False):
        results = []
        for module in (part, plain):
            out = module.train(learning)(x)
            weight = torch.linspace(-1, 1, out.numel()).view_as(out)
            results.append([out, *torch.autograd.grad((out * weight).sum(), [x, *module.parameters()])])
        for found, wanted in zip(*results, strict=True):
            scale = max(wanted.abs().max().item(), 1.0)
            torch.testing.assert_close(found, wanted, atol=1e-4 * scale, rtol=1e-4)
    if encodes:
        assert part.out_dim == out.shape[1]


@pytest.mark.parametrize("side", [64, 96])
def test_image_codec_is_the_published_one(side) -> None:
    """Against a transcription in plain operations, with the same weights."""
    torch.manual_seed(0)
    shapes, state_dim, deter, blocks = {"pixels": (3, side, side)}, 12, 16, 4
    encoder = PooledImageEncoder(shapes, depth=4)
    decoder = PooledImageDecoder(state_dim + deter, shapes, deter=deter, units=8, blocks=blocks, depth=4)
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
    encoder = Encoder(spaces, image=PooledImageEncoder, vectors_first=True, **both)
    image = partial(PooledImageDecoder, deter=deter, units=units)
    return encoder, Decoder(deter + 32 * classes, spaces, image=image, **both)


@pytest.mark.parametrize(
    ("vision", "size", "counts"),
    [
        (False, (512, 4, 4, 64), (10_112, 51_096)),
        (True, (2048, 16, 16, 256), (220_416, 1_272_003)),
    ],
)
def test_parameter_counts_are_the_published_ones(vision, size, counts) -> None:
    deter, _, depth, units = size
    spaces = PIXELS if vision else {"height": (1,), "orientations": (14,), "velocity": (9,)}
    modules = codec(spaces, vision, deter, depth, units)
    assert tuple(count(module) for module in modules) == counts


# -- whole codecs -----------------------------------------------------------------------


def test_encoder_and_decoder_stand_in_a_row_of_tensordict_modules() -> None:
    """Nested and renamed keys; what is written is what the tensor methods give."""
    torch.manual_seed(0)
    spaces = {"view": (3, 64, 64), ("agent", "speed"): (2,), "weapon": ()}
    options: Any = dict(images=["view"], vectors=[("agent", "speed"), "weapon"], discrete={"weapon": 4})
    options |= dict(depth=2, units=8, layers=1)
    places = [["cameras", "left"], ("agent", "speed"), "weapon"]
    encoder = Encoder(spaces, **options, in_keys=places, out_keys=[("world", "embed")])
    decoder = Decoder(encoder.out_dim, spaces, **options, in_keys=[("world", "embed")])
    assert encoder.in_keys == [("cameras", "left"), ("agent", "speed"), "weapon"]
    assert decoder.out_keys == [
        ("predicted", "view"),
        ("predicted", "agent", "speed"),
        ("predicted", "weapon"),
    ]
    batch = TensorDict(
        {
            "cameras": {"left": torch.randint(0, 256, (2, 5, 3, 64, 64), dtype=torch.uint8)},
            "agent": {"speed": torch.randn(2, 5, 2)},
            "weapon": torch.randint(0, 4, (2, 5)),
        },
        [2, 5],
    )
    flat = {key: batch.get(key) for key in encoder.in_keys}
    out = TensorDictSequential(encoder, decoder)(batch.clone())
    embed = encoder.encode(flat)
    assert out["world", "embed"].equal(embed) and encoder.encode(batch).equal(embed)
    for key, prediction in decoder.predict(embed).items():
        torch.testing.assert_close(out.get(("predicted", key)), prediction.mean)
    unit = flat | {("cameras", "left"): flat["cameras", "left"] / 255}
    torch.testing.assert_close(encoder.encode(unit), embed)
    known = Encoder(spaces, **options)  # the same parts under the observations' own keys
    known.load_state_dict(encoder.state_dict())
    own = {
        "view": flat["cameras", "left"],
        ("agent", "speed"): flat["agent", "speed"],
        "weapon": flat["weapon"],
    }
    assert known.in_keys == list(own) and known.encode(own).equal(embed)


@pytest.mark.parametrize("read", [["state"], ["state", "belief"], ["belief", ("next", "state")]])
def test_a_decoder_reads_what_its_in_keys_name_side_by_side(read: list[Any]) -> None:
    widths = {"state": 6, "belief": 4, ("next", "state"): 6}
    latent = TensorDict({"state": torch.randn(3, 6), "belief": torch.randn(3, 4)}, [3])
    latent["next", "state"] = torch.randn(3, 6)
    options: Any = dict(images=[], vectors=["speed"], depth=1, units=8, layers=1, in_keys=read)
    decoder = Decoder(sum(widths[key] for key in read), {"speed": (2,)}, **options)
    wanted = decoder.predict(torch.cat([latent[key] for key in read], -1))["speed"].mean
    assert decoder(latent)["predicted", "speed"].equal(wanted) and wanted.shape == (3, 2)


def test_vectors_are_squashed_or_one_hot_in_the_given_order() -> None:
    torch.manual_seed(0)
    spaces = {"slots": (2,), "pixels": (3, 64, 64), "weapon": (), "velocity": (3,)}
    options = dict(vectors=["velocity", "slots", "weapon"], discrete={"slots": 5, "weapon": 4})
    options |= dict(images=["pixels"], depth=2, units=8, layers=1, style=STYLE_2024)
    encoder = Encoder(spaces, image=PooledImageEncoder, vectors_first=True, **options)
    batch = {
        "pixels": torch.randint(0, 256, (2, 4, 3, 64, 64), dtype=torch.uint8),
        "velocity": torch.randn(2, 4, 3) * 100,
        "slots": torch.randint(0, 5, (2, 4, 2)),
        "weapon": torch.randint(0, 4, (2, 4)),
    }
    one_hot = F.one_hot(batch["slots"], 5).flatten(-2), F.one_hot(batch["weapon"], 4)
    vector = encoder.vector(torch.cat([symlog(batch["velocity"]), *one_hot], -1))
    image = encoder.image(batch["pixels"].flatten(0, 1) / 255).unflatten(0, (2, 4))
    torch.testing.assert_close(encoder.encode(batch), torch.cat([vector, image], -1), atol=1e-5, rtol=1e-5)
    nothing = dict(batch, weapon=torch.full((2, 4), -1))
    blank = torch.cat([symlog(batch["velocity"]), one_hot[0], torch.zeros(2, 4, 4)], -1)
    torch.testing.assert_close(encoder.encode(nothing)[..., :8], encoder.vector(blank))

    decoder = Decoder(48, spaces, image=partial(PooledImageDecoder, deter=16, units=8, blocks=2), **options)
    predictions = decoder.predict(torch.randn(2, 4, 48))
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
    encoder = PooledImageEncoder(PIXELS, depth=4, **options)
    assert [stage.conv.out_channels for stage in encoder.stages] == widths
    assert [stage.down for stage in encoder.stages] == down
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, encoder.out_dim) == (2, 256)
    decoder = PooledImageDecoder(32, PIXELS, deter=16, units=8, depth=4, **options)
    image = decoder(torch.randn(2, 32))
    assert image.shape == (2, 3, 64, 64) and image.min() > 0 and image.max() < 1
    image.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_a_codec_compiles_to_one_graph() -> None:
    torch.manual_seed(0)
    encoder = PooledImageEncoder(PIXELS, depth=4, patch=4)
    decoder = PooledImageDecoder(272, PIXELS, deter=16, units=8, depth=4, patch=4)

    def losses(image: Tensor, belief: Tensor) -> tuple[Tensor, Tensor]:
        feature = torch.cat([encoder(image), belief], -1)
        return encoder(image), decoder(feature)

    inputs = torch.rand(2, 3, 64, 64), torch.randn(2, 16)
    compiled = torch.compile(losses, fullgraph=True, backend="eager")(*inputs)
    for found, expected in zip(compiled, losses(*inputs), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("encode", "decode"),
    [
        (ConvolutionalImageEncoder, ConvolutionalImageDecoder),
        (UnpaddedImageEncoder, UnpaddedImageDecoder),
        (BatchNormImageEncoder, BatchNormImageDecoder),
        (PooledImageEncoder, partial(PooledImageDecoder, deter=16, units=8)),
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


def test_what_a_codec_cannot_take_is_refused_in_one_sentence() -> None:
    def refuse(spaces, kind=SpecError, image=PooledImageEncoder, **options) -> str:
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
    two_stages = partial(PooledImageEncoder, multipliers=(1, 2))
    assert "patch is 4 in a codec that halves images 2 times" in refuse(
        {"a": (3, 64, 64)}, ConfigError, two_stages, patch=4
    )
    with pytest.raises(ConfigError, match=r"deter is 64 with features of width 32"):
        PooledImageDecoder(32, PIXELS, deter=64, units=8, depth=4)
    with pytest.raises(ConfigError, match=r"has 12 channels, which 8 blocks cannot share"):
        PooledImageDecoder(32, PIXELS, deter=16, units=8, depth=3)
    unpadded = refuse({"a": (3, 64, 64)}, ConfigError, UnpaddedImageEncoder, patch=2)
    assert "patch is 2 with convolutions without padding" in unpadded
    for options in (
        dict(kernels=[5, 5, 5, 6]),
        dict(kernels=[6, 6]),
        dict(dense="sparse"),
        dict(norm="group"),
    ):
        with pytest.raises(ConfigError, match="|".join(options)):
            UnpaddedImageDecoder(8, PIXELS, depth=2, **options)
    options = dict(images=["pixels"], vectors=[], depth=2, units=8, layers=1)
    with pytest.raises(ConfigError, match="in_keys are"):
        Encoder(PIXELS, **options, in_keys=["left", "right"])
    with pytest.raises(SpecError, match="wanted at least one"):
        Encoder({}, images=[], vectors=[], depth=2, units=8, layers=1)


@pytest.mark.parametrize("shape", [(128, 16, 32, 32), (3, 8, 4, 4), (1, 4, 2, 2)])
def test_batch_norm_is_exact_in_channels_last_memory(shape: tuple[int, ...]) -> None:
    """PyTorch's own is off by 1e-4 there on a CPU."""
    torch.manual_seed(0)
    plain, ours = nn.BatchNorm2d(shape[1]).double(), BatchNorm(shape[1])
    nn.init.normal_(ours.weight), nn.init.normal_(ours.bias)
    plain.load_state_dict(ours.state_dict())
    x, grad = 2 * torch.randn(shape) + 3, torch.randn(shape)
    near, found = {"atol": 5e-6, "rtol": 1e-5}, {}
    for layer, one in ((plain, x.double()), (ours, x.contiguous(memory_format=torch.channels_last))):
        one.requires_grad_()
        y = layer(one)
        y.backward(grad.to(one.dtype))
        found[layer] = y, one.grad, layer.running_mean, layer.running_var
        assert layer.num_batches_tracked == 1
    assert found[ours][0].is_contiguous(memory_format=torch.channels_last)
    for theirs, mine in zip(found[plain], found[ours], strict=True):
        torch.testing.assert_close(mine.double(), theirs, **near)
    for theirs, mine in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, atol=1e-4, rtol=1e-4)
