"""Dynamics: how a state follows from a state, imagined or observed."""

from wmkit.dynamics.imagination import JumpGate, Trajectory, branch, imagine
from wmkit.dynamics.latent import Latent, Observed
from wmkit.dynamics.long_short import JumpObserved, LongShortRSSM
from wmkit.dynamics.rssm import RSSM
from wmkit.dynamics.through import constants, imagine_through
from wmkit.dynamics.world_model import WorldModel

__all__ = [
    "RSSM",
    "JumpGate",
    "JumpObserved",
    "Latent",
    "LongShortRSSM",
    "Observed",
    "Trajectory",
    "WorldModel",
    "branch",
    "constants",
    "imagine",
    "imagine_through",
]
