"""Affordance models on disk: ``model.safetensors`` beside ``config.json``, no pickles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from wmkit.affordance.unet.model import AffordanceUNet
from wmkit.errors import CheckpointError, ConfigError, MissingWeightsError
from wmkit.nn.weights import fill

FORMAT = 1
KINDS = {
    "swin": "wmkit.affordance.unet.swin:SwinUNet",
    "small": "wmkit.affordance.unet.small:SmallUNet",
}
_TEXT = "text_features"


class SavedAffordance(NamedTuple):
    """The result of :func:`load_affordance`."""

    model: AffordanceUNet  # in evaluation mode, on the CPU
    text_features: Tensor  # [P, D] float32
    prompts: list[str]  # P of them


def save_affordance(
    path: str | PathLike, model: AffordanceUNet, text_features: Tensor, prompt: str | Sequence[str]
) -> Path:
    """Write a U-Net with the text features it was trained with.

    Args:
        path: a folder; made if needed, its files replaced.
        model: a :class:`SmallUNet` or :class:`SwinUNet`.
        text_features: ``[D]`` or ``[P, D]``, one row per prompt.
        prompt: the prompt, or P of them.

    Returns:
        The folder.

    Raises:
        ConfigError: rows of text and prompts differ in number, or the width is not the model's.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    rows = text_features[None] if text_features.ndim == 1 else text_features
    if rows.shape != (len(prompts), model.text_dim):
        raise ConfigError(
            f"text features to save have shape {tuple(text_features.shape)}: wanted "
            f"[{len(prompts)}, {model.text_dim}] for {len(prompts)} prompt(s); pass one row per prompt"
        )
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    tensors[_TEXT] = rows.detach().cpu().float().contiguous()
    config = {"format": FORMAT, "kind": model.kind, "options": model.options, "prompts": prompts}
    # Weights first: a folder with a config is complete.
    for name, write in (
        ("model.safetensors", lambda file: save_file(tensors, file)),
        ("config.json", lambda file: Path(file).write_text(json.dumps(config, indent=2) + "\n")),
    ):
        temporary = folder / f".{name}.tmp"
        write(str(temporary))
        temporary.replace(folder / name)
    return folder


def load_affordance(path: str | PathLike) -> SavedAffordance:
    """Read what :func:`save_affordance` wrote.

    Args:
        path: the folder.

    Returns:
        Model, text features and prompts.

    Raises:
        MissingWeightsError: no such folder, or a file of it is missing.
        CheckpointError: the files are of another kind, version or shape.
    """
    folder = Path(path)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise MissingWeightsError(
                f"affordance model {str(folder)!r} has no {name}: wanted a folder written by "
                "save_affordance; run `wmkit affordance fit` or give another path"
            )
    what = f"affordance model {str(folder)!r}"
    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(str(folder / "model.safetensors"))
    except (ValueError, SafetensorError, RecursionError) as error:
        raise CheckpointError(
            f"{what} cannot be read ({type(error).__name__}): wanted JSON and safetensors; fit it again"
        ) from error
    known = (
        isinstance(config, dict) and config.get("format") == FORMAT and isinstance(config.get("kind"), str)
    )
    if not known or config["kind"] not in KINDS:
        found = (
            (config.get("format"), config.get("kind")) if isinstance(config, dict) else type(config).__name__
        )
        raise CheckpointError(
            f"{what} is of format and kind {found}: wanted format {FORMAT} and one of "
            f"{', '.join(KINDS)}; fit it again"
        )
    module, _, attribute = KINDS[config["kind"]].partition(":")
    try:
        model = getattr(import_module(module), attribute)(**config.get("options", {}))
        prompts = list(config["prompts"])
        text = tensors.pop(_TEXT)
    except Exception as error:  # options of a stranger's file may break anything
        found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"{what} does not fit its own config ({found}): wanted one of wmkit's; fit it again"
        ) from error
    fill(model, tensors, what, "use the file that belongs to this model")
    if not isinstance(config["prompts"], list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise CheckpointError(f"{what} has prompts that are no text: wanted a list of texts; fit it again")
    if not bool(text.isfinite().all()):
        raise CheckpointError(f"{what} has text features with NaN or infinity: wanted numbers; fit it again")
    if text.shape != (len(prompts), model.text_dim):
        raise CheckpointError(
            f"{what} has text features of {tuple(text.shape)}: wanted "
            f"{(len(prompts), model.text_dim)}; fit it again"
        )
    return SavedAffordance(model.eval(), text.to(torch.float32), prompts)
