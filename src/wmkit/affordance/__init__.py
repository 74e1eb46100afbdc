"""Affordance: where in a frame the task can be approached, learned from zooming and a scorer.

    frame --VirtualExploration(scorer)--> map            slow teacher, 81 zooms of 16 frames
    frame, text --SwinUNet | SmallUNet--> map            fast student, made by fit_affordance
    map --AffordanceTransform--> intrinsic reward, jump labels, zoomed view

Everything here is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmkit.affordance.fit import fit_affordance
    from wmkit.affordance.fit_report import FitReport
    from wmkit.affordance.frames import AffordanceDataset, collect_frames, label_frames
    from wmkit.affordance.jumps import JumpLabeller
    from wmkit.affordance.maps import ZoomWindow, affordance_score, fuse_scores, jump_probability, zoom_window
    from wmkit.affordance.mask import MaskAffordance
    from wmkit.affordance.recipes import RECIPES, Recipe
    from wmkit.affordance.rewards import ClipReward, DenseGate, PotentialGate, RecordGate
    from wmkit.affordance.scorers import EmbeddedScorer, HFClipScorer, LabelScorer, Scorer, build_scorer
    from wmkit.affordance.transform import AffordanceMap, AffordanceTransform
    from wmkit.affordance.unet.compat import load_swin_unet
    from wmkit.affordance.unet.model import AffordanceUNet
    from wmkit.affordance.unet.save import SavedAffordance, load_affordance, save_affordance
    from wmkit.affordance.unet.small import SmallUNet
    from wmkit.affordance.unet.swin import SwinUNet
    from wmkit.affordance.virtual_exploration import VirtualExploration

_HOMES = {
    "AffordanceDataset": "frames",
    "AffordanceMap": "transform",
    "AffordanceTransform": "transform",
    "AffordanceUNet": "unet.model",
    "ClipReward": "rewards",
    "DenseGate": "rewards",
    "EmbeddedScorer": "scorers",
    "FitReport": "fit_report",
    "HFClipScorer": "scorers",
    "JumpLabeller": "jumps",
    "LabelScorer": "scorers",
    "MaskAffordance": "mask",
    "PotentialGate": "rewards",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "RecordGate": "rewards",
    "SavedAffordance": "unet.save",
    "Scorer": "scorers",
    "SmallUNet": "unet.small",
    "SwinUNet": "unet.swin",
    "VirtualExploration": "virtual_exploration",
    "ZoomWindow": "maps",
    "affordance_score": "maps",
    "build_scorer": "scorers",
    "collect_frames": "frames",
    "fit_affordance": "fit",
    "fuse_scores": "maps",
    "jump_probability": "maps",
    "label_frames": "frames",
    "load_affordance": "unet.save",
    "load_swin_unet": "unet.compat",
    "save_affordance": "unet.save",
    "zoom_window": "maps",
}

__all__ = [
    "RECIPES",
    "AffordanceDataset",
    "AffordanceMap",
    "AffordanceTransform",
    "AffordanceUNet",
    "ClipReward",
    "DenseGate",
    "EmbeddedScorer",
    "FitReport",
    "HFClipScorer",
    "JumpLabeller",
    "LabelScorer",
    "MaskAffordance",
    "PotentialGate",
    "Recipe",
    "RecordGate",
    "SavedAffordance",
    "Scorer",
    "SmallUNet",
    "SwinUNet",
    "VirtualExploration",
    "ZoomWindow",
    "affordance_score",
    "build_scorer",
    "collect_frames",
    "fit_affordance",
    "fuse_scores",
    "jump_probability",
    "label_frames",
    "load_affordance",
    "load_swin_unet",
    "save_affordance",
    "zoom_window",
]


def __getattr__(name: str) -> Any:
    """Import a part on first use; the Swin-UNet alone takes seconds."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
