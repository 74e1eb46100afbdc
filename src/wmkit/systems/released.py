"""Weights of the released LS-Imagine code (``latest.pt``) for a system of ours.

Only names differ: every tensor has the same layout (input order of channels and columns, gate
order, feature order). Build the system with ``compat=released`` first, whose critic has the
depth those weights have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmkit.errors import CheckpointError, MissingWeightsError
from wmkit.systems.system import System

_HEADS = {
    "reward": "reward",
    "end": "continuation",
    "jump": "jump",
    "intrinsic": "intrinsic_reward",
    "jumping_steps": "jump_steps",
    "accumulated_reward": "jump_return",
}

# Pattern of a released name -> our name; \1, \2 as captured.
_TRUNK = [
    (r"layers\.\w+_linear(\d+)\.weight", r"trunk.\1.linear.weight"),
    (r"layers\.\w+_norm(\d+)\.(weight|bias)", r"trunk.\1.norm.\2"),
    (r"mean_layer\.(weight|bias)", r"out.\1"),
]
_DYNAMICS = [
    (r"W", "backbone.start"),
    (r"_img_in_layers\.0\.weight", "input.linear.weight"),
    (r"_img_in_layers\.1\.(weight|bias)", r"input.norm.\1"),
    (r"_cell\.layers\.GRU_linear\.weight", "backbone.linear.weight"),
    (r"_cell\.layers\.GRU_norm\.(weight|bias)", r"backbone.norm.\1"),
    (r"_img_out_layers\.0\.weight", "prior.0.linear.weight"),
    (r"_img_out_layers\.1\.(weight|bias)", r"prior.0.norm.\1"),
    (r"_imgs_stat_layer\.(weight|bias)", r"prior.1.\1"),
    (r"_obs_out_layers\.0\.weight", "posterior_in.linear.weight"),
    (r"_obs_out_layers\.1\.(weight|bias)", r"posterior_in.norm.\1"),
    (r"_obs_stat_layer\.(weight|bias)", r"posterior_out.0.\1"),
]
_CODEC = [
    (r"encoder\._cnn\.layers\.(\d+)\.norm\.(weight|bias)", r"encoder.image.layers.\1.\2"),
    (r"encoder\._cnn\.layers\.(\d+)\.weight", r"encoder.image.layers.\1.weight"),
    (r"encoder\._mlp\.layers\.\w+_linear(\d+)\.weight", r"encoder.vector.\1.linear.weight"),
    (r"encoder\._mlp\.layers\.\w+_norm(\d+)\.(weight|bias)", r"encoder.vector.\1.norm.\2"),
    (r"heads\.decoder\._cnn\._linear_layer\.(weight|bias)", r"decoder.image.linear.\1"),
    (r"heads\.decoder\._cnn\.layers\.(\d+)\.norm\.(weight|bias)", r"decoder.image.layers.\1.\2"),
    (r"heads\.decoder\._cnn\.layers\.(\d+)\.(weight|bias)", r"decoder.image.layers.\1.\2"),
]


def rename(key: str) -> str | None:
    """Our name for a tensor of the released agent, or None for one we do not keep.

    >>> rename("_wm._orig_mod.dynamics._cell.layers.GRU_linear.weight")
    'world_model.dynamics.short.backbone.linear.weight'
    >>> rename("_wm.heads.end.layers.End_norm2.bias")
    'world_model.heads.continuation.trunk.2.norm.bias'
    >>> rename("_expl_behavior.actor.mean_layer.bias")
    """
    key = key.replace("_orig_mod.", "")
    if key.startswith("_wm."):
        key = key.removeprefix("_wm.")
        if key.startswith("dynamics."):
            return _first(_DYNAMICS, key.removeprefix("dynamics."), "world_model.dynamics.short.")
        for theirs, ours in _HEADS.items():
            if key.startswith(f"heads.{theirs}."):
                return _first(_TRUNK, key.removeprefix(f"heads.{theirs}."), f"world_model.heads.{ours}.")
        return _first(_CODEC, key, "world_model.")
    for theirs, ours in (("actor", "actor"), ("value", "critic"), ("_slow_value", "schedule.slow_critic")):
        prefix = f"_task_behavior.{theirs}."
        if key.startswith(prefix):
            return _first(_TRUNK, key.removeprefix(prefix), f"{ours}.")
    return None


def load_ls_imagine(system: System, checkpoint: str | Path | Mapping[str, Any]) -> None:
    """Load the released agent's weights into a system, strictly.

    Args:
        system: built from ``ls_imagine`` with ``size=paper compat=released``.
        checkpoint: path of ``latest.pt``, or its content.

    Raises:
        MissingWeightsError: no such file.
        CheckpointError: a tensor is missing, unknown or of another shape.
    """
    if isinstance(checkpoint, (str, Path)):
        if not Path(checkpoint).is_file():
            raise MissingWeightsError(
                f"LS-Imagine weights {str(checkpoint)!r} are not there: wanted the file latest.pt of the "
                "release; download it and give its path"
            )
        content: Mapping[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    else:
        content = checkpoint
    state: Mapping[str, Tensor] = content.get("agent_state_dict", content)
    ours = dict(system.named_parameters())
    renamed = {}
    for key, value in state.items():
        name = rename(key)
        if name is not None:
            renamed[name] = value.reshape(-1) if name.endswith("backbone.start") else value
        elif key.replace("_orig_mod.", "").startswith("_wm."):
            raise CheckpointError(
                f"LS-Imagine weight {key!r} has no place in {system.name}: wanted the layout of the release; "
                "check which code wrote the checkpoint"
            )
    for name in sorted(ours.keys() | renamed.keys()):
        found = list(renamed[name].shape) if name in renamed else "nothing"
        wanted = list(ours[name].shape) if name in ours else "nothing"
        if found != wanted:
            raise CheckpointError(
                f"LS-Imagine weight {name!r} does not fit: found {found}, wanted {wanted}; build the system "
                "with overrides=['size=paper', 'compat=released'] and 12 actions"
            )
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(renamed[name])


def _first(patterns: list[tuple[str, str]], key: str, prefix: str) -> str | None:
    for pattern, name in patterns:
        if match := re.fullmatch(pattern, key):
            return prefix + match.expand(name)
    return None
