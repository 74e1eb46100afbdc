"""Names and shapes in the three published files of LS-Imagine, from their layout tables.

mineclip()       mineclip_attn.pth, of any size
swin_unet()      swin_unet_checkpoint.pth
ls_imagine()     agent_state_dict of latest.pt, copies left out; copies() puts them in
light(shapes)    tensors of these shapes that take no memory
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

VISION = "model.clip_model.vision_model."
Shapes = dict[str, tuple[int, ...]]


def light(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """One number each, stretched: a file of them is small, whatever their shapes."""
    values = 0.02 * torch.randn(len(shapes), generator=torch.Generator().manual_seed(seed))
    return {name: x.clone().expand(shape) for x, (name, shape) in zip(values, shapes.items(), strict=True)}


def mineclip(
    *,
    tokens: int = 161,
    patch: int = 16,
    width: int = 768,
    layers: int = 12,
    dim: int = 512,
    text_width: int = 512,
    text_layers: int = 12,
    vocabulary: int = 49_408,
    context: int = 77,
    frames: int = 32,
    time_layers: int = 2,
    time_width: int = 512,
) -> Shapes:
    """With all aliases, under the prefix ``model.``."""
    vision: Shapes = {}
    text: Shapes = {}

    def norm(shapes: Shapes, name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def linear(shapes: Shapes, name: str, out: int, inp: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inp), (out,)

    def blocks(shapes: Shapes, count: int, width: int) -> None:
        for i in range(count):
            block = f"blocks.{i}"
            shapes[f"{block}.attn.in_proj_weight"], shapes[f"{block}.attn.in_proj_bias"] = (
                (3 * width, width),
                (3 * width,),
            )
            linear(shapes, f"{block}.attn.out_proj", width, width)
            norm(shapes, f"{block}.ln_1", width)
            linear(shapes, f"{block}.mlp.c_fc", 4 * width, width)
            linear(shapes, f"{block}.mlp.c_proj", width, 4 * width)
            norm(shapes, f"{block}.ln_2", width)

    vision["cls_token"], vision["pos_embed"], vision["projection"] = (width,), (tokens, width), (width, dim)
    vision["conv1.weight"] = (width, 3, patch, patch)
    norm(vision, "ln_pre", width)
    blocks(vision, layers, width)
    norm(vision, "ln_post", width)
    text["pos_embed"], text["projection"] = (context, text_width), (text_width, dim)
    text["token_embedding.weight"] = (vocabulary, text_width)
    blocks(text, text_layers, text_width)
    norm(text, "ln_final", text_width)
    clip: Shapes = {"logit_scale": ()}
    clip |= {f"vision_model.{name}": shape for name, shape in vision.items()}
    clip |= {f"text_model.{name}": shape for name, shape in text.items()}
    rest: Shapes = {"temporal_encoder.attn.model.pos_emb.emb.weight": (frames, dim)}
    for i in range(time_layers):
        even, odd = (f"temporal_encoder.attn.model.attn_layers.layers.{2 * i + one}." for one in (0, 1))
        norm(rest, even + "0.0", dim)
        for part in "qkv":
            rest[f"{even}1.to_{part}.weight"] = (time_width, dim)
        rest[even + "1.to_out.weight"] = (dim, time_width)
        norm(rest, odd + "0.0", dim)
        linear(rest, odd + "1.net.0.proj", 8 * dim, dim)
        linear(rest, odd + "1.net.3", dim, 4 * dim)
    norm(rest, "temporal_encoder.attn.model.norm", dim)
    rest["reward_head.video_residual_weight"] = ()
    linear(rest, "reward_head.video_adapter.0", dim, dim)
    linear(rest, "reward_head.video_adapter.3", dim, dim)
    whole = {f"clip_model.{name}": shape for name, shape in clip.items()} | rest
    whole |= {f"image_encoder.{name}": shape for name, shape in vision.items()}
    whole |= {f"reward_head.clip_model.{name}": shape for name, shape in clip.items()}
    return {f"model.{name}": shape for name, shape in whole.items()}


def shared(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MineCLIP's tensors, those of one name and its aliases one tensor."""
    first: dict[str, Tensor] = {}
    same = (("model.reward_head.clip_model.", "model.clip_model."), ("model.image_encoder.", VISION))
    found = {}
    for name, x in weights.items():
        plain = name
        for alias, own in same:
            plain = plain.replace(alias, own)
        found[name] = first.setdefault(plain, x)
    return found


