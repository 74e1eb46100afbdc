"""The U-Nets: published size and weights, where the text acts, interface, saving."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from support.published import light, swin_unet
from wmkit.affordance import SmallUNet, SwinUNet, load_affordance, load_swin_unet, save_affordance
from wmkit.affordance.unet.fusion import ConstantQueryFusion, ImageQueryFusion, TextQueryAttention
from wmkit.affordance.unet.resize import SmoothResize
from wmkit.affordance.unet.swin_weights import fill_swin_unet
from wmkit.errors import CheckpointError, ConfigError, MissingWeightsError, SpecError

TINY = dict(embed_dim=16, heads=(1, 2, 4, 8), window=4, image_size=(64, 64), text_dim=8)


def test_released_checkpoint_loads_strictly(tmp_path):
    entries = swin_unet()
    assert len(entries) == 270
    windows = SwinUNet(embed_dim=24).layers[0].blocks[0].attn.relative_position_index
    state = {
        name: windows if name.endswith("relative_position_index") else x for name, x in light(entries).items()
    }
    torch.save(state, tmp_path / "swin_unet_checkpoint.pth")
    model = load_swin_unet(tmp_path / "swin_unet_checkpoint.pth")
    assert sum(p.numel() for p in model.parameters()) == 52_977_252
    assert model.fusion.stages[2].out.weight.equal(state["swin_unet.TIA.2.multi_head_attention.fc.weight"])
    assert (
        model.layers_up[1].blocks[1].mlp.fc1.bias.equal(state["swin_unet.layers_up.1.blocks.1.mlp.fc1.bias"])
    )
    dead = sum(p.numel() for k in (0, 1, 3) for p in model.fusion.stages[k].parameters())
    assert 20.8e6 < dead < 21e6

    before = {name: x.clone() for name, x in model.state_dict().items()}
    index = next(name for name in entries if name.endswith("relative_position_index"))
    for change, message in (
        (
            {"swin_unet.output.weight": torch.zeros(2, 96, 1, 1)},
            r"output.weight of shape \[2, 96, 1, 1\] inst",
        ),
        ({"swin_unet2.x": torch.zeros(1)}, r"unknown swin_unet2\.x"),
        ({index: windows.flip(0)}, "another layers.0.blocks.0.attn.relative_position_index"),
        ({"swin_unet.norm.weight": torch.full((768,), torch.nan)}, "NaN"),
        ({"swin_unet.norm.weight": torch.ones(768).to_sparse()}, "sparse"),
    ):
        with pytest.raises(CheckpointError, match=message):
            fill_swin_unet(model, {**state, **change})
    for name in list(state)[:12]:
        del state[name]
    with pytest.raises(CheckpointError, match=r"missing layers.0.blocks.0.attn.qkv.bias, .* and 1 more"):
        fill_swin_unet(model, state)
    with pytest.raises(CheckpointError, match="it seems to be LS-Imagine's agent"):
        fill_swin_unet(model, {"_wm.dynamics.W": torch.zeros(1, 4096)})
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    with pytest.raises(MissingWeightsError, match="does not exist"):
        load_swin_unet(tmp_path / "nowhere.pth")
    (tmp_path / "noise.pth").write_bytes(b"noise")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_swin_unet(tmp_path / "noise.pth")


def test_constant_query_answers_alike_everywhere_and_image_query_does_not():
    torch.manual_seed(0)
    dims, heads = (16, 32, 64), (1, 2, 4)
    skips = [torch.randn(2, size, size, dim) for dim, size in zip(dims, (8, 4, 2), strict=True)]
    text = torch.randn(2, 8)
    constant = ConstantQueryFusion(dims, 8, heads).eval()(skips, text)
    assert constant[1].flatten(1, 2).std(1).max() == 0  # the last skip the decoder reads
    assert constant[0] is skips[0] and constant[2] is skips[2]

    fused = ImageQueryFusion(dims, 8, heads).eval()(skips, text)
    for k in (0, 1):
        answer = fused[k] - skips[k]  # without the residual
        assert answer.flatten(1, 2).std(1).min() > 1e-5
    assert fused[2] is skips[2]


def test_text_query_attention_equals_attention_of_a_repeated_query():
    torch.manual_seed(1)
    part = TextQueryAttention(16, 8, heads=2).eval()
    tokens, text = torch.randn(3, 4, 5, 16), torch.randn(3, 8)
    flat = tokens.flatten(1, 2)
    query = part.query(part.text_projection(text))[:, None].expand(-1, 20, -1)

    def heads(x):
        return x.unflatten(-1, (2, 16)).transpose(1, 2)

    answer = F.scaled_dot_product_attention(heads(query), heads(part.key(flat)), heads(part.value(flat)))
    answer = part.norm(part.out(answer.transpose(1, 2).flatten(2))).view_as(tokens)
    torch.testing.assert_close(part(tokens, text), answer)


@pytest.mark.parametrize("fusion", ["constant_query", "image_query"])
def test_prompt_changes_the_map(fusion):
    torch.manual_seed(0)
    model = SwinUNet(fusion, **TINY).eval()
    images = torch.randn(1, 3, 64, 64)
    a, b = model(images, torch.randn(1, 8)), model(images, torch.randn(1, 8))
    assert a.shape == (1, 1, 64, 64) and a.min() > 0 and a.max() < 1
    assert not torch.equal(a, b)


def test_corrected_form_leaves_no_parameter_idle():
    model = SwinUNet(**TINY).train()
    model(torch.randn(2, 3, 64, 64), torch.randn(2, 8)).mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_other_depths_and_stage_counts():
    model = SwinUNet(
        embed_dim=8, depths=(1, 2, 1), heads=(1, 2, 2), window=4, image_size=(32, 48), text_dim=4
    )
    assert model.eval()(torch.zeros(1, 3, 32, 48), torch.zeros(1, 4)).shape == (1, 1, 32, 48)


def test_smooth_resize_equals_resize_then_blur():
    torch.manual_seed(0)
    maps = torch.rand(2, 20, 32)
    smooth = SmoothResize(blur=(7, 5))
    big = F.interpolate(maps[:, None], (40, 64), mode="bilinear", align_corners=False)
    taps = []
    for kernel in (7, 5):
        sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
        tap = torch.exp(-((torch.arange(kernel) - kernel // 2) ** 2) / (2 * sigma**2))
        taps.append(tap / tap.sum())
    big = F.pad(big, (2, 2, 3, 3), mode="reflect")
    big = F.conv2d(big, torch.outer(*taps)[None, None])[:, 0]
    torch.testing.assert_close(smooth(maps, (40, 64)), big)
    assert SmoothResize((79, 51))(torch.ones(1, 10, 10), (32, 32)).allclose(
        torch.ones(1, 32, 32)
    )  # wider than the image


@pytest.mark.parametrize(
    "make", [lambda: SmallUNet(text_dim=8), lambda: SwinUNet(**TINY)], ids=["small", "swin"]
)
def test_predict(make):
    torch.manual_seed(0)
    model = make().train()
    frames = torch.randint(0, 256, (3, 3, 160, 256), dtype=torch.uint8)
    text = torch.randn(3, 8)
    maps = model.predict(frames, text)
    assert maps.shape == (3, 160, 256) and maps.dtype == torch.float32 and not maps.requires_grad
    assert maps.min() >= 0 and maps.max() <= 1
    assert model.training  # as it was
    torch.testing.assert_close(
        model.predict(frames[1:2], text[1]), maps[1:2], atol=1e-5, rtol=1e-4
    )  # batch does not matter
    with pytest.raises(SpecError, match=r"wanted .*8"):
        model.predict(frames, torch.zeros(2, 8))
    with pytest.raises(SpecError, match="frames have shape"):
        model.predict(frames.permute(0, 2, 3, 1), text)


def test_save_and_load(tmp_path):
    torch.manual_seed(0)
    model, text = (
        SmallUNet(widths=(8, 16), depths=(1, 1), image_size=(32, 64), text_dim=8, blur=(3, 5)),
        torch.randn(8),
    )
    save_affordance(tmp_path, model, text, "Cut a tree")
    loaded = load_affordance(tmp_path)
    frames = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    assert loaded.model.predict(frames, loaded.text_features).equal(model.predict(frames, text))
    assert loaded.prompts == ["Cut a tree"] and loaded.text_features.equal(text[None])

    with pytest.raises(ConfigError, match="one row per prompt"):
        save_affordance(tmp_path / "b", model, torch.zeros(3, 8), "Cut a tree")
    with pytest.raises(MissingWeightsError, match=r"config\.json"):
        load_affordance(tmp_path / "nowhere")
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"kind": "huge"}, "format and kind"),
        ({"options": {**config["options"], "widths": [8, 24]}}, "wanted"),
        ({"options": {"colour": 1}}, "does not fit its own config"),
        ({"options": {**config["options"], "widths": 0}}, "does not fit its own config"),
        ({"kind": ["small"]}, "format and kind"),
        ({"prompts": "Cut a tree"}, "no text"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_affordance(tmp_path)
    next(model.parameters()).data.fill_(math.nan)
    save_affordance(tmp_path, model, text, "Cut a tree")
    with pytest.raises(CheckpointError, match="NaN"):
        load_affordance(tmp_path)


def test_bad_options():
    with pytest.raises(ConfigError, match="fusion 'sum' is unknown"):
        SwinUNet("sum", **TINY)
    with pytest.raises(ConfigError, match="multiples of 32"):
        SwinUNet(**{**TINY, "image_size": (100, 64)})
    with pytest.raises(ConfigError, match="multiples of 16"):
        SmallUNet(image_size=(90, 160))
    with pytest.raises(ConfigError, match="odd"):
        SmoothResize((4, 5))
