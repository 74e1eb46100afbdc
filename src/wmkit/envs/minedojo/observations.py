"""What a Minecraft simulator shows, as wmkit reads it: pure translation, nothing of MineDojo is needed.

A :class:`Report` is one answer of a simulator, whichever it is; :func:`read_report` makes one of the values
that a MineDojo server sends, and :func:`to_tensors` makes observations of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmkit.envs.minedojo.tasks import HEIGHT, WIDTH
from wmkit.envs.vizdoom.simulator import shrink
from wmkit.errors import EnvironmentCrashError

VITALS = ("life", "food", "oxygen", "armor", "saturation", "xp")
PLACE = ("x", "y", "z", "yaw", "pitch")


@dataclass
class Report:
    """One answer of a simulator.

    Attributes:
        frame: uint8 ``[3, 160, 256]``, row 0 on top, writable and contiguous.
        inventory: how many of each item the agent holds, by Minecraft's name.
        vitals: :data:`VITALS`, in Minecraft's units (20 lives).
        place: :data:`PLACE`, blocks and degrees.
        over: the simulator ended the episode by itself.
        reward: the simulator's own.
        success: the simulator's own.
        raw: what the game said, if it was asked for.
    """

    frame: np.ndarray
    inventory: dict[str, int]
    vitals: tuple[float, ...] = (20.0, 20.0, 300.0, 0.0, 5.0, 0.0)
    place: tuple[float, ...] = (0.0,) * len(PLACE)
    over: bool = False
    reward: float = 0.0
    success: bool = False
    raw: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def dead(self) -> bool:
        """Whether no life is left."""
        return self.vitals[0] <= 0


def read_report(said: Mapping[str, Any], frame: np.ndarray) -> Report:
    """A server's answer, every value checked.

    Args:
        said: plain values: ``inventory``, ``vitals``, ``place``, ``over``, ``reward``, ``success``, ``raw``.
        frame: uint8 ``[3, 160, 256]``; it is copied.

    Raises:
        EnvironmentCrashError: a value is missing or of another type.

    >>> said = {"inventory": {"log": 1}, "vitals": [20, 20, 300, 0, 5, 0], "place": [0, 64, 0, 0, 0]}
    >>> said |= {"over": False, "reward": 1, "success": True}
    >>> read_report(said, np.zeros((3, 160, 256), np.uint8)).inventory
    {'log': 1}
    """
    try:
        vitals, place = (tuple(float(value) for value in said[name]) for name in ("vitals", "place"))
        inventory = {str(name): int(count) for name, count in said["inventory"].items()}
        report = Report(
            frame=np.array(frame, np.uint8, order="C"),
            inventory=inventory,
            vitals=vitals,
            place=place,
            over=bool(said["over"]),
            reward=float(said["reward"]),
            success=bool(said["success"]),
            raw=said.get("raw"),
        )
        wanted = (len(VITALS), len(PLACE), (3, HEIGHT, WIDTH))
        if (len(vitals), len(place), report.frame.shape) != wanted:
            raise ValueError(f"sizes {(len(vitals), len(place), report.frame.shape)}, not {wanted}")
        if not all(map(math.isfinite, (*vitals, *place, report.reward))):
            raise ValueError("a number that is not finite")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise EnvironmentCrashError(
            f"the Minecraft simulator's answer cannot be read: found {type(error).__name__}: {error}, wanted "
            "inventory, vitals, place, over, reward and success; reset the environment to start another"
        ) from error
    return report


def to_tensors(report: Report, *, frames: bool, numbers: bool) -> dict[str, Tensor]:
    """Observations of a report.

    Args:
        report: of a simulator.
        frames: with ``frame``.
        numbers: with ``vitals`` and ``place``.

    Returns:
        ``pixels`` uint8 ``[3, 64, 64]``, the frame in bilinear reduction without antialiasing; ``frame``
        uint8 ``[3, 160, 256]``; ``vitals`` float32 ``[6]``; ``place`` float32 ``[5]``.

    >>> report = Report(np.zeros((3, 160, 256), np.uint8), {})
    >>> to_tensors(report, frames=False, numbers=True)["vitals"].tolist()
    [20.0, 20.0, 300.0, 0.0, 5.0, 0.0]
    """
    out = {"pixels": torch.from_numpy(shrink(report.frame))}
    if frames:
        out["frame"] = torch.from_numpy(report.frame)
    if numbers:
        out["vitals"], out["place"] = torch.tensor(report.vitals), torch.tensor(report.place)
    return out


@lru_cache
def hud_mask() -> np.ndarray:
    """Where hot bar, hearts and hand lie in a frame of 160 x 256, bool ``[160, 256]``.

    After the description of LS-Imagine's mask (26 % of the pixels: the lower quarter from column 35 on, and a
    triangle for the hand from row 81 on), not its file.

    >>> round(float(hud_mask().mean()), 2)
    0.26
    """
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    hand = (rows >= 81) & (columns > 255 - (rows - 81) * 92 / 39)
    return ((rows >= 120) & (columns >= 35)) | hand
