"""Names of TWM's own code (jrobine/twm e6a8e59): the state dict of its ``Agent``."""

from __future__ import annotations

import re

from wmkit.systems.convert.strict import TRANSPOSED, Row, Slot, trace
from wmkit.systems.system import System

CODE = "the released TWM"
ADVICE = "build it from twm with the size and actions that they were trained with"
_NET = "wm.dyn_model.prediction_net."
# Computed, not learnt: the table of sines and cosines.
UNUSED = re.compile(re.escape(_NET) + r"transformer\.pos_enc\.encodings")


def _stack(ours: str, theirs: str) -> Row:
    """Layers that are counted from one, whatever stands between them."""
    return Row(re.escape(ours) + r"\.(?:.+\.)?(weight|bias)", (theirs + "{n}.{0}",), lambda k: k + 1)


def _layer(ours: str, theirs: str) -> Row:
    """A part of every layer of the transformer."""
    pattern = r"world_model\.dynamics\.backbone\.layers\.(\d+)\." + re.escape(ours) + r"\.(weight|bias)"
    return Row(pattern, (_NET + "transformer.layers.{0}." + theirs + ".{1}",))


ROWS = (
    _stack("world_model.encoder.image", "wm.obs_model.encoder.0.conv"),
    _stack("world_model.dynamics.posterior", "wm.obs_model.encoder.2.linear"),
    _stack("world_model.decoder.image.linear", "wm.obs_model.decoder.0.linear"),
    _stack("world_model.decoder.image.layers", "wm.obs_model.decoder.2.conv_transpose"),
    _stack("world_model.dynamics.tokens.state", _NET + "embeds.z.linear"),
    _stack("world_model.dynamics.tokens.reward", _NET + "embeds.r.linear"),
    Row(r"world_model\.dynamics\.tokens\.action\.weight", (_NET + "embeds.a.weight",), turn=TRANSPOSED),
    _layer("attention.project", "self_attn.qkv_proj"),
    _layer("attention.out", "self_attn.out_proj"),
    _layer("position", "self_attn.pos_proj"),
    _layer("feed_forward.first", "linear1"),
    _layer("feed_forward.second", "linear2"),
    _layer("norm_attention", "norm1"),
    _layer("norm_feed_forward", "norm2"),
    Row(r"world_model\.dynamics\.backbone\.content_bias", (_NET + "transformer.u_bias",)),
    Row(r"world_model\.dynamics\.backbone\.position_bias", (_NET + "transformer.v_bias",)),
    _stack("world_model.dynamics.prior", _NET + "out_heads.z.linear"),
    _stack("world_model.heads.reward", _NET + "out_heads.r.linear"),
    _stack("world_model.heads.continuation", _NET + "out_heads.g.linear"),
    _stack("actor", "ac.actor_model.linear"),
    _stack("critic", "ac.critic_model.linear"),
)


def slots(system: System) -> dict[str, Slot]:
    """Every number of a system that TWM keeps too, by our names."""
    return trace(system, ROWS, CODE, ADVICE)
