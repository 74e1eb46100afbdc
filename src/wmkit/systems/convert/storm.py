"""Names of STORM's own code (weipu-zhang/STORM 1c50658): its world model's and its agent's state dict in one.

There a termination is predicted, here that the episode goes on: the last layer of that head changes its sign.
"""

from __future__ import annotations

import re

from wmkit.systems.convert.strict import NEGATED, Row, Slot, trace
from wmkit.systems.system import System

CODE = "the released STORM"
ADVICE = "build it from storm with the size and actions that they were trained with"
_LEAF = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_TRUNK = r"world_model\.heads\.{}\.trunk\.\d+\.(?:linear|norm)\." + _LEAF
_STEM = r"world_model\.dynamics\.tokens\."


def _triples(k: int) -> int:
    """Place of the k-th layer with numbers where every third has none: layer, norm, activation."""
    return k // 2 * 3 + k % 2


def _layer(ours: str, *theirs: str) -> Row:
    """A part of every layer of the transformer."""
    pattern = r"world_model\.dynamics\.backbone\.layers\.(\d+)\." + re.escape(ours) + r"\.(weight|bias)"
    return Row(pattern, tuple("storm_transformer.layer_stack.{0}." + one + ".{1}" for one in theirs))


ROWS = (
    Row(r"world_model\.encoder\.image\.layers\.\d+\." + _LEAF, ("encoder.backbone.{n}.{0}",), _triples),
    Row(r"world_model\.dynamics\.posterior\.0\." + _LEAF, ("dist_head.post_head.{0}",)),
    Row(r"world_model\.dynamics\.prior\.0\." + _LEAF, ("dist_head.prior_head.{0}",)),
    Row(_STEM + r"mixer\.(?:linear|norm)\." + _LEAF, ("storm_transformer.stem.{n}.{0}",)),
    Row(_STEM + r"out\.\d+\." + _LEAF, ("storm_transformer.stem.{n}.{0}",), lambda k: k + 3),
    Row(
        r"world_model\.dynamics\.backbone\.positions\.weight",
        ("storm_transformer.position_encoding.pos_emb.weight",),
    ),
    Row(r"world_model\.dynamics\.backbone\.after_embedding\." + _LEAF, ("storm_transformer.layer_norm.{0}",)),
    _layer("attention.project", "slf_attn.w_qs", "slf_attn.w_ks", "slf_attn.w_vs"),
    _layer("attention.out", "slf_attn.fc"),
    _layer("norm_attention", "slf_attn.layer_norm"),
    _layer("feed_forward.first", "pos_ffn.w_1"),
    _layer("feed_forward.second", "pos_ffn.w_2"),
    _layer("norm_feed_forward", "pos_ffn.layer_norm"),
    Row(r"world_model\.decoder\.image\.linear\.weight", ("image_decoder.backbone.0.weight",)),
    Row(
        r"world_model\.decoder\.image\.layers\.\d+\." + _LEAF,
        ("image_decoder.backbone.{n}.{0}",),
        lambda k: 1 + _triples(k + 1),  # the first layer has only a reshaping after it
    ),
    Row(_TRUNK.format("reward"), ("reward_decoder.backbone.{n}.{0}",), _triples),
    Row(r"world_model\.heads\.reward\.out\." + _LEAF, ("reward_decoder.head.{0}",)),
    Row(_TRUNK.format("continuation"), ("termination_decoder.backbone.{n}.{0}",), _triples),
    Row(
        r"world_model\.heads\.continuation\.(?:trunk\.\d+|out)\." + _LEAF,
        ("termination_decoder.head.0.{0}",),
        turn=NEGATED,
    ),
    Row(r"actor\.(?:.+\.)?" + _LEAF, ("actor.{n}.{0}",), _triples),
    Row(r"critic\..+\." + _LEAF, ("critic.{n}.{0}",), _triples),
    Row(r"schedule\.slow_critic\..+\." + _LEAF, ("slow_critic.{n}.{0}",), _triples),
)


def slots(system: System) -> dict[str, Slot]:
    """Every number of a system that STORM keeps too, by our names."""
    return trace(system, ROWS, CODE, ADVICE)


def plain(name: str) -> str:
    """A name in the two files: ``wm.`` and ``ag.`` before it tell only from which.

    >>> plain("wm.dist_head.post_head.bias"), plain("slow_critic.6.bias")
    ('dist_head.post_head.bias', 'slow_critic.6.bias')
    """
    return re.sub(r"^(wm|ag)\.", "", name)
