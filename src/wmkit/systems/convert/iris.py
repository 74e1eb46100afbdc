"""Names of IRIS's own code (eloialonso/iris 24326aa): the state dict of its ``Agent``.

A release also has the networks of its perceptual loss and tables that are computed: these are not read.
"""

from __future__ import annotations

import re

from wmkit.systems.convert.strict import TRANSPOSED, Row, Slot, Turn, trace
from wmkit.systems.system import System

CODE = "the released IRIS"
ADVICE = "build it from iris with the size and actions that they were trained with"
UNUSED = re.compile(r"tokenizer\.lpips\..+|world_model\..*(mask|indices)")
# A layer over each position here, a convolution of one position there.
_POINTWISE = Turn(lambda x: x[..., 0, 0], lambda x: x[..., None, None])
_LEAF = r"\.(weight|bias)"


def _half(ours: str, theirs: str, level: str, leave: str) -> tuple[Row, ...]:
    """Encoder or decoder: its convolutions, levels and middle."""
    ours = re.escape(f"world_model.{ours}.image.")

    def attention(where: str, there: str, groups: int) -> tuple[Row, ...]:
        leaf = "{" + str(groups) + "}"
        projected = tuple(f"{there}.{name}.{leaf}" for name in "qkv")
        return (
            Row(ours + where + r"\.norm" + _LEAF, (f"{there}.norm.{leaf}",)),
            Row(ours + where + r"\.project" + _LEAF, projected),
            Row(ours + where + r"\.out" + _LEAF, (f"{there}.proj_out.{leaf}",)),
        )

    block = r"\.(norm1|conv1|norm2|conv2)" + _LEAF
    return (
        Row(ours + "first" + _LEAF, (f"{theirs}.conv_in.{{0}}",)),
        Row(
            ours + r"levels\.(\d+)\.blocks\.(\d+)" + block,
            (f"{theirs}.{level}.{{0}}.block.{{1}}.{{2}}.{{3}}",),
        ),
        *attention(r"levels\.(\d+)\.attention\.(\d+)", f"{theirs}.{level}.{{0}}.attn.{{1}}", 2),
        Row(ours + r"levels\.(\d+)\.leave" + _LEAF, (f"{theirs}.{level}.{{0}}.{leave}.conv.{{1}}",)),
        Row(ours + r"middle\.0" + block, (f"{theirs}.mid.block_1.{{0}}.{{1}}",)),
        *attention(r"middle\.1", f"{theirs}.mid.attn_1", 0),
        Row(ours + r"middle\.2" + block, (f"{theirs}.mid.block_2.{{0}}.{{1}}",)),
        Row(ours + "norm" + _LEAF, (f"{theirs}.norm_out.{{0}}",)),
        Row(ours + "last" + _LEAF, (f"{theirs}.conv_out.{{0}}",)),
    )


def _layer(ours: str, *theirs: str) -> Row:
    """A part of every layer of the transformer."""
    pattern = r"world_model\.dynamics\.backbone\.layers\.(\d+)\." + re.escape(ours) + _LEAF
    return Row(pattern, tuple("world_model.transformer.blocks.{0}." + one + ".{1}" for one in theirs))


def _head(ours: str, theirs: str) -> tuple[Row, ...]:
    there = f"world_model.{theirs}.head_module."
    return (
        Row(rf"world_model\.{ours}(?:\.trunk)?\.0\.linear" + _LEAF, (there + "0.{0}",)),
        Row(rf"world_model\.{ours}\.(?:1|out)" + _LEAF, (there + "2.{0}",)),
    )


_NET = r"world_model\.dynamics\."
ROWS = (
    *_half("encoder", "tokenizer.encoder", "down", "downsample"),
    Row(r"world_model\.decoder\.image\.enter" + _LEAF, ("tokenizer.post_quant_conv.{0}",)),
    *_half("decoder", "tokenizer.decoder", "up", "upsample"),
    Row(_NET + r"posterior\.weight", ("tokenizer.pre_quant_conv.weight",), turn=_POINTWISE),
    Row(_NET + r"posterior\.bias", ("tokenizer.pre_quant_conv.bias",)),
    Row(_NET + r"latent\.table", ("tokenizer.embedding.weight",)),
    Row(
        _NET + r"tokens\.action\.weight", ("world_model.embedder.embedding_tables.0.weight",), turn=TRANSPOSED
    ),
    Row(_NET + r"tokens\.frame\.weight", ("world_model.embedder.embedding_tables.1.weight",)),
    Row(_NET + r"backbone\.positions\.weight", ("world_model.pos_emb.weight",)),
    Row(_NET + r"backbone\.after_layers" + _LEAF, ("world_model.transformer.ln_f.{0}",)),
    _layer("norm_attention", "ln1"),
    _layer("norm_feed_forward", "ln2"),
    _layer("attention.project", "attn.query", "attn.key", "attn.value"),
    _layer("attention.out", "attn.proj"),
    _layer("feed_forward.first", "mlp.0"),
    _layer("feed_forward.second", "mlp.2"),
    *_head(r"dynamics\.prior", "head_observations"),
    *_head(r"heads\.reward", "head_rewards"),
    *_head(r"heads\.continuation", "head_ends"),
    Row(r"actor\.memory\.image\.layers\.\d+" + _LEAF, ("actor_critic.conv{n}.{0}",), lambda k: k + 1),
    Row(r"actor\.memory\.backbone\.input" + _LEAF, ("actor_critic.lstm.{0}_ih",)),
    Row(r"actor\.memory\.backbone\.recurrent" + _LEAF, ("actor_critic.lstm.{0}_hh",)),
    Row(r"actor\.out" + _LEAF, ("actor_critic.actor_linear.{0}",)),
    Row(r"critic\.out" + _LEAF, ("actor_critic.critic_linear.{0}",)),
)


def slots(system: System) -> dict[str, Slot]:
    """Every number of a system that IRIS keeps too, by our names."""
    return trace(system, ROWS, CODE, ADVICE)
