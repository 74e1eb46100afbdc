"""One progress bar per stage: done, rate, time left, success rate or return so far.

On a terminal rich draws the bars. Elsewhere (a log file, CI) a line is printed now and
then, so that a log stays readable.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)


class Stage:
    """A running stage; call :meth:`advance` as units are done."""

    def __init__(self, name: str, total: int, unit: str, every: float, console: Console, bar: Any) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self._every, self._console, self._bar = every, console, bar
        self._started = self._printed = time.monotonic()
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
        self.advance(done - self.done, **notes)

    def _rate(self, now: float) -> str:
        rate = (self.done - self._start_done) / max(now - self._started, 1e-9)
        return f"{rate:.{0 if rate >= 100 else 1}f} {self.unit}/s"

    def _line(self, now: float, end: str = "") -> None:
        seconds = now - self._started
        done = max(self.done - self._start_done, 1)
        left = "" if end else f", {_clock((self.total - self.done) * seconds / done)} left"
        note = f"  {self._note}" if self._note else ""
        self._console.print(
            f"{self.name}: {min(self.done, self.total)}/{self.total} {self.unit}, "
            f"{self._rate(now)}{left}{end}{note}",
            highlight=False,
            soft_wrap=True,
        )

    def _finish(self) -> None:
        now = time.monotonic()
        if self._bar is None:
            self._line(now, f", done in {_clock(now - self._started)}")
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
    def stage(self, name: str, total: int, unit: str = "steps") -> Iterator[Stage]:
        """Show one stage while the ``with`` block runs; a stage inside another vanishes when it ends."""
        total = max(int(total), 1)
        if not self.console.is_terminal:
            stage = Stage(name, total, unit, self.every, self.console, None)
            yield stage
            stage._finish()
            return
        progress = self._progress = self._progress or self._bars()
        self._depth += 1
        if self._depth == 1:
            progress.start()
        task = progress.add_task(name, total=total, rate="", note="")
        stage = Stage(name, total, unit, self.every, self.console, (progress, task))
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
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
