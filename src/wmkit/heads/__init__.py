"""Heads and actors: features to predictions (``.loss(target)``, ``.mean``, ``.mode``) and to policies."""

from wmkit.heads.action_distribution import ActionDistribution, Policy
from wmkit.heads.actor import (
    Actor,
    ActorChoice,
    ContinuousActor,
    DiscreteActor,
    SquashedNormalActor,
    TanhNormalActor,
    TruncatedNormalActor,
)
from wmkit.heads.continuation import ContinueHead
from wmkit.heads.head import (
    Critic,
    EnsembleCritic,
    Head,
    JumpFlagHead,
    JumpReturnHead,
    JumpSpanHead,
    RewardHead,
    first_weight,
    in_keys_of,
)
from wmkit.heads.outputs import Prediction, TwoHotBins

__all__ = [
    "ActionDistribution",
    "Actor",
    "ActorChoice",
    "ContinueHead",
    "ContinuousActor",
    "Critic",
    "DiscreteActor",
    "EnsembleCritic",
    "Head",
    "JumpFlagHead",
    "JumpReturnHead",
    "JumpSpanHead",
    "Policy",
    "Prediction",
    "RewardHead",
    "SquashedNormalActor",
    "TanhNormalActor",
    "TruncatedNormalActor",
    "TwoHotBins",
    "first_weight",
    "in_keys_of",
]
