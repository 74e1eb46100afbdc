"""Read LS-Imagine's released U-Net weights (``swin_unet_checkpoint.pth``).

The file is a bare state dict of 270 entries under the prefix ``swin_unet.``. Parameters match
:class:`~wmkit.affordance.unet.swin.SwinUNet` with ``fusion="constant_query"`` one to one, up to
the names below. Two buffers that timm computes instead of storing, ``attn_mask`` and
``relative_position_index``, are recognised and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from wmkit.affordance.unet.model import load_strictly
from wmkit.affordance.unet.swin import SwinUNet
from wmkit.errors import CheckpointError, MissingWeightsError

_RENAMES = (
    (re.compile(r"^(?:module\.)?swin_unet\."), ""),
    (re.compile(r"^TIA\.(\d+)\.text_projection\."), r"fusion.stages.\1.text_projection."),
    (re.compile(r"^TIA\.(\d+)\.multi_head_attention\.w_qs\."), r"fusion.stages.\1.query."),
    (re.compile(r"^TIA\.(\d+)\.multi_head_attention\.w_ks\."), r"fusion.stages.\1.key."),
    (re.compile(r"^TIA\.(\d+)\.multi_head_attention\.w_vs\."), r"fusion.stages.\1.value."),
    (re.compile(r"^TIA\.(\d+)\.multi_head_attention\.fc\."), r"fusion.stages.\1.out."),
    (re.compile(r"^TIA\.(\d+)\.multi_head_attention\.layer_norm\."), r"fusion.stages.\1.norm."),
)
_BUFFERS = ("attn_mask", "relative_position_index")


def convert_swin_unet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The released names to wmkit's; computed buffers are dropped.

    >>> list(convert_swin_unet({"swin_unet.TIA.2.multi_head_attention.fc.weight": torch.zeros(1)}))
    ['fusion.stages.2.out.weight']
    """
    converted = {}
    for name, value in state_dict.items():
        if name.rpartition(".")[2] in _BUFFERS:
            continue
        for pattern, replacement in _RENAMES:
            name = pattern.sub(replacement, name)
        converted[name] = value
    return converted


def load_swin_unet(source: str | PathLike | Mapping[str, Tensor]) -> SwinUNet:
    """The published Swin-UNet with released weights, in evaluation mode on the CPU.

    Args:
        source: path of ``swin_unet_checkpoint.pth``, or its state dict.

    Returns:
        ``SwinUNet(fusion="constant_query")``, 52,977,252 parameters.

    Raises:
        MissingWeightsError: there is no such file.
        CheckpointError: the file is no state dict, or an entry is missing, unknown or of another shape.
    """
    state_dict = source if isinstance(source, Mapping) else _read(Path(source))
    model = SwinUNet(fusion="constant_query")
    load_strictly(model, convert_swin_unet(state_dict), "Swin-UNet checkpoint")
    return model.eval()


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise MissingWeightsError(
            f"Swin-UNet checkpoint {str(path)!r} does not exist: wanted LS-Imagine's "
            "swin_unet_checkpoint.pth; download it from the paper's page and give its path"
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are no checkpoint
        raise CheckpointError(
            f"Swin-UNet checkpoint {str(path)!r} cannot be read ({type(error).__name__}): wanted a state "
            "dict written by torch.save; download it again"
        ) from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"Swin-UNet checkpoint {str(path)!r} holds a {type(loaded).__name__}: wanted a bare state dict; "
            "save model.state_dict()"
        )
    return loaded
