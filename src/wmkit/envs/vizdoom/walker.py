"""A policy that walks to the goal's mask, and the measurement that keeps the tasks honest.

A task that a random policy solves teaches nothing, and one that even the true object mask does not
solve cannot be learned from affordance. :func:`measure` gives both rates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wmkit.envs.vizdoom.simulator import VizdoomSimulator
from wmkit.envs.vizdoom.tasks import find_task

ATTENTION = 14  # columns either side of the centre that count as straight ahead: 6 degrees
GAP = 22  # columns: 10 degrees


class MaskWalker:
    """Turns until the goal's mask is in view, centres it, walks, and acts when close.

    It sees ``goal_mask`` alone. Where the way is blocked, it jumps, then steps aside.

    Args:
        task: whose action it takes at the goal.
        seed: of its detours.

    >>> mask = np.zeros((1, 160, 256), bool)
    >>> mask[0, 70:90, 200:220] = True
    >>> MaskWalker("shear_sheep")(mask)  # to the right: turn right
    5
    """

    def __init__(self, task: str, *, seed: int = 0) -> None:
        self.task = find_task(task)
        self._rng = np.random.default_rng(seed)
        self.reset()

    def reset(self) -> None:
        """Forget the last episode."""
        self._plan: list[int] = []
        self._turned = 0
        self._last: np.ndarray | None = None
        self._acted = False

    def __call__(self, goal_mask: np.ndarray) -> int:
        """The next action for a mask ``[1, 160, 256]``."""
        if self._plan:
            return self._plan.pop()
        columns = np.flatnonzero(goal_mask[0].any(0))
        if not columns.size:
            return self._search()
        self._turned = 0
        # Of several goals the one nearest to the centre: turning towards it cannot make it another.
        # Gaps up to one turn wide are bridged: a ragged canopy is one tree.
        runs = np.split(columns, np.flatnonzero(np.diff(columns) > GAP) + 1)
        offsets = [(run[0] + run[-1]) / 2 - 127.5 for run in runs]
        nearest = int(np.abs(offsets).argmin())
        offset, run = offsets[nearest], runs[nearest]
        if abs(offset) > ATTENTION and not run[0] <= 64 <= 191 <= run[-1]:
            return 4 if offset < 0 else 5
        rows = np.flatnonzero(goal_mask[0, :, run[0] : run[-1] + 1].any(1))
        near = rows[-1] >= 104 or rows[0] == 0
        if near and not self._acted:
            self._acted = True
            return self.task.action
        self._acted = False
        blocked = self._last is not None and np.array_equal(self._last, goal_mask)
        self._last = goal_mask.copy()
        if blocked:
            self._last = None
            side = int(self._rng.choice([8, 9]))
            self._plan = [6] * 3 + [side] * int(self._rng.integers(3, 8))
            return 10
        return 6

    def _search(self) -> int:
        """A full turn, then a walk in a random direction, and so on."""
        self._last = None
        if self._turned < 36:
            self._turned += 1
            return 5
        self._turned = 0
        turn = [int(self._rng.choice([4, 5]))] * int(self._rng.integers(0, 18))
        self._plan = [6] * 12 + [10] + [6] * 12 + turn
        return 5


@dataclass(frozen=True)
class Success:
    """Outcome of :func:`measure`: successes in episodes, and mean steps of the successful ones."""

    successes: int
    episodes: int
    steps: float

    @property
    def rate(self) -> float:
        """Share of episodes won."""
        return self.successes / self.episodes


def random_policy(seed: int = 0) -> Callable[[np.ndarray], int]:
    """Uniform over the 12 actions."""
    rng = np.random.default_rng(seed)
    return lambda goal_mask: int(rng.integers(12))


def measure(simulator: VizdoomSimulator, policy: Callable[[np.ndarray], int], episodes: int) -> Success:
    """Play ``episodes`` episodes and count successes.

    Args:
        simulator: with masks on if the policy looks at them.
        policy: ``goal_mask [1, 160, 256]`` to an action.
        episodes: how many worlds.
    """
    wins, steps = 0, 0
    nothing = np.zeros((1, 160, 256), bool)
    for _ in range(episodes):
        if isinstance(policy, MaskWalker):
            policy.reset()
        out = simulator.reset()
        for step in range(1, simulator.max_steps + 1):
            out = simulator.step(policy(out.get("goal_mask", nothing)))
            if out["success"][0]:
                wins, steps = wins + 1, steps + step
                break
    return Success(wins, episodes, steps / max(wins, 1))
