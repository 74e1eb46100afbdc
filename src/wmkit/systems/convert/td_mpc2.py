"""Names of TD-MPC2's own code (nicklashansen/tdmpc2 e9f5932): the state dict of a single-task model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from wmkit.systems.convert.strict import Row, Slot, trace
from wmkit.systems.system import System

CODE = "the released TD-MPC2"
ADVICE = "build it from td_mpc2 with the size, observations and actions that they were trained with"
UNUSED = re.compile(r"log_std_(min|dif)|_detach_Qs_params\..+|.*\.__(batch_size|device)|_action_masks")
_OLDER = re.compile(r"_(target_)?Qs\.params\.(\d+)")  # tensors by number, as they were saved at first
_KINDS = ("weight", "bias", "ln.weight", "ln.bias")


def _hidden(ours: str, theirs: str) -> tuple[Row, Row]:
    """Linear maps and norms of a stack's hidden layers."""
    return (
        Row(ours + r"\.(\d+)\.linear\.(weight|bias)", (theirs + ".{0}.{1}",)),
        Row(ours + r"\.(\d+)\.norm\.(weight|bias)", (theirs + ".{0}.ln.{1}",)),
    )


def _latent(ours: str, theirs: str, at: int, layer: int) -> tuple[Row, Row]:
    """A linear map at ``at`` of a stack, and the norm behind it: the layer that makes a latent."""
    return (
        Row(rf"{ours}\.{at}\.(weight|bias)", (f"{theirs}.{layer}.{{0}}",)),
        Row(rf"{ours}\.{at + 1}\.(weight|bias)", (f"{theirs}.{layer}.ln.{{0}}",)),
    )


def _values(ours: str, theirs: str, layers: int) -> tuple[Row, Row, Row]:
    return (
        Row(ours + r"\.layers\.(\d+)\.(weight|bias)", (theirs + ".{0}.{1}",)),
        Row(ours + r"\.layers\.(\d+)\.norm\.(weight|bias)", (theirs + ".{0}.ln.{1}",)),
        Row(ours + r"\.out\.(weight|bias)", (f"{theirs}.{layers}.{{0}}",)),
    )


def complete(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """Under the names of today, with slow values that are copies where there are none."""
    found = {}
    for name, value in weights.items():
        older = _OLDER.fullmatch(str(name))
        if older:
            layer, kind = divmod(int(older[2]), len(_KINDS))
            name = f"_{'target_Qs_params' if older[1] else 'Qs.params'}.{layer}.{_KINDS[kind]}"
        found[name] = value
    if any(str(name).startswith("_target_Qs_params.") for name in found):
        return found
    own = {name: value for name, value in found.items() if re.match(r"_Qs\.params\.\d", str(name))}
    return found | {name.replace("_Qs.params", "_target_Qs_params"): value for name, value in own.items()}


def slots(system: System) -> dict[str, Slot]:
    """Every number of a system that TD-MPC2 keeps too, by our names."""
    model = system.world_model
    encoder, prior = len(model.encoder.vector), len(model.dynamics.prior) - 2
    values = len(system.critic.trunk.layers)
    rows = (
        *_hidden(r"world_model\.encoder\.vector", "_encoder.state"),
        *_latent(r"world_model\.dynamics\.posterior", "_encoder.state", 0, encoder),
        *_hidden(r"world_model\.dynamics\.prior", "_dynamics"),
        *_latent(r"world_model\.dynamics\.prior", "_dynamics", prior, prior),
        *_hidden(r"world_model\.heads\.reward\.trunk", "_reward"),
        Row(r"world_model\.heads\.reward\.out\.(weight|bias)", ("_reward.2.{0}",)),
        *_hidden(r"actor\.trunk", "_pi"),
        Row(r"actor\.out\.(weight|bias)", ("_pi.2.{0}",)),
        *_values(r"critic\.trunk", "_Qs.params", values),
        *_values(r"schedule\.slow_critic\.trunk", "_target_Qs_params", values),
    )
    return trace(system, rows, CODE, ADVICE)
