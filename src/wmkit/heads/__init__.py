"""Heads: features to predictions with ``.loss(target)``, ``.mean`` and ``.mode``."""

from wmkit.heads.actors import ActorChoice, ContinuousActor, DiscreteActor
from wmkit.heads.actors_2020 import TanhNormalActor, TruncatedNormalActor
from wmkit.heads.departure import DepartureDiscountHead, DepartureNormalHead
from wmkit.heads.flags import ContinueHead, FlagHead, JumpFlagHead
from wmkit.heads.normal import NormalHead
from wmkit.heads.scalar import (
    Critic,
    DepartureTwoHotHead,
    JumpReturnHead,
    JumpSpanHead,
    RewardHead,
    TwoHotHead,
)

__all__ = [
    "ActorChoice",
    "ContinueHead",
    "ContinuousActor",
    "Critic",
    "DepartureDiscountHead",
    "DepartureNormalHead",
    "DepartureTwoHotHead",
    "DiscreteActor",
    "FlagHead",
    "JumpFlagHead",
    "JumpReturnHead",
    "JumpSpanHead",
    "NormalHead",
    "RewardHead",
    "TanhNormalActor",
    "TruncatedNormalActor",
    "TwoHotHead",
]
