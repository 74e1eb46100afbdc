"""What is minimised: givers of loss terms that are TorchRL losses too, and value estimators."""

from wmkit.objectives.estimators import LambdaReturnJumpy, WorldModelEstimators
from wmkit.objectives.latent_terms import KL, CrossEntropyLatents, EntropyHinge, KLBalance
from wmkit.objectives.long_branch import BatchMeanTargets, LongBranch, PerSampleTargets
from wmkit.objectives.objective import Objective
from wmkit.objectives.own_value_return import OwnValueReturn
from wmkit.objectives.reconstruction import HeadLosses, Reconstruction
from wmkit.objectives.scene import Scene, Start, episode_ends
from wmkit.objectives.terms import Term, check_weights

__all__ = [
    "KL",
    "BatchMeanTargets",
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
