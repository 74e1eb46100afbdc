"""Names of TransDreamer's own code (changchencc/TransDreamer 393007a): the state dict of its model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from wmkit.systems.convert.strict import Row, Slot, trace
from wmkit.systems.system import System

CODE = "the released TransDreamer"
ADVICE = "build it from transdreamer with the size and actions that they were trained with"
_NET = "world_model.dynamic."
UNUSED = re.compile(re.escape(_NET) + r"cell\.pos_embs\.inv_freq")  # computed, not learnt


def _stack(ours: str, theirs: str, apart: int = 1) -> Row:
    """Layers in order; with activations between them, numbers are two apart."""
    return Row(ours + r"\.(?:.+\.)?(weight|bias)", (theirs + ".net.{0}",), lambda k: apart * k)


def _layer(ours: str, *theirs: str) -> Row:
    """A part of every layer of the transformer."""
    pattern = r"world_model\.dynamics\.backbone\.layers\.(\d+)\." + re.escape(ours) + r"\.(weight|bias)"
    return Row(pattern, tuple(_NET + "cell.layers.{0}." + one + ".{1}" for one in theirs))


ROWS = (
    _stack(r"world_model\.encoder\.image", _NET + "img_enc.enc.{n}"),
    _stack(r"world_model\.dynamics\.posterior", _NET + "post_stoch_mlp.enc.{n}", 2),
    _stack(r"world_model\.dynamics\.tokens", _NET + "act_stoch_mlp"),
    _layer("attention.project", "mah.q_net.net", "mah.k_net.net", "mah.v_net.net"),
    _layer("attention.out", "mah.out_net.net"),
    _layer("norm_attention", "mah.layer_norm"),
    _layer("feed_forward.first", "pos_ff.CoreNet.0.net"),
    _layer("feed_forward.second", "pos_ff.CoreNet.2.net"),
    _layer("norm_feed_forward", "pos_ff.layer_norm"),
    _stack(r"world_model\.dynamics\.prior", _NET + "prior_stoch_mlp.enc.{n}", 2),
    _stack(r"world_model\.decoder\.image\.linear", "world_model.img_dec.fc"),
    _stack(r"world_model\.decoder\.image\.layers", "world_model.img_dec.dec.{n}"),
    _stack(r"world_model\.heads\.reward", "world_model.reward.dec.{n}", 2),
    _stack(r"world_model\.heads\.continuation", "world_model.pcont.dec.{n}", 2),
    _stack("actor", "actor.dec.{n}", 2),
    _stack("critic", "value.dec.{n}", 2),
    _stack(r"schedule\..*slow.*?", "slow_value.dec.{n}", 2),
)


def complete(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """With a slow value that is the value's copy, as it is at first, where there is none."""
    if any(str(name).startswith("slow_value.") for name in weights):
        return weights
    return {f"slow_{name}": x for name, x in weights.items() if str(name).startswith("value.")} | {**weights}


def slots(system: System) -> dict[str, Slot]:
    """Every number of a system that TransDreamer keeps too, by our names."""
    return trace(system, ROWS, CODE, ADVICE)
