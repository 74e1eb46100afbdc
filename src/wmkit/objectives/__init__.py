"""What is minimised: givers of loss terms that are TorchRL losses too, and value estimators."""

from wmkit.objectives.consistency import Consistency
from wmkit.objectives.estimators import LambdaReturnJumpy, OwnValueReturn, WorldModelEstimators
from wmkit.objectives.latent_terms import KL, CrossEntropyLatents, EntropyHinge, KLBalance
from wmkit.objectives.long_branch import BatchMeanTargets, LongBranch, PerSampleTargets
from wmkit.objectives.objective import Objective, Scene, Start, Term, check_weights, episode_ends
from wmkit.objectives.reconstruction import HeadLosses, Reconstruction

__all__ = [
    "KL",
    "BatchMeanTargets",
    "Consistency",
    "CrossEntropyLatents",
    "EntropyHinge",
    "HeadLosses",
    "KLBalance",
    "LambdaReturnJumpy",
    "LongBranch",
    "Objective",
    "OwnValueReturn",
    "PerSampleTargets",
    "Reconstruction",
    "Scene",
    "Start",
    "Term",
    "WorldModelEstimators",
    "check_weights",
    "episode_ends",
]
