"""The three published files of LS-Imagine, told apart by the names in them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from wmkit.nn.weights import Troubles

LAYOUTS = {
    "mineclip": (
        re.compile(r"(model\.)?((reward_head\.)?clip_model|image_encoder|temporal_encoder)\."),
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
