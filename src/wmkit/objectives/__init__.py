"""What is minimised: world-model losses, actor-critic losses, value estimators."""

from wmkit.objectives.actor_critic import ActorCriticLoss, ActorCriticOutput
from wmkit.objectives.estimators import LambdaReturnJumpy, WorldModelEstimators
from wmkit.objectives.learner import Learner
from wmkit.objectives.long_branch import BatchMeanTargets, LongBranch, PerSampleTargets
from wmkit.objectives.terms import Term, check_weights, reduce_terms
from wmkit.objectives.world_model import KLBalance, WorldModelLoss, WorldModelOutput

__all__ = [
    "ActorCriticLoss",
    "ActorCriticOutput",
    "BatchMeanTargets",
    "KLBalance",
    "LambdaReturnJumpy",
    "Learner",
    "LongBranch",
    "PerSampleTargets",
    "Term",
    "WorldModelEstimators",
    "WorldModelLoss",
    "WorldModelOutput",
    "check_weights",
    "reduce_terms",
]
