"""What is minimised: givers of loss terms that are TorchRL losses too, and value estimators."""

from wmkit.objectives.consistency import Consistency
from wmkit.objectives.embedding_terms import (
    LatentPrediction,
    OpenLoopPrediction,
    SIGReg,
    VarianceCovariance,
)
from wmkit.objectives.estimators import LambdaReturnJumpy, OwnValueReturn, WorldModelEstimators
from wmkit.objectives.frame_tokens import Quantization, TokenCrossEntropy
from wmkit.objectives.joint_embedding import BarlowTwins, InverseDynamics, MaskedTeacher, VICReg
from wmkit.objectives.latent_terms import KL, CrossEntropyLatents, EntropyHinge, KLBalance
from wmkit.objectives.long_branch import BatchMeanTargets, LongBranch, PerSampleTargets
from wmkit.objectives.objective import Objective, Scene, Start, Term, check_weights, episode_ends
from wmkit.objectives.perceptual import Perceptual
from wmkit.objectives.reconstruction import HeadLosses, Reconstruction

__all__ = [
    "KL",
    "BarlowTwins",
    "BatchMeanTargets",
    "Consistency",
    "CrossEntropyLatents",
    "EntropyHinge",
    "HeadLosses",
    "InverseDynamics",
    "KLBalance",
    "LambdaReturnJumpy",
    "LatentPrediction",
    "LongBranch",
    "MaskedTeacher",
    "Objective",
    "OpenLoopPrediction",
    "OwnValueReturn",
    "PerSampleTargets",
    "Perceptual",
    "Quantization",
    "Reconstruction",
    "SIGReg",
    "Scene",
    "Start",
    "Term",
    "TokenCrossEntropy",
    "VICReg",
    "VarianceCovariance",
    "WorldModelEstimators",
    "check_weights",
    "episode_ends",
]
