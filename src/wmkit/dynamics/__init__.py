"""Dynamics: how a state follows from a state, imagined or observed."""

from wmkit.dynamics.dream import Dream, DreamStart, PairStarts, SampledStarts, dream
from wmkit.dynamics.imagination import JumpGate, Trajectory, branch, imagine
from wmkit.dynamics.latent import Latent, Observed
from wmkit.dynamics.long_short import JumpObserved, LongShortRSSM
from wmkit.dynamics.rssm import RSSM
from wmkit.dynamics.through import constants, imagine_through
from wmkit.dynamics.token_dynamics import Steps, TokenDynamics
from wmkit.dynamics.token_world_model import TokenWorldModel
from wmkit.dynamics.tokens import FusedToken, LateRewardTokens, TokenLayout
from wmkit.dynamics.world_model import WorldModel

__all__ = [
    "RSSM",
    "Dream",
    "DreamStart",
    "FusedToken",
    "JumpGate",
    "JumpObserved",
    "LateRewardTokens",
    "Latent",
    "LongShortRSSM",
    "Observed",
    "PairStarts",
    "SampledStarts",
    "Steps",
    "TokenDynamics",
    "TokenLayout",
    "TokenWorldModel",
    "Trajectory",
    "WorldModel",
    "branch",
    "constants",
    "dream",
    "imagine",
    "imagine_through",
]
