"""A process beside an engine: ends it when a call takes too long, and cleans up when its owner is gone.

    owner     ──── a clock in the folder: when the call in progress began, how long it may take ────▶ watcher
              ──── a pipe: interrupts, "closed", or its end because the owner was killed ───────────▶
    watcher   ──── SIGKILL ────▶ engine, whose death the owner hears

It has to be another process: some calls into an engine keep Python from running at all until they return.
Run as a file, it needs the standard library and /proc alone.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

LOOK = 0.25  # seconds between two looks at the clock
GRACE = 0.5  # seconds that an interrupt leaves to a call
BEGUN, ALLOWED, ENDED = range(
    3
)  # of the clock: when the call in progress began, seconds it may take, its end
CLOSED = b"q"  # no number of a signal that is looked for
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


class Watcher:
    """The owner's side: starts the process and tells it of every call.

    Args:
        folder: of the engine, private; ``engine.ini`` in it is on the engine's command line.
    """

    def __init__(self, folder: str) -> None:
        Path(folder, "clock").write_bytes(bytes(24))
        self._clock = _clock(folder)
        self._wakeup = -1
        self._main = threading.main_thread().ident
        self._process: subprocess.Popen | None = None
        if sys.executable and Path("/proc/self/cmdline").is_file():
            nothing = subprocess.DEVNULL
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, folder],
                stdin=subprocess.PIPE,
                stdout=nothing,
                stderr=nothing,
                start_new_session=True,
            )
            os.set_blocking(self._pipe, False)

    @property
    def _pipe(self) -> int:
        assert self._process is not None and self._process.stdin is not None
        return self._process.stdin.fileno()

    def calling(self, patience: float | None) -> Watcher:
        """For ``with``, around a call that may take so many seconds (None: any time, but for an interrupt).

        Raises:
            TimeoutError: at its end; the engine was ended because the call took too long.
        """
        self._clock[ALLOWED] = patience or 0.0
        return self

    def __enter__(self) -> Watcher:
        if self._process is not None and threading.get_ident() == self._main:
            self._wakeup = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        self._clock[ENDED] = 0.0  # an interrupt may have kept __exit__ from its work
        self._clock[BEGUN] = time.monotonic()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        begun, ended = self._clock[BEGUN], self._clock[ENDED]
        self._clock[BEGUN] = self._clock[ENDED] = 0.0
        if self._process is not None and threading.get_ident() == self._main:
            signal.set_wakeup_fd(self._wakeup)
        if ended and isinstance(error, Exception):
            raise TimeoutError(f"no answer in {ended - begun:.1f} seconds") from error

    def leave(self) -> None:
        """Nothing is to be ended before this process is: then all of it."""
        if self._process is not None:
            os.dup(self._pipe)

    def close(self) -> None:
        """The engine is closed and its folder gone: nothing is left to do."""
        if self._process is not None:
            if threading.get_ident() == self._main and (fd := signal.set_wakeup_fd(-1)) != self._pipe:
                signal.set_wakeup_fd(fd)
            with suppress(OSError):
                os.write(self._pipe, CLOSED)
            self._process.communicate()
            self._process = None


def _clock(folder: str) -> memoryview[float]:
    with Path(folder, "clock").open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 24)).cast("d")


def watch(folder: str) -> None:
    """What the process does, until it is told that the engine is closed or its owner is gone."""
    clock = _clock(folder)
    engine, before, interrupted = Found(folder), 0.0, 0.0
    while True:
        engine.find()
        if select.select([0], [], [], LOOK)[0]:
            heard = os.read(0, 64)
            if CLOSED in heard:
                engine.kill()  # one that is stopped is still there
                return
            if not heard:
                break
            if any(number in heard for number in INTERRUPTS):
                interrupted = time.monotonic()
        begun, patience = clock[BEGUN], clock[ALLOWED]
        now, last, before = time.monotonic(), before, begun
        if not begun or begun != last:  # two looks at one call: none is judged by half a number
            continue
        late = patience and now - begun > patience
        if not engine.ended and (late or (interrupted > begun and now - interrupted > GRACE)):
            clock[ENDED] = now
            engine.kill()
    deadline = time.monotonic() + 2
    while not engine.pid and time.monotonic() < deadline:  # it was about to start
        engine.find()
        time.sleep(0.02)
    engine.kill()
    engine.sweep(folder)


class Found:
    """The engine started in ``folder``, once it is found."""

    def __init__(self, folder: str) -> None:
        self.pid, self.name, self.ended = 0, "", False
        self._mark = f"{folder}/engine.ini"

    def _words(self, pid: int) -> list[str]:
        with suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
        return []

    def find(self) -> None:
        """Look for it, unless it is known."""
        if self.pid:
            return
        for path in Path("/proc").iterdir():
            if path.name.isdigit() and self._mark in (words := self._words(int(path.name))):
                self.pid = int(path.name)
                if "+viz_instance_id" in words[:-1]:
                    self.name = words[words.index("+viz_instance_id") + 1]

    def kill(self) -> None:
        """End it, if it is still the process that was found."""
        self.ended = True
        if self.pid and self._mark in self._words(self.pid):
            with suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)

    def sweep(self, folder: str) -> None:
        """Remove what a killed owner left: the folder, and the memory shared with the engine."""
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
        if self.name.isalnum():
            for what in ("SM", "MQCtr", "MQDoom"):
                Path(f"/dev/shm/ViZDoom{what}{self.name}").unlink(missing_ok=True)


if __name__ == "__main__":
    watch(sys.argv[1])
