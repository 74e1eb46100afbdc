"""Read MineCLIP's released weights (``mineclip_attn.pth``), or a model that :meth:`MineCLIP.save` wrote.

The released file is a dict with ``state_dict``, 788 tensors under the prefix ``model.``. Many are the same
ones under several names: ``image_encoder.*`` is ``clip_model.vision_model.*``, and
``reward_head.clip_model.*`` is ``clip_model.*``. They are read once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmkit.affordance.published import cause
from wmkit.affordance.scorers.mineclip import MineCLIP
from wmkit.errors import CheckpointError, MissingWeightsError
from wmkit.nn.weights import Troubles, fill, read_weights, strange

WHAT = "MineCLIP checkpoint"
ADVICE = "use mineclip_attn.pth, the attention variant, of MineCLIP's own page"
_ALIASES = (  # what stands before, and what the same tensor is called here
    (re.compile(r"^model\."), ""),
    (re.compile(r"^reward_head\.clip_model\."), "clip_model."),
    (re.compile(r"^image_encoder\."), "clip_model.vision_model."),
)
_TIME = r"^temporal_encoder\.attn\.model\."
_RENAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^clip_model\.logit_scale$", "log_scale"),
        (r"^clip_model\.vision_model\.", "vision."),
        (r"^clip_model\.text_model\.", "text."),
        (r"\.cls_token$", ".token"),
        (r"\.pos_embed$", ".position"),
        (r"\.token_embedding\.", ".token."),
        (r"\.conv1\.", ".patches."),
        (r"\.ln_pre\.", ".norm_in."),
        (r"\.ln_post\.|\.ln_final\.", ".norm_out."),
        (r"\.attn\.in_proj_(weight|bias)$", r".attention.project.\1"),
        (r"\.attn\.out_proj\.", ".attention.out."),
        (r"\.ln_1\.", ".norm_attention."),
        (r"\.ln_2\.", ".norm_feed_forward."),
        (r"\.mlp\.c_fc\.", ".feed_forward.first."),
        (r"\.mlp\.c_proj\.", ".feed_forward.second."),
        (_TIME + r"pos_emb\.emb\.weight$", "over_time.position"),
        (_TIME + r"norm\.", "over_time.norm_out."),
        (r"^reward_head\.video_residual_weight$", "adapter.keep"),
        (r"^reward_head\.video_adapter\.0\.", "adapter.first."),
        (r"^reward_head\.video_adapter\.3\.", "adapter.second."),
    )
)
_LAYER = re.compile(_TIME + r"attn_layers\.layers\.(\d+)\.(.+)$")
_IN_LAYER = {  # by what stands behind the number of a layer, of which even ones attend
    (0, "0.0."): "norm_attention.",
    (0, "1.to_out."): "attention.out.",
    (1, "0.0."): "norm_feed_forward.",
    (1, "1.net.0.proj."): "feed_forward.first.",
    (1, "1.net.3."): "feed_forward.second.",
}


def convert_mineclip(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The released names to wmkit's, each tensor once.

    Raises:
        CheckpointError: two names of one tensor have different values.

    >>> name = "model.image_encoder.blocks.3.attn.in_proj_weight"
    >>> list(convert_mineclip({name: torch.zeros(1)}))
    ['vision.blocks.3.attention.project.weight']
    """
    kept: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    for name, value in state_dict.items():
        plain = name
        for pattern, replacement in _ALIASES:
            plain = pattern.sub(replacement, plain)
        if plain in kept and not _same(kept[plain], value):
            raise CheckpointError(
                f"{WHAT} has two values for {plain}: found {first[plain]!r} and {name!r} that differ, wanted "
                f"copies; {ADVICE}"
            )
        if plain not in kept:
            kept[plain], first[plain] = value, name
    converted = {_ours(name): value for name, value in kept.items()}
    for prefix in {name.rpartition(".to_")[0] for name in converted if ".to_" in name}:
        names = [f"{prefix}.to_{which}.weight" for which in "qkv"]  # one matrix here, three there
        if all(isinstance(converted.get(name), Tensor) for name in names):
            rows = [converted.pop(name) for name in names]
            if len({x.shape for x in rows}) == 1 and not any(strange(x) or x.ndim != 2 for x in rows):
                converted[f"{prefix}.project.weight"] = torch.cat(rows)
    return converted


