"""Heads: features to predictions with ``.loss(target)``, ``.mean`` and ``.mode``."""

from wmkit.heads.actors import DiscreteActor
from wmkit.heads.flags import ContinueHead, FlagHead, JumpFlagHead
from wmkit.heads.scalar import Critic, JumpReturnHead, JumpSpanHead, RewardHead, TwoHotHead

__all__ = [
    "ContinueHead",
    "Critic",
    "DiscreteActor",
    "FlagHead",
    "JumpFlagHead",
    "JumpReturnHead",
    "JumpSpanHead",
    "RewardHead",
    "TwoHotHead",
]
