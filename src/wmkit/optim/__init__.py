"""By what is learned, and in which order: learners, the schedule, LaProp."""

from wmkit.optim.laprop import LaProp
from wmkit.optim.learner import Learner
from wmkit.optim.schedule import Loss, Schedule, adam

__all__ = ["LaProp", "Learner", "Loss", "Schedule", "adam"]