def swin_unet() -> Shapes:
    """Names and shapes of LS-Imagine's swin_unet_checkpoint.pth, from its layout table."""
    heads = (3, 6, 12, 24)
    shapes: Shapes = {}

    def norm(name: str, c: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (c,)

    def blocks(name: str, k: int) -> None:
        c = 96 * 2**k
        for b in (0, 1):
            block = f"{name}.blocks.{b}"
            norm(f"{block}.norm1", c)
            norm(f"{block}.norm2", c)
            shapes[f"{block}.attn.relative_position_bias_table"] = (169, heads[k])
            shapes[f"{block}.attn.relative_position_index"] = (49, 49)
            for part, out, inp in (
                ("attn.qkv", 3 * c, c),
                ("attn.proj", c, c),
                ("mlp.fc1", 4 * c, c),
                ("mlp.fc2", c, 4 * c),
            ):
                shapes[f"{block}.{part}.weight"], shapes[f"{block}.{part}.bias"] = (out, inp), (out,)
            if b == 1 and k < 3:
                shapes[f"{block}.attn_mask"] = (4 ** (3 - k), 49, 49)

    shapes["patch_embed.proj.weight"], shapes["patch_embed.proj.bias"] = (96, 3, 4, 4), (96,)
    norm("patch_embed.norm", 96)
    for k in range(4):
        c = 96 * 2**k
        blocks(f"layers.{k}", k)
        if k < 3:
            shapes[f"layers.{k}.downsample.reduction.weight"] = (2 * c, 4 * c)
            norm(f"layers.{k}.downsample.norm", 4 * c)
        shapes[f"TIA.{k}.text_projection.weight"], shapes[f"TIA.{k}.text_projection.bias"] = (c, 512), (c,)
        for part in ("w_qs", "w_ks", "w_vs"):
            shapes[f"TIA.{k}.multi_head_attention.{part}.weight"] = (8 * c, c)
        shapes[f"TIA.{k}.multi_head_attention.fc.weight"] = (c, 8 * c)
        norm(f"TIA.{k}.multi_head_attention.layer_norm", c)
    shapes["layers_up.0.expand.weight"] = (1536, 768)
    norm("layers_up.0.norm", 384)
    for i, c in ((1, 384), (2, 192), (3, 96)):
        blocks(f"layers_up.{i}", 3 - i)
        shapes[f"concat_back_dim.{i}.weight"], shapes[f"concat_back_dim.{i}.bias"] = (c, 2 * c), (c,)
        if i < 3:
            shapes[f"layers_up.{i}.upsample.expand.weight"] = (2 * c, c)
            norm(f"layers_up.{i}.upsample.norm", c // 2)
    norm("norm", 768)
    norm("norm_up", 96)
    shapes["up.expand.weight"] = (1536, 96)
    norm("up.norm", 96)
    shapes["output.weight"] = (1, 96, 1, 1)
    return {f"swin_unet.{name}": shape for name, shape in shapes.items()}


def ls_imagine() -> Shapes:
    """Names and shapes in the released file (12 actions), copies left out."""
    shapes: Shapes = {}

    def put(name: str, *weight: int, norm: str = "", bias: bool = False) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]
        for leaf in ("weight", "bias") if norm else ():
            shapes[f"{norm}.{leaf}"] = weight[:1]

    def trunk(name: str, word: str, width: int, layers: int, out: int) -> None:
        for i in range(layers):
            layer = f"{name}.layers.{word}_"
            put(f"{layer}linear{i}", 1024, 1024 if i else width, norm=f"{layer}norm{i}")
        put(f"{name}.mean_layer", out, 1024, bias=True)

    for i, (wide, narrow) in enumerate([(96, 4), (192, 96), (384, 192), (768, 384)]):
        cnn = "_wm.encoder._cnn.layers."
        put(f"{cnn}{3 * i}", wide, narrow, 4, 4, norm=f"{cnn}{3 * i + 1}.norm")
        cnn = "_wm.heads.decoder._cnn.layers."
        shapes[f"{cnn}{9 - 3 * i}.weight"] = (wide, narrow, 4, 4)  # transposed
        for leaf in ("weight", "bias") if i else ():
            shapes[f"{cnn}{10 - 3 * i}.norm.{leaf}"] = (narrow,)
    shapes["_wm.heads.decoder._cnn.layers.9.bias"] = (4,)
    for i in range(5):
        mlp = "_wm.encoder._mlp.layers.Encoder_"
        put(f"{mlp}linear{i}", 1024, 1024 if i else 1, norm=f"{mlp}norm{i}")
    shapes["_wm.dynamics.W"] = (1, 4096)
    for name, width in {"_img_in_layers": 1037, "_img_out_layers": 4096, "_obs_out_layers": 17408}.items():
        put(f"_wm.dynamics.{name}.0", 1024, width, norm=f"_wm.dynamics.{name}.1")
    for name in ("_imgs_stat_layer", "_obs_stat_layer"):
        put(f"_wm.dynamics.{name}", 1024, 1024, bias=True)
    put("_wm.dynamics._cell.layers.GRU_linear", 12288, 5120, norm="_wm.dynamics._cell.layers.GRU_norm")
    put("_wm.heads.decoder._cnn._linear_layer", 12288, 5120, bias=True)
    for name, word, out in (
        ("reward", "Reward", 255),
        ("intrinsic", "Intrinsic", 255),
        ("end", "End", 1),
        ("jump", "Jump", 1),
        ("jumping_steps", "jumping_steps", 255),
        ("accumulated_reward", "accumulated_reward", 255),
    ):
        trunk(f"_wm.heads.{name}", word, 10240 if "_" in name else 5120, 5, out)
    trunk("_task_behavior.actor", "Actor", 5120, 5, 12)
    for name in ("value", "_slow_value"):
        trunk(f"_task_behavior.{name}", "Value", 5120, 2, 255)
    return shapes


def copies(weights: Mapping[str, Any], compiled: bool = True) -> dict[str, Any]:
    """As a file holds them: for the world model, for behaviour, for exploration, and the normaliser."""
    mark, found = "_orig_mod." * compiled, dict[str, Any]()
    for name, x in weights.items():
        part, _, rest = name.partition(".")
        found[f"{part}.{mark}{rest}"] = x
        for behaviour in ("_task_behavior", "_expl_behavior"):
            inner = f"_world_model.{rest}" if part == "_wm" else rest
            found[f"{behaviour}.{mark}{inner}"] = x
    normaliser = torch.tensor([-0.5, 1.5])
    return found | {f"{one}.{mark}ema_vals": normaliser for one in ("_task_behavior", "_expl_behavior")}
