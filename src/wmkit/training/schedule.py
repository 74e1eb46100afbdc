"""When the next thing is due: updates per step, events every n steps, the end of the time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class UpdateRatio:
    """How many updates a number of environment steps pays for.

    ``train_ratio`` counts replayed steps per environment step, so one update costs
    ``batch_steps / train_ratio`` environment steps; fractions are carried over. What is owed
    grows only with steps taken in this session, so a resumed run makes no burst of updates.

    Args:
        train_ratio: replayed steps per environment step.
        batch_steps: steps one update replays (B * L, without context).

    >>> ratio = UpdateRatio(train_ratio=16, batch_steps=512)
    >>> [ratio.due(20) for _ in range(4)]
    [0, 1, 0, 1]
    """

    def __init__(self, train_ratio: float, batch_steps: int) -> None:
        self.per_step = train_ratio / batch_steps
        self.owed = 0.0
        self.left = 0  # whole updates that an interrupt left

    def due(self, steps: int) -> int:
        """Count ``steps`` environment steps and return the whole updates they pay for."""
        self.owed += steps * self.per_step
        whole = int(self.owed + 1e-9)
        self.owed -= whole
        return whole

    def take_left(self) -> int:
        """The updates that an interrupt left; none are left then."""
        left, self.left = self.left, 0
        return left

    def restore(self, owed: float, left: int | None) -> None:
        """What a checkpoint knows; older ones count what is left among what is owed."""
        self.owed, self.left = owed, left or 0
        if left is None:
            self.left = self.due(0)


class Every:
    """True once per ``interval`` steps.

    Args:
        interval: 0 means never.
        start: the step counting begins at.

    Attributes:
        since: the step of the last true answer, or where counting began.

    >>> every = Every(10)
    >>> [every(step) for step in (4, 12, 16, 20)], every.since
    ([False, True, False, True], 20)
    """

    def __init__(self, interval: int, start: int = 0) -> None:
        self.interval, self.since = int(interval), start

    def __call__(self, step: int) -> bool:
        """Whether a multiple of the interval was passed since the last true answer."""
        if not self.interval or step // self.interval == self.since // self.interval:
            return False
        self.since = step
        return True


class Deadline:
    """The time limit of one command, split so that evaluation and report still fit.

    ``aside`` are seconds that do not count: those of compiling, which say nothing about what was learned.

    Args:
        minutes: for everything; None for no limit.
        learning: part of the time after which learning stops.
        playing: part after which the final evaluation stops.
    """

    def __init__(self, minutes: float | None, learning: float = 0.86, playing: float = 0.96) -> None:
        self._started = time.monotonic()
        self._seconds = float("inf") if minutes is None else 60.0 * float(minutes)
        self._learning, self._playing = learning, playing
        self.aside = 0.0

    def learning_left(self) -> float:
        """Seconds until learning should stop; inf without a limit."""
        return self._learning * self._seconds - self._spent

    def playing_left(self) -> float:
        """Seconds until the final evaluation should stop; inf without a limit."""
        return self._playing * self._seconds - self._spent

    def learning_over(self) -> bool:
        """Learning should stop now."""
        return self.learning_left() < 0

    def playing_over(self) -> bool:
        """The final evaluation should stop now."""
        return self.playing_left() < 0

    @property
    def _spent(self) -> float:
        return time.monotonic() - self._started - self.aside


class Interrupt:
    """Turns the first SIGINT or SIGTERM into a flag; a second one raises KeyboardInterrupt at once.

    SIGTERM is what schedulers of clusters send before they kill. A call that hangs sees no flag: the
    first signal, too, raises KeyboardInterrupt in it when it has not come back a second later.

    Attributes:
        busy: asked for a name of the call that may hang and can be ended so; None where there is none.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    PATIENCE = 1.0  # seconds

    def __init__(self) -> None:
        self.requested = False
        self.busy: Callable[[], object | None] = lambda: None
        self._breaking = self._eager = False
        self._process = os.getpid()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """The first signal raises KeyboardInterrupt inside the ``with`` block."""
        self._eager = True
        try:
            yield
        finally:
            self._eager = False

    @contextmanager
    def watching(self) -> Iterator[Interrupt]:
        """Catch both inside the ``with`` block (main thread only; elsewhere nothing is caught)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = [signal.signal(number, self._handle) for number in self.SIGNALS]
        try:
            yield self
        finally:
            for number, handler in zip(self.SIGNALS, previous, strict=True):
                signal.signal(number, handler)

    def _handle(self, signum: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a process that was forked ends by it
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        call = self.busy()
        if self._breaking:
            self._breaking = False
            if call is None:
                return self._watch(None)
            raise KeyboardInterrupt
        again, self.requested = self.requested, True
        if again or self._eager:
            raise KeyboardInterrupt
        self._watch(call)

    def _watch(self, call: object | None) -> None:
        if hasattr(signal, "pthread_kill") and signal.getsignal(signal.SIGINT) == self._handle:
            timer = threading.Timer(self.PATIENCE, self._break, (call,))
            timer.daemon = True
            timer.start()

    def _break(self, call: object | None) -> None:
        now = self.busy()
        if now is None or now != call:  # the signal may have come just before a call that hangs
            self._watch(now)
        else:
            self._breaking = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
