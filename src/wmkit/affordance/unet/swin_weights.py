"""Read LS-Imagine's released U-Net weights (``swin_unet_checkpoint.pth``).

The file is a bare state dict of 270 entries under the prefix ``swin_unet.``. Parameters match
:class:`~wmkit.affordance.unet.swin.SwinUNet` with ``fusion="constant_query"`` one to one, up to
the names below. Two buffers that timm computes instead of storing, ``attn_mask`` and
``relative_position_index``, are compared with its own and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from wmkit.affordance.published import cause
from wmkit.affordance.unet.swin import SwinUNet
from wmkit.errors import CheckpointError
from wmkit.nn.weights import fill, read_weights, strange

WHAT = "Swin-UNet checkpoint"
ADVICE = "use LS-Imagine's swin_unet_checkpoint.pth of the paper's page"

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
    """The released names to wmkit's.

    >>> list(convert_swin_unet({"swin_unet.TIA.2.multi_head_attention.fc.weight": torch.zeros(1)}))
    ['fusion.stages.2.out.weight']
    """
    converted = {}
    for name, value in state_dict.items():
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
    what, weights = WHAT, source
    if not isinstance(source, Mapping):
        what, weights = f"{WHAT} {str(source)!r}", read_swin_unet(source)
    model = SwinUNet(fusion="constant_query")
    fill_swin_unet(model, weights, what)
    return model.eval()


def read_swin_unet(path: str | PathLike) -> Any:
    """What lies in ``swin_unet_checkpoint.pth``.

    Raises:
        MissingWeightsError: there is no such file.
        CheckpointError: it cannot be read.
    """
    return read_weights(path, WHAT, ADVICE)


def fill_swin_unet(model: SwinUNet, weights: Any, what: str = WHAT) -> None:
    """Fill a U-Net with weights of the released layout or of wmkit's own, strictly.

    Raises:
        CheckpointError: an entry is missing, unknown or of another shape; the model is as it was.
    """
    if isinstance(weights, Mapping) and all(isinstance(name, str) for name in weights):
        weights = convert_swin_unet(weights)
        computed = dict(model.named_buffers())
        for name in [name for name in weights if name.rpartition(".")[2] in _BUFFERS and name in computed]:
            _check_buffer(name, weights.pop(name), computed[name], what)
    fill(model, weights, what, ADVICE, cause)


def _check_buffer(name: str, found: Any, wanted: Tensor, what: str) -> None:
    """Refuse a table that orders windows otherwise than timm's: biases would go to other places."""
    fits = isinstance(found, Tensor) and not strange(found) and found.shape == wanted.shape
    if not fits or (name.endswith("relative_position_index") and not torch.equal(found.long(), wanted.cpu())):
        raise CheckpointError(
            f"{what} has another {name}: found one that timm does not compute, wanted that of windows of "
            f"{wanted.shape[-1]} tokens; {ADVICE}"
        )
