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
from wmkit.heads.memory import CARRIED, ActorMemory
from wmkit.heads.outputs import Numbers, Prediction, TwoHotBins, TwoLogits

__all__ = [
    "CARRIED",
    "ActionDistribution",
    "Actor",
    "ActorChoice",
    "ActorMemory",
    "ContinueHead",
    "ContinuousActor",
    "Critic",
    "DiscreteActor",
    "EnsembleCritic",
    "Head",
    "JumpFlagHead",
    "JumpReturnHead",
    "JumpSpanHead",
    "Numbers",
    "Policy",
    "Prediction",
    "RewardHead",
    "SquashedNormalActor",
    "TanhNormalActor",
    "TruncatedNormalActor",
    "TwoHotBins",
    "TwoLogits",
    "first_weight",
    "in_keys_of",
]
