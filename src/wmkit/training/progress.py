"""One progress bar per stage: done, rate, time left, success rate or return so far.

The time left is that of whatever ends the stage first: its units at the rate so far, or a time limit.

On a terminal rich draws the bars. Elsewhere (a log file, CI) a line is printed now and
then, so that a log stays readable.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
)
from rich.text import Text

Limit = Callable[[], float]


class Stage:
    """A running stage; call :meth:`advance` as units are done.

    Attributes:
        limit: seconds that a time limit leaves; None where time ends nothing.
    """

    def __init__(
        self, name: str, total: int, unit: str, every: float, console: Console, limit: Limit | None = None
    ) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self.limit = limit
        self._every, self._console = every, console
        self._bar: Any = None
        self._started = self._printed = time.monotonic()
        self._ended: float | None = None
        self._start_done = 0
        self._note = ""

    def start_at(self, done: int) -> None:
        """Say that ``done`` units were finished before this session (a resumed run)."""
        self.done = self._start_done = min(done, self.total)
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=self.done)

    def advance(self, count: int = 1, **notes: float | str | None) -> None:
        """Count ``count`` more units; ``notes`` (success rate, return) are shown behind the bar."""
        self.done += count
        shown = {name: value for name, value in notes.items() if value is not None}
        if shown:
            self._note = "  ".join(
                f"{name.replace('_', ' ')} {_short(value)}" for name, value in shown.items()
            )
        now = time.monotonic()
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=min(self.done, self.total), rate=self._rate(now), note=self._note)
        elif now - self._printed >= self._every:
            self._printed = now
            self._line(now)

    def reach(self, done: int, total: int | None = None, **notes: float | str | None) -> None:
        """Say how many units are done, of a total that may have become known only now."""
        if total is not None and total != self.total:
            self.total = max(int(total), 1)
            if self._bar is not None:
                progress, task = self._bar
                progress.update(task, total=self.total)
        if done < self.done:  # it begins anew
            self._started, self._start_done, self.done = time.monotonic(), done, done
        self.advance(done - self.done, **notes)

    def left(self) -> float:
        """Seconds until the stage ends: by its units at the rate so far, or by the limit; inf if unknown."""
        made, spent = self.done - self._start_done, time.monotonic() - self._started
        each = spent / made if made > 0 and spent > 0 else math.inf
        units = self.total - self.done
        return max(min(units * each if units > 0 else 0.0, self.limit() if self.limit else math.inf), 0.0)

    def clock(self) -> str:
        """:meth:`left` to be read; of a stage that has ended, how long it took."""
        return _clock(self.left() if self._ended is None else self._ended - self._started)

    def _rate(self, now: float) -> str:
        rate = (self.done - self._start_done) / max(now - self._started, 1e-9)
        return f"{rate:.{0 if rate >= 100 else 1}f} {self.unit}/s"

    def _line(self, now: float, end: str = "") -> None:
        left = "" if end else f", {self.clock()} left"
        note = f"  {self._note}" if self._note else ""
        self._console.print(
            f"{self.name}: {min(self.done, self.total)}/{self.total} {self.unit}, "
            f"{self._rate(now)}{left}{end}{note}",
            highlight=False,
            soft_wrap=True,
        )

    def _finish(self) -> None:
        now = self._ended = time.monotonic()
        if self._bar is None:
            end = "done in" if self.done >= self.total else "ended after"
            self._line(now, f", {end} {self.clock()}")
        else:
            progress, task = self._bar
            progress.update(task, rate=self._rate(now), note=self._note)


class Stages:
    """Draws stages one below the other.

    Args:
        console: where to draw; standard error by default.
        every: seconds between two lines where no bars can be drawn.

    >>> import io
    >>> text = io.StringIO()
    >>> with Stages(Console(file=text)).stage("collect", total=2, unit="frames") as stage:
    ...     stage.advance(2, success_rate=0.5)
    >>> text.getvalue().startswith("collect: 2/2 frames")
    True
    """

    def __init__(self, console: Console | None = None, every: float = 15.0) -> None:
        self.console = console or Console(stderr=True)
        self.every = every
        self._progress: Progress | None = None
        self._depth = 0

    @contextmanager
    def stage(
        self, name: str, total: int, unit: str = "steps", limit: Limit | None = None
    ) -> Iterator[Stage]:
        """Show one stage while the ``with`` block runs; a stage inside another vanishes when it ends.

        Args:
            name: of the stage.
            total: units that end it.
            unit: their name.
            limit: seconds left until a time limit ends it before.
        """
        total = max(int(total), 1)
        stage = Stage(name, total, unit, self.every, self.console, limit)
        if not self.console.is_terminal:
            yield stage
            stage._finish()
            return
        progress = self._progress = self._progress or self._bars()
        self._depth += 1
        if self._depth == 1:
            progress.start()
        task = progress.add_task(name, total=total, rate="", note="", stage=stage)
        stage._bar = (progress, task)
        try:
            yield stage
            stage._finish()
        finally:
            self._depth -= 1
            if self._depth:
                progress.remove_task(task)
            else:
                progress.stop()
                self._progress = None

    def say(self, line: str) -> None:
        """One line that stays."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def _bars(self) -> Progress:
        return Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("[bold]{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("[cyan]{task.fields[rate]}"),
            _TimeLeft(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )


class _TimeLeft(ProgressColumn):
    """A stage's own clock, read anew whenever bars are drawn."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["stage"].clock(), style="progress.remaining")


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-:--"
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
