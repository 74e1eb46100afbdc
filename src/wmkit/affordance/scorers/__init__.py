"""Scorers of virtual exploration: how well a zoom shows what a prompt asks for.

| name | reads | what it is |
|---|---|---|
| ``labels`` | ``goal_mask`` | the simulator's object mask, the truth of the others |
| ``embedded`` | ``frame`` | a small video-text model trained on clips of the worlds |
| ``hf_clip`` | ``frame`` | any CLIP of transformers, by name or path |

The place of ``mineclip`` (the released checkpoint ``mineclip_attn.pth``) is
``wmkit/affordance/scorers/mineclip.py``: a ``Scorer`` with ``resolution = (160, 256)``, ``encode``
(ViT-B/16) and ``pool`` (temporal transformer and adapter), whose logits are on the common scale as they are.
Until it exists, asking for it is an error that says what to use instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wmkit.errors import MissingWeightsError
from wmkit.registry import resolve

if TYPE_CHECKING:
    from wmkit.affordance.scorers.clips import ClipSource
    from wmkit.affordance.scorers.embedded import EmbeddedScorer
    from wmkit.affordance.scorers.hf_clip import HFClipScorer
    from wmkit.affordance.scorers.label_scorer import LabelScorer
    from wmkit.affordance.scorers.scorer import Scorer

__all__ = ["ClipSource", "EmbeddedScorer", "HFClipScorer", "LabelScorer", "Scorer", "build_scorer"]

_HOMES = {
    "ClipSource": "clips",
    "EmbeddedScorer": "embedded",
    "HFClipScorer": "hf_clip",
    "LabelScorer": "label_scorer",
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
    if name == "mineclip":
        raise MissingWeightsError(
            "scorer 'mineclip' has no weights: found no loader for mineclip_attn.pth in this version, "
            "wanted a scorer that can run; use affordance=embedded (trained on the worlds) or "
            "affordance=hf_clip (any CLIP)"
        )
    return resolve("scorer", name)(**options)


def __getattr__(name: str) -> Any:
    """Import scorers when they are asked for: ``hf_clip`` would pull transformers."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
