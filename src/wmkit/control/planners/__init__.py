"""Planners: solvers (candidates in, costs out), costs of roll-outs, and the controller that joins them."""

from wmkit.control.planners.beam import BeamSearch
from wmkit.control.planners.categorical import CategoricalCEM
from wmkit.control.planners.cem import CEM
from wmkit.control.planners.costs import Cost, GoalDistance, PredictedReturn, action_values, two_of
from wmkit.control.planners.gradient import Gradient
from wmkit.control.planners.icem import ICEM
from wmkit.control.planners.imagined import Imagined
from wmkit.control.planners.mppi import MPPI
from wmkit.control.planners.planner import Planner
from wmkit.control.planners.predictive import PredictiveSampling
from wmkit.control.planners.solver import Clamp, DeadZone, NormCap, Plan, Solver

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "BeamSearch",
    "CategoricalCEM",
    "Clamp",
    "Cost",
    "DeadZone",
    "GoalDistance",
    "Gradient",
    "Imagined",
    "NormCap",
    "Plan",
    "Planner",
    "PredictedReturn",
    "PredictiveSampling",
    "Solver",
    "action_values",
    "two_of",
]
