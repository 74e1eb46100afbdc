"""By what is learned, and in which order: learners, the schedule, optimisers, updates as CUDA graphs."""

from wmkit.optim.annealed import AnnealedAdam
from wmkit.optim.captured import CapturedUpdate
from wmkit.optim.laprop import LaProp
from wmkit.optim.learner import Learner
from wmkit.optim.schedule import Loss, Schedule, adam

__all__ = ["AnnealedAdam", "CapturedUpdate", "LaProp", "Learner", "Loss", "Schedule", "adam"]
