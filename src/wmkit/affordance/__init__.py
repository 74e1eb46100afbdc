"""Affordance: where in a frame the task can be approached, learned from zooming and a scorer.

    frame --VirtualExploration(scorer)--> map            slow teacher, 81 zooms of 16 frames
    frame, text --SwinUNet | SmallUNet--> map            fast student, made by fit_affordance
    map --AffordanceTransform--> intrinsic reward, jump labels, zoomed view

``labels`` holds maps and what is made of them, ``unet`` the student and its fit, ``scorers`` the teacher's
judges. Everything here is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmkit.affordance.labels.gates import DenseGate, PotentialGate, RecordGate
    from wmkit.affordance.labels.jumps import JumpLabeller
    from wmkit.affordance.labels.map_scores import affordance_score, jump_probability
    from wmkit.affordance.labels.records import AffordanceModel
    from wmkit.affordance.labels.score_fusion import fuse_scores
    from wmkit.affordance.labels.video_score import ClipReward
    from wmkit.affordance.labels.virtual_exploration import VirtualExploration
    from wmkit.affordance.labels.zoom_windows import ZoomWindow, zoom_window
    from wmkit.affordance.mask import MaskAffordance
    from wmkit.affordance.scorers import (
        EmbeddedScorer,
        HFClipScorer,
        LabelScorer,
        MineCLIP,
        Scorer,
        build_scorer,
        load_mineclip,
    )
    from wmkit.affordance.transform import AffordanceMap, AffordanceTransform
    from wmkit.affordance.unet.dataset import AffordanceDataset, collect_frames, label_frames
    from wmkit.affordance.unet.fit import fit_affordance
    from wmkit.affordance.unet.fit_report import FitReport
    from wmkit.affordance.unet.model import AffordanceUNet
    from wmkit.affordance.unet.recipes import RECIPES, Recipe
    from wmkit.affordance.unet.save import SavedAffordance, load_affordance, save_affordance
    from wmkit.affordance.unet.small import SmallUNet
    from wmkit.affordance.unet.swin import SwinUNet
    from wmkit.affordance.unet.swin_weights import load_swin_unet

_HOMES = {
    "AffordanceDataset": "unet.dataset",
    "AffordanceMap": "transform",
    "AffordanceModel": "labels.records",
    "AffordanceTransform": "transform",
    "AffordanceUNet": "unet.model",
    "ClipReward": "labels.video_score",
    "DenseGate": "labels.gates",
    "EmbeddedScorer": "scorers",
    "FitReport": "unet.fit_report",
    "HFClipScorer": "scorers",
    "JumpLabeller": "labels.jumps",
    "LabelScorer": "scorers",
    "MaskAffordance": "mask",
    "MineCLIP": "scorers",
    "PotentialGate": "labels.gates",
    "RECIPES": "unet.recipes",
    "Recipe": "unet.recipes",
    "RecordGate": "labels.gates",
    "SavedAffordance": "unet.save",
    "Scorer": "scorers",
    "SmallUNet": "unet.small",
    "SwinUNet": "unet.swin",
    "VirtualExploration": "labels.virtual_exploration",
    "ZoomWindow": "labels.zoom_windows",
    "affordance_score": "labels.map_scores",
    "build_scorer": "scorers",
    "collect_frames": "unet.dataset",
    "fit_affordance": "unet.fit",
    "fuse_scores": "labels.score_fusion",
    "jump_probability": "labels.map_scores",
    "label_frames": "unet.dataset",
    "load_affordance": "unet.save",
    "load_mineclip": "scorers",
    "load_swin_unet": "unet.swin_weights",
    "save_affordance": "unet.save",
    "zoom_window": "labels.zoom_windows",
}

__all__ = [
    "RECIPES",
    "AffordanceDataset",
    "AffordanceMap",
    "AffordanceModel",
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
    "MineCLIP",
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
    "load_mineclip",
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
