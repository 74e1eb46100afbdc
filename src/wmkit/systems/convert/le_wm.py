"""Names of LeWorldModel's own code (lucas-maes/le-wm) with the vision transformer of transformers."""

from __future__ import annotations

import re

from wmkit.systems.convert.strict import FIRST_ROW, Row, Slot, Turn, trace
from wmkit.systems.system import System

CODE = "the released LeWorldModel"
ADVICE = "build it from le_wm with the size, pictures and actions that they were trained with"
_LEAF = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_VIT = r"world_model\.encoder\.image\.transformer\."
_BACKBONE = r"world_model\.dynamics\.backbone\."
_KERNEL_OF_ONE = Turn(lambda x: x.squeeze(-1), lambda x: x.unsqueeze(-1))


def _block(ours: str, *theirs: str) -> Row:
    """A part of every layer of the vision transformer."""
    pattern = _VIT + r"blocks\.(\d+)\." + re.escape(ours) + r"\.(weight|bias)"
    return Row(pattern, tuple(f"encoder.layers.{{0}}.{one}.{{1}}" for one in theirs))


def _layer(ours: str, theirs: str) -> Row:
    """A part of every layer of the predictor."""
    pattern = _BACKBONE + r"layers\.(\d+)\." + re.escape(ours) + r"\.(weight|bias)"
    return Row(pattern, (f"predictor.transformer.layers.{{0}}.{theirs}.{{1}}",))


def _projection(ours: str, theirs: str) -> tuple[Row, ...]:
    """One hidden layer with batch norm."""
    names = {r"0\.linear": 0, r"0\.norm": 1, "1": 3}
    return tuple(
        Row(rf"world_model\.dynamics\.{ours}\.{layer}\." + _LEAF, (f"{theirs}.net.{n}.{{0}}",))
        for layer, n in names.items()
    )


ROWS = (
    Row(_VIT + "cls_token", ("encoder.embeddings.cls_token",)),
    Row(_VIT + "pos_embed", ("encoder.embeddings.position_embeddings",)),
    Row(_VIT + r"patch_embed\.proj\." + _LEAF, ("encoder.embeddings.patch_embeddings.projection.{0}",)),
    _block("norm1", "layernorm_before"),
    _block("attn.qkv", "attention.q_proj", "attention.k_proj", "attention.v_proj"),
    _block("attn.proj", "attention.o_proj"),
    _block("norm2", "layernorm_after"),
    _block("mlp.fc1", "mlp.fc1"),
    _block("mlp.fc2", "mlp.fc2"),
    Row(_VIT + r"norm\." + _LEAF, ("encoder.layernorm.{0}",)),
    Row(_BACKBONE + "places", ("predictor.pos_embedding",), turn=FIRST_ROW),
    _layer("norm_attention", "attn.norm"),
    _layer("attention.project", "attn.to_qkv"),
    _layer("attention.out", "attn.to_out.0"),
    _layer("norm_feed_forward", "mlp.net.0"),
    _layer("feed_forward.first", "mlp.net.1"),
    _layer("feed_forward.second", "mlp.net.4"),
    _layer("modulation", "adaLN_modulation.1"),
    Row(_BACKBONE + r"norm\." + _LEAF, ("predictor.transformer.norm.{0}",)),
    Row(
        r"world_model\.dynamics\.tokens\.action\.0\.weight",
        ("action_encoder.patch_embed.weight",),
        turn=_KERNEL_OF_ONE,
    ),
    Row(r"world_model\.dynamics\.tokens\.action\.0\.bias", ("action_encoder.patch_embed.bias",)),
    Row(r"world_model\.dynamics\.tokens\.action\.1\." + _LEAF, ("action_encoder.embed.0.{0}",)),
    Row(r"world_model\.dynamics\.tokens\.action\.3\." + _LEAF, ("action_encoder.embed.2.{0}",)),
    *_projection("posterior", "projector"),
    *_projection("prior", "pred_proj"),
)
_OLDER = {  # names of a layer in older versions of transformers
    r"encoder\.encoder\.layer\.": "encoder.layers.",
    r"attention\.attention\.(query|key|value)\.": r"attention.\1_proj.",
    r"attention\.output\.dense\.": "attention.o_proj.",
    r"intermediate\.dense\.": "mlp.fc1.",
    r"(layers\.\d+)\.output\.dense\.": r"\1.mlp.fc2.",
}


def slots(system: System) -> dict[str, Slot]:
    """Every number of a system that LeWorldModel keeps too, by our names."""
    return trace(system, ROWS, CODE, ADVICE)


def plain(name: str) -> str:
    """A name as today's transformers has it.

    >>> plain("encoder.encoder.layer.3.attention.attention.query.bias")
    'encoder.layers.3.attention.q_proj.bias'
    """
    for older, today in _OLDER.items():
        name = re.sub(older, today, name)
    return re.sub(r"attention\.(q|k|v)\w+_proj\.", r"attention.\1_proj.", name)
