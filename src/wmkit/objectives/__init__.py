"""What is minimised: world-model losses, actor-critic losses, value estimators; and by what."""

from wmkit.objectives.actor_critic import ActorCriticLoss, ActorCriticOutput
from wmkit.objectives.actor_critic_2020 import ActorCriticLoss2020
from wmkit.objectives.actor_gradients import MixedGradient, Reinforce, ThroughDynamics
from wmkit.objectives.dream_actor_critic import DreamActorCritic
from wmkit.objectives.estimators import LambdaReturnJumpy, WorldModelEstimators
from wmkit.objectives.kl import MeanKL, MeanKLBalance
from wmkit.objectives.laprop import LaProp
from wmkit.objectives.learner import Learner
from wmkit.objectives.long_branch import BatchMeanTargets, LongBranch, PerSampleTargets
from wmkit.objectives.replay_critic import ReplayCriticLoss, ReplayCriticOutput
from wmkit.objectives.scaled_dream_actor_critic import OwnValueReturn, ScaledDreamActorCritic
from wmkit.objectives.terms import Term, check_weights, reduce_terms
from wmkit.objectives.token_latents import CrossEntropyLatents, MeanFreeBits
from wmkit.objectives.token_world_model import Records, TokenWorldModelLoss, TokenWorldModelOutput
from wmkit.objectives.transitions import as_transitions
from wmkit.objectives.world_model import KLBalance, WorldModelLoss, WorldModelOutput

__all__ = [
    "ActorCriticLoss",
    "ActorCriticLoss2020",
    "ActorCriticOutput",
    "BatchMeanTargets",
    "CrossEntropyLatents",
    "DreamActorCritic",
    "KLBalance",
    "LaProp",
    "LambdaReturnJumpy",
    "Learner",
    "LongBranch",
    "MeanFreeBits",
    "MeanKL",
    "MeanKLBalance",
    "MixedGradient",
    "OwnValueReturn",
    "PerSampleTargets",
    "Records",
    "Reinforce",
    "ReplayCriticLoss",
    "ReplayCriticOutput",
    "ScaledDreamActorCritic",
    "Term",
    "ThroughDynamics",
    "TokenWorldModelLoss",
    "TokenWorldModelOutput",
    "WorldModelEstimators",
    "WorldModelLoss",
    "WorldModelOutput",
    "as_transitions",
    "check_weights",
    "reduce_terms",
]
