"""Names of LS-Imagine's own code (qiwang067/LS-Imagine b6a9e4c): ``agent_state_dict`` of its ``latest.pt``.

Only names differ: every tensor has the same layout (input order of channels and columns, gate order, feature
order). The file holds the same tensors up to three times: for the world model, for the behaviour, and for
exploration.
"""

from __future__ import annotations

import re

from wmkit.affordance.published import cause
from wmkit.errors import CheckpointError
from wmkit.nn.weights import Troubles
from wmkit.systems.convert.strict import FIRST_ROW, Row, Slot, trace
from wmkit.systems.system import System

CODE = "the released LS-Imagine"
ADVICE = "build it from ls_imagine with overrides=['size=paper'] and 12 actions"
UNUSED = re.compile(
    r"_task_behavior\.ema_vals"
)  # of the normaliser, which the code computes and does not use
_LEAF = r"(weight|bias)"
_RSSM, _CNN = r"world_model\.dynamics\.short\.", "_cnn.layers.{0}."


def _trunk(ours: str, theirs: str, word: str) -> tuple[Row, ...]:
    return (
        Row(ours + r"\.trunk\.(\d+)\.linear\.weight", (theirs + f".layers.{word}_linear{{0}}.weight",)),
        Row(ours + r"\.trunk\.(\d+)\.norm\." + _LEAF, (theirs + f".layers.{word}_norm{{0}}.{{1}}",)),
        Row(ours + r"\.out\." + _LEAF, (theirs + ".mean_layer.{0}",)),
    )


def _dense(ours: str, theirs: str) -> tuple[Row, ...]:
    return (
        Row(_RSSM + ours + r"\.linear\.weight", (f"_wm.dynamics.{theirs}.0.weight",)),
        Row(_RSSM + ours + r"\.norm\." + _LEAF, (f"_wm.dynamics.{theirs}.1." + "{0}",)),
    )


def _images(ours: str, theirs: str) -> tuple[Row, ...]:
    """Of every three layers the second is a norm, whose tensors lie one level deeper."""
    layers = r"world_model\." + ours + r"\.image\.layers\."
    return (
        Row(layers + r"(0|3|6|9)\." + _LEAF, (theirs + _CNN + "{1}",)),
        Row(layers + r"(\d+)\." + _LEAF, (theirs + _CNN + "norm.{1}",)),
    )


ROWS = (
    *_images("encoder", "_wm.encoder."),
    Row(
        r"world_model\.encoder\.vector\.(\d+)\.linear\.weight",
        ("_wm.encoder._mlp.layers.Encoder_linear{0}.weight",),
    ),
    Row(
        r"world_model\.encoder\.vector\.(\d+)\.norm\." + _LEAF,
        ("_wm.encoder._mlp.layers.Encoder_norm{0}.{1}",),
    ),
    Row(_RSSM + r"backbone\.start", ("_wm.dynamics.W",), turn=FIRST_ROW),
    *_dense("input", "_img_in_layers"),
    Row(_RSSM + r"backbone\.(linear|norm)\." + _LEAF, ("_wm.dynamics._cell.layers.GRU_{0}.{1}",)),
    *_dense(r"prior\.0", "_img_out_layers"),
    Row(_RSSM + r"prior\.1\." + _LEAF, ("_wm.dynamics._imgs_stat_layer.{0}",)),
    *_dense("posterior_in", "_obs_out_layers"),
    Row(_RSSM + r"posterior_out\.0\." + _LEAF, ("_wm.dynamics._obs_stat_layer.{0}",)),
    Row(r"world_model\.decoder\.image\.linear\." + _LEAF, ("_wm.heads.decoder._cnn._linear_layer.{0}",)),
    *_images("decoder", "_wm.heads.decoder."),
    *_trunk(r"world_model\.heads\.reward", "_wm.heads.reward", "Reward"),
    *_trunk(r"world_model\.heads\.continuation", "_wm.heads.end", "End"),
    *_trunk(r"world_model\.heads\.jump", "_wm.heads.jump", "Jump"),
    *_trunk(r"world_model\.heads\.intrinsic_reward", "_wm.heads.intrinsic", "Intrinsic"),
    *_trunk(r"world_model\.heads\.jump_steps", "_wm.heads.jumping_steps", "jumping_steps"),
    *_trunk(r"world_model\.heads\.jump_return", "_wm.heads.accumulated_reward", "accumulated_reward"),
    *_trunk("actor", "_task_behavior.actor", "Actor"),
    *_trunk("critic", "_task_behavior.value", "Value"),
    *_trunk(r"schedule\.slow_critic", "_task_behavior._slow_value", "Value"),
)


def slots(system: System) -> dict[str, Slot]:
    """Every number of a system that LS-Imagine keeps too, by our names.

    Raises:
        CheckpointError: a parameter that the original has not, or other channels in front of the map's.
    """
    for name in ("encoder", "decoder"):
        images = getattr(getattr(system.world_model, name), "images", ())
        channels = [system.spaces.shapes[key][0] for key in images if key in system.spaces.shapes]
        if len(channels) > 1 and channels[0] != 1:  # shapes alone would not tell
            raise CheckpointError(
                f"system {system.name} joins images in the order {', '.join(map(str, images))}: wanted the "
                "affordance map's channel first, as the released weights have it; set "
                "observations.images=[affordance,pixels]"
            )
    return trace(system, ROWS, CODE, ADVICE)


def complaint(troubles: Troubles) -> str:
    """The likely reason why weights do not fit."""
    if why := cause(troubles):
        return f"; {why}"
    deeper = [
        name for name in troubles["missing"] if re.search(r"value\.layers\.Value_(linear|norm)[2-9]", name)
    ]
    if deeper and len(deeper) == len(troubles["missing"]):
        return "; its critic is deeper than the published one, whose has two layers: critic.layers=2"
    if (
        troubles[""]
        and not troubles["missing"]
        and all("actor.mean_layer" in x or "_img_in" in x for x in troubles[""])
    ):
        return "; only the number of actions differs"
    return ""


def plain(name: str) -> str:
    """One name for the copies of a tensor, compiled or not.

    >>> plain("_task_behavior._orig_mod._world_model.dynamics.W"), plain("_wm._orig_mod.dynamics.W")
    ('_wm.dynamics.W', '_wm.dynamics.W')
    >>> plain("_expl_behavior.actor.mean_layer.bias")
    '_task_behavior.actor.mean_layer.bias'
    """
    name = name.replace("_orig_mod.", "")
    name = re.sub(r"^_expl_behavior\.", "_task_behavior.", name)
    return re.sub(r"^_task_behavior\._world_model\.", "_wm.", name)
