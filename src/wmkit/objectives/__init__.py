"""What is minimised: world-model losses, actor-critic losses, value estimators; and by what."""

from wmkit.objectives.actor_critic import ActorCriticLoss, ActorCriticOutput
from wmkit.objectives.estimators import LambdaReturnJumpy, WorldModelEstimators
from wmkit.objectives.laprop import LaProp
from wmkit.objectives.learner import Learner
from wmkit.objectives.long_branch import BatchMeanTargets, LongBranch, PerSampleTargets
from wmkit.objectives.replay_critic import ReplayCriticLoss, ReplayCriticOutput
from wmkit.objectives.terms import Term, check_weights, reduce_terms
from wmkit.objectives.world_model import KLBalance, WorldModelLoss, WorldModelOutput

__all__ = [
    "ActorCriticLoss",
    "ActorCriticOutput",
    "BatchMeanTargets",
    "KLBalance",
    "LaProp",
    "LambdaReturnJumpy",
    "Learner",
    "LongBranch",
    "PerSampleTargets",
    "ReplayCriticLoss",
    "ReplayCriticOutput",
    "Term",
    "WorldModelEstimators",
    "WorldModelLoss",
    "WorldModelOutput",
    "check_weights",
    "reduce_terms",
]