def load_mineclip(
    model: str | PathLike | Mapping[str, Any] | None = None,
    *,
    precision: str = "float32",
    merges: str | PathLike | None = None,
) -> MineCLIP:
    """MineCLIP with weights, in evaluation mode on the CPU; nothing is ever left random.

    Args:
        model: path of ``mineclip_attn.pth`` or what lies in it, or a folder of :meth:`MineCLIP.save`.
        precision: of the vision tower, ``"float32"`` or ``"bfloat16"`` (for GPUs).
        merges: path of CLIP's list of merges; that of an installed package if not given.

    Raises:
        MissingWeightsError: there is no such file.
        CheckpointError: the file cannot be read, or an entry is missing, unknown or of another shape.
    """
    if model is None:
        raise MissingWeightsError(
            "scorer 'mineclip' has no weights: found no path, wanted MineCLIP's mineclip_attn.pth; give it "
            "with affordance.scorer.path=FILE, or use affordance=embedded (trained on the worlds)"
        )
    options: dict[str, Any] = {}
    if isinstance(model, Mapping):
        what, weights = WHAT, model
    elif Path(model).is_dir():
        what, (options, weights) = f"MineCLIP model {str(model)!r}", _read_folder(Path(model))
    else:
        what, weights = f"{WHAT} {str(model)!r}", read_weights(model, WHAT, ADVICE)
    try:
        with torch.device("meta"):
            made = MineCLIP(**options, merges=merges)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{what} does not fit its own config ({error}): wanted one of wmkit's; save it again"
        ) from error
    fill_mineclip(made, weights, what)
    return made.compute_in(precision)


def fill_mineclip(model: MineCLIP, weights: Any, what: str = WHAT) -> None:
    """Fill a model with weights of the released layout or of wmkit's own, strictly.

    Raises:
        CheckpointError: an entry is missing, unknown or of another shape; the model is as it was.
    """
    if isinstance(weights, Mapping) and isinstance(weights.get("state_dict"), Mapping):
        weights = weights["state_dict"]
    named = isinstance(weights, Mapping) and all(isinstance(name, str) for name in weights)
    if named and "log_scale" not in weights:
        weights = convert_mineclip(weights)
    fill(model, weights, what, ADVICE, _cause)


def _cause(troubles: Troubles) -> str:
    missing = troubles["missing"]
    if missing and all(name.startswith("over_time.") for name in missing) and not troubles[""]:
        return f"it seems to be the avg variant, which has no transformer over time; {ADVICE}"
    return cause(troubles)


def _read_folder(folder: Path) -> tuple[dict[str, Any], Any]:
    advice = "give a folder that MineCLIP.save wrote, or the released file"
    if not (folder / "config.json").is_file():
        raise MissingWeightsError(
            f"scorer 'mineclip' has no weights: found no config.json in {str(folder)!r}, wanted one beside "
            f"model.safetensors; {advice}"
        )
    try:
        options = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise CheckpointError(
            f"{str(folder / 'config.json')!r} is no JSON: wanted what MineCLIP.save wrote; {advice}"
        ) from error
    if not isinstance(options, dict) or options.pop("scorer", None) != "mineclip":
        raise CheckpointError(
            f"{str(folder / 'config.json')!r} is not MineCLIP's: wanted what MineCLIP.save wrote; {advice}"
        )
    return options, read_weights(folder / "model.safetensors", "MineCLIP model", advice)


def _ours(name: str) -> str:
    if layer := _LAYER.match(name):
        number, rest = int(layer[1]), layer[2]
        block = f"over_time.blocks.{number // 2}."
        if number % 2 == 0 and re.match(r"1\.to_[qkv]\.", rest):
            return block + "attention." + rest[2:]
        for (odd, start), ours in _IN_LAYER.items():
            if odd == number % 2 and rest.startswith(start):
                return block + ours + rest[len(start) :]
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name


def _same(one: Any, other: Any) -> bool:
    """Whether two names stand for one tensor: one memory, or one content."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return False
    if strange(one) or strange(other):
        return one is other
    return (one.data_ptr() == other.data_ptr() and one.stride() == other.stride()) or torch.equal(one, other)
