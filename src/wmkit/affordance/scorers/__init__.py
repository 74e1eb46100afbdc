"""Scorers of virtual exploration: how well a zoom shows what a prompt asks for.

| name | reads | what it is |
|---|---|---|
| ``labels`` | ``goal_mask`` | the simulator's object mask, the truth of the others |
| ``embedded`` | ``frame`` | a small video-text model trained on clips of the worlds |
| ``hf_clip`` | ``frame`` | any CLIP of transformers, by name or path |
| ``mineclip`` | ``frame`` | MineCLIP, the one of the paper, from its released file |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wmkit.registry import resolve

if TYPE_CHECKING:
    from wmkit.affordance.scorers.clips import ClipSource
    from wmkit.affordance.scorers.embedded import EmbeddedScorer
    from wmkit.affordance.scorers.hf_clip import HFClipScorer
    from wmkit.affordance.scorers.label_scorer import LabelScorer
    from wmkit.affordance.scorers.mineclip import MineCLIP
    from wmkit.affordance.scorers.mineclip_weights import load_mineclip
    from wmkit.affordance.scorers.scorer import Scorer

__all__ = [
    "ClipSource",
    "EmbeddedScorer",
    "HFClipScorer",
    "LabelScorer",
    "MineCLIP",
    "Scorer",
    "build_scorer",
    "load_mineclip",
]

_HOMES = {
    "ClipSource": "clips",
    "EmbeddedScorer": "embedded",
    "HFClipScorer": "hf_clip",
    "LabelScorer": "label_scorer",
    "MineCLIP": "mineclip",
    "load_mineclip": "mineclip_weights",
    "Scorer": "scorer",
}


def build_scorer(name: str, **options: Any) -> Scorer:
    """A scorer by its registered name.

    Args:
        name: see ``wmkit list scorer``.
        options: arguments of its class.

    Raises:
        ConfigError: no such scorer.
        MissingWeightsError: the scorer needs weights that are not there.

    >>> build_scorer("labels", half=0.2).half
    0.2
    """
    return resolve("scorer", name)(**options)


def __getattr__(name: str) -> Any:
    """Import scorers when they are asked for: ``hf_clip`` would pull transformers."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
