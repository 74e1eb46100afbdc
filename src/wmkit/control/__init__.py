"""What turns a world model into behaviour: controllers, the policy that acts, exploration."""

from wmkit.control.actor_critic import ActorCritic, Learned
from wmkit.control.dream_env import DreamEnv
from wmkit.control.exploration import AdditiveGaussian, EpsilonGreedy
from wmkit.control.losses import (
    EntropyBonus,
    EntropyFloor,
    MixedGradient,
    Reinforce,
    ReplayCritic,
    ThroughDynamics,
)
from wmkit.control.planners import Planner
from wmkit.control.policy import Policy
from wmkit.control.random_policy import RandomPolicy
from wmkit.control.returns import Outcome, StateReturns, TransitionReturns
from wmkit.control.starts import AllStates, PairStarts, PrefixStarts, RememberedStarts, SampledStarts
from wmkit.control.value_learning import RangeNorm, ValueLearning

__all__ = [
    "ActorCritic",
    "AdditiveGaussian",
    "AllStates",
    "DreamEnv",
    "EntropyBonus",
    "EntropyFloor",
    "EpsilonGreedy",
    "Learned",
    "MixedGradient",
    "Outcome",
    "PairStarts",
    "Planner",
    "Policy",
    "PrefixStarts",
    "RandomPolicy",
    "RangeNorm",
    "Reinforce",
    "RememberedStarts",
    "ReplayCritic",
    "SampledStarts",
    "StateReturns",
    "ThroughDynamics",
    "TransitionReturns",
    "ValueLearning",
]
