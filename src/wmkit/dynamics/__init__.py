"""Dynamics: how states move; the world model that holds them; the one roll-out."""

from wmkit.dynamics.dynamics import Dynamics, Latent, Observed, read, to_record
from wmkit.dynamics.frame_dynamics import FrameDynamics
from wmkit.dynamics.hooks import FromPrior, JumpGate, Restart, SecondBranch
from wmkit.dynamics.long_short import LongShortRSSM
from wmkit.dynamics.markov import MarkovDynamics, RecurrentTransition
from wmkit.dynamics.one_step import FilteredStep, ImaginedStep
from wmkit.dynamics.rollout import Hook, Rollout, constants, rollout
from wmkit.dynamics.rssm import RSSM
from wmkit.dynamics.token_dynamics import TokenDynamics
from wmkit.dynamics.tokens import (
    FrameTokens,
    FusedToken,
    LateRewardTokens,
    PlainToken,
    StateBesideAction,
    Steps,
    TokenLayout,
)
from wmkit.dynamics.world_model import WorldModel

__all__ = [
    "RSSM",
    "Dynamics",
    "FilteredStep",
    "FrameDynamics",
    "FrameTokens",
    "FromPrior",
    "FusedToken",
    "Hook",
    "ImaginedStep",
    "JumpGate",
    "LateRewardTokens",
    "Latent",
    "LongShortRSSM",
    "MarkovDynamics",
    "Observed",
    "PlainToken",
    "RecurrentTransition",
    "Restart",
    "Rollout",
    "SecondBranch",
    "StateBesideAction",
    "Steps",
    "TokenDynamics",
    "TokenLayout",
    "WorldModel",
    "constants",
    "read",
    "rollout",
    "to_record",
]
