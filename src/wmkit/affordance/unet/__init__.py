"""Text-conditioned U-Nets that predict affordance maps in one pass.

=====================  ==========================================================
``model``              what they share: frames in, maps of the same size out
``swin``, ``fusion``   the published Swin-UNet; where the prompt enters it
``small``              a small one for every step on a CPU
``swin_weights``       released weights
``save``               own weights: safetensors and JSON
``dataset``            frames with labels, collected and on disk
``fit``, ``recipes``   training, ``augment`` included
``fit_report``         how good a fit is, by ``agreement``
``shipped/``           models that wmkit brings, a folder per task and world
=====================  ==========================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmkit.affordance.unet.model import AffordanceUNet
    from wmkit.affordance.unet.save import SavedAffordance, load_affordance, save_affordance
    from wmkit.affordance.unet.small import SmallUNet
    from wmkit.affordance.unet.swin import SwinUNet
    from wmkit.affordance.unet.swin_weights import load_swin_unet

_HOMES = {
    "AffordanceUNet": "model",
    "SavedAffordance": "save",
    "SmallUNet": "small",
    "SwinUNet": "swin",
    "load_affordance": "save",
    "load_swin_unet": "swin_weights",
    "save_affordance": "save",
}

SHIPPED = Path(__file__).parent / "shipped"
"""Folder of the models that wmkit brings, each as :func:`save_affordance` writes it, named TASK_WORLD."""

__all__ = [
    "SHIPPED",
    "AffordanceUNet",
    "SavedAffordance",
    "SmallUNet",
    "SwinUNet",
    "load_affordance",
    "load_swin_unet",
    "save_affordance",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the Swin-UNet brings timm, which takes seconds."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
