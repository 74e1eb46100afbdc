"""The three published files of LS-Imagine, told apart by the names in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from wmkit.errors import CheckpointError
from wmkit.nn.weights import Troubles

LAYOUTS = {
    "mineclip": (
        re.compile(r"(model\.)?((reward_head\.)?clip_model|image_encoder|temporal_encoder)\.|state_dict$"),
        "MineCLIP (mineclip_attn.pth), which load_mineclip reads",
    ),
    "swin_unet": (
        re.compile(r"(module\.)?swin_unet\."),
        "LS-Imagine's U-Net (swin_unet_checkpoint.pth), which load_swin_unet reads",
    ),
    "agent": (
        re.compile(r"(_wm|_task_behavior|_expl_behavior)\.|agent_state_dict$"),
        "LS-Imagine's agent (latest.pt), which load_ls_imagine reads",
    ),
}


def layout(names: Iterable[str]) -> str | None:
    """Which of the files these names are of; None for none.

    >>> layout(["_wm._orig_mod.dynamics.W"]), layout(["weight"])
    ('agent', None)
    """
    names = list(names)
    return next((key for key, (sign, _) in LAYOUTS.items() if any(map(sign.match, names))), None)


def cause(troubles: Troubles) -> str:
    """What the file seems to be, where all that it holds is unknown; empty if none of them."""
    found = layout(troubles["unknown"])
    return f"it seems to be {LAYOUTS[found][1]}" if found else ""


def fill(module: nn.Module, weights: Any) -> None:
    """Fill a MineCLIP or a Swin-UNet with the released weights that belong to it.

    Raises:
        CheckpointError: another module, or weights that do not fit; the module is as it was.
    """
    from wmkit.affordance.scorers.mineclip import MineCLIP
    from wmkit.affordance.scorers.mineclip_weights import fill_mineclip
    from wmkit.affordance.unet.swin import SwinUNet
    from wmkit.affordance.unet.swin_weights import fill_swin_unet

    if isinstance(module, MineCLIP):
        return fill_mineclip(module, weights)
    if isinstance(module, SwinUNet):
        return fill_swin_unet(module, weights)
    raise CheckpointError(
        f"a {type(module).__name__} has no original whose weights are known: wanted a system, a MineCLIP or "
        "a SwinUNet; build one"
    )
