"""What is minimised: givers of loss terms that are TorchRL losses too, and value estimators."""

from wmkit.objectives.estimators import LambdaReturnJumpy, OwnValueReturn, WorldModelEstimators
from wmkit.objectives.frame_tokens import Quantization, TokenCrossEntropy
from wmkit.objectives.latent_terms import KL, CrossEntropyLatents, EntropyHinge, KLBalance
from wmkit.objectives.long_branch import BatchMeanTargets, LongBranch, PerSampleTargets
from wmkit.objectives.objective import Objective, Scene, Start, Term, check_weights, episode_ends
from wmkit.objectives.perceptual import Perceptual
from wmkit.objectives.reconstruction import HeadLosses, Reconstruction

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
    "Perceptual",
    "Quantization",
    "Reconstruction",
    "Scene",
    "Start",
    "Term",
    "TokenCrossEntropy",
    "WorldModelEstimators",
    "check_weights",
    "episode_ends",
]
