"""What a run does about environments that fail: says so, counts, goes on, or ends with everything saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wmkit.envs.guarded import Guard, find_guard
from wmkit.errors import EnvironmentCrashError, SpecError

SAID = 3  # bad values that are told one by one


class Faults:
    """Asks the guards of a run's environments (:mod:`wmkit.envs.guarded`).

    Args:
        on_bad_value: ``stop`` or ``skip``, at NaN or infinity in an observation or reward.
        say: shows a sentence.
        stopping: whether an interrupt was asked for.

    >>> faults = Faults("skip", print, lambda: False)
    >>> faults.look(), faults.numbers()
    (None, {})
    """

    def __init__(self, on_bad_value: str, say: Callable[[str], Any], stopping: Callable[[], bool]) -> None:
        self._stop, self._say, self._stopping = on_bad_value == "stop", say, stopping
        self._guards: list[Guard] = []
        self.values = self.restarts = 0

    def watch(self, env: Any) -> None:
        """Ask the guard of these environments too, if they have one."""
        guard = find_guard(env)
        if guard is not None:
            guard.stopping = self._stopping
            self._guards.append(guard)

    def busy(self) -> tuple[int, int] | None:
        """Which call of an environment of this process is going on; None between two."""
        return next(((i, g.busy) for i, g in enumerate(self._guards) if g.busy is not None), None)

    def ending(self) -> bool:
        """Whether :meth:`look` will end the run."""
        return any(g.over or (self._stop and any(f.value for f in g.faults)) for g in self._guards)

    def look(self) -> None:
        """Say what happened since the last look.

        Raises:
            EnvironmentCrashError: an environment failed for good.
            SpecError: one showed NaN or infinity, and the run is to stop at that.
        """
        over: str | None = None
        for guard in self._guards:
            over = over or guard.over
            for fault in guard.drain():
                self.restarts += not fault.value
                self.values += fault.value
                if fault.value and self._stop:
                    raise SpecError(
                        f"{fault.text}; correct the environment, or leave such records out by "
                        "training.on_bad_value=skip"
                    )
                if not fault.value or self.values <= SAID:
                    self._say(fault.text)
        if over is not None:
            raise EnvironmentCrashError(over)

    def numbers(self) -> dict[str, float]:
        """For the log: how many records were left out and environments made anew, in this session."""
        found = {"faults/records_left_out": self.values, "faults/environments_made_anew": self.restarts}
        return {name: float(count) for name, count in found.items() if count}

    def sum_up(self) -> None:
        """Say how many records were left out, if more than were told of."""
        if self.values > SAID:
            self._say(
                f"environments showed NaN or infinity {self.values:,} times: those records were left out and "
                "their episodes closed as truncated (training.on_bad_value=skip)"
            )
