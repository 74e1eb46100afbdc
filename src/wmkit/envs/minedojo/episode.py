"""What an episode pays and when it ends, told from what the agent holds; the same over every simulator."""

from __future__ import annotations

from wmkit.arguments import check_range
from wmkit.envs.minedojo.actions import check_choice
from wmkit.envs.minedojo.observations import Report

ON_SUCCESS = ("terminate", "truncate", "continue")


class Episode:
    """Rewards, success and ends of LS-Imagine's tasks.

    An item of the target that is gained pays 1, one that is lost costs 1 (MineDojo's rule), and what is
    gained pays ``item_bonus`` besides (the released code: 1, so that success pays 2). Holding one is success.
    Death terminates; the time limit truncates, and so does an end that the simulator gave by itself.

    Args:
        target: the item; None takes reward and success from the simulator.
        max_steps: time limit.
        on_success: ``terminate``, ``truncate`` (the released code: success ends the episode but is no end for
            the model) or ``continue``.
        item_bonus: see above.

    >>> import numpy as np
    >>> frame = np.zeros((3, 160, 256), np.uint8)
    >>> episode = Episode("log", max_steps=10, item_bonus=1.0)
    >>> episode.begin(Report(frame, {}))
    >>> episode.step(Report(frame, {"log": 1}))
    (2.0, True, True, False)
    """

    def __init__(
        self,
        target: str | None,
        *,
        max_steps: int,
        on_success: str = "terminate",
        item_bonus: float = 1.0,
    ) -> None:
        check_range("max_steps", max_steps, 1)
        check_range("item_bonus", item_bonus, 0)
        check_choice("on_success", on_success, ON_SUCCESS)
        self.target, self.max_steps = target, max_steps
        self.on_success, self.item_bonus = on_success, item_bonus
        self.steps, self.won, self._held = 0, False, 0

    def begin(self, report: Report) -> None:
        """After a reset."""
        self.steps, self.won, self._held = 0, False, self._count(report)

    def step(self, report: Report) -> tuple[float, bool, bool, bool]:
        """``(reward, success, terminated, truncated)`` of a step; success stays once it is there."""
        self.steps += 1
        if self.target is None:
            reward, won = report.reward, report.success
        else:
            gained = self._count(report) - self._held
            self._held += gained
            reward, won = gained + self.item_bonus * max(gained, 0), self._held >= 1
        self.won |= won
        terminated = report.dead or (self.won and self.on_success == "terminate")
        late = self.steps >= self.max_steps or report.over or (self.won and self.on_success == "truncate")
        return float(reward), self.won, terminated, late and not terminated

    def _count(self, report: Report) -> int:
        return report.inventory.get(self.target, 0) if self.target is not None else 0
