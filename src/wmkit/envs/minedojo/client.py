"""The trainer's end of a MineDojo server process: how it is started, asked and ended.

What the process is told it reads from a pipe (the token among it, which no list of processes shows), frames
come in memory without a name, and its log is a file without a name whose last line is quoted when it fails.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wmkit.envs.minedojo.far import wire
from wmkit.envs.minedojo.observations import Report, hud_mask, read_report
from wmkit.envs.minedojo.tasks import HEIGHT, WIDTH
from wmkit.errors import EnvironmentCrashError

SHAPE = (3, HEIGHT, WIDTH)
STARTING = 120.0  # seconds until the process answers at all
MAKING = 300.0  # seconds for importing MineDojo, which reads thousands of task descriptions
CLOSING = 5.0


class Simulator(Protocol):
    """What a Minecraft environment needs of a simulator, in whichever process it runs."""

    def reset(self, *, full: bool, seed: int | None) -> Report:
        """Begin an episode, in a new world if ``full``."""

    def step(self, action: Any) -> Report:
        """One step with pressed keys, or with MineDojo's eight numbers."""

    def close(self) -> None:
        """End it."""


class MineDojoServer:
    """MineDojo in a process and an interpreter of its own; a :class:`Simulator`.

    Args:
        python: the interpreter that has MineDojo.
        recipe: see :mod:`wmkit.envs.minedojo.far.world`.
        port: of a Malmo that runs already; None starts Minecraft.
        malmo: the folder whose ``launchClient.sh`` starts Minecraft; None is MineDojo's own.
        step_timeout: seconds in which a step must be answered.
        reset_timeout: seconds in which a reset must be; the first one starts Minecraft.
        raw: have reports bring what the game said.

    Raises:
        EnvironmentCrashError: it did not start, or cannot make the task.
    """

    def __init__(
        self,
        python: str | Path,
        recipe: dict[str, Any],
        *,
        port: int | None = None,
        malmo: str | Path | None = None,
        step_timeout: float = 60.0,
        reset_timeout: float = 900.0,
        raw: bool = False,
    ) -> None:
        self._timeouts = {"make": MAKING, "reset": reset_timeout, "step": step_timeout, "close": CLOSING}
        self._raw = raw
        folder = tempfile.mkdtemp(prefix="wmkit-minedojo-")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        memory = _memory()
        self._memory = mmap.mmap(memory, int(np.prod(SHAPE)))
        self._pixels = np.frombuffer(self._memory, np.uint8).reshape(SHAPE)
        token = secrets.token_hex(32)
        given = {
            "token": token,
            "memory": memory,
            "shape": SHAPE,
            "folder": folder,
            "port": port,
            "malmo": None if malmo is None else str(Path(malmo).absolute()),
            "patience": [0.8 * step_timeout, 0.8 * reset_timeout],  # so that MineDojo speaks first
            "hud": np.packbits(hud_mask()).tobytes().hex() if recipe.get("hud") == "inpaint" else "",
        }
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        try:
            self.process = subprocess.Popen(
                [str(python), str(Path(__file__).parent / "far")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                cwd=folder,
                env={**environ, "TMPDIR": folder, "PYTHONDONTWRITEBYTECODE": "1"},
                pass_fds=(memory,),
                start_new_session=True,
            )
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise EnvironmentCrashError(
                f"the MineDojo server did not start: found {error}, wanted {str(python)!r} to "
                "run; run `wmkit minedojo setup`"
            ) from error
        finally:
            os.close(memory)
        self._socket: Any = None
        self._dispose = weakref.finalize(self, _dispose, self.process, folder, os.getpid())
        self._begin(given, token)
        self._ask("make", recipe=recipe)

    def reset(self, *, full: bool, seed: int | None) -> Report:
        """Begin an episode."""
        return read_report(self._ask("reset", full=full, seed=seed, raw=self._raw), self._pixels)

    def step(self, action: Any) -> Report:
        """One step."""
        return read_report(self._ask("step", action=action, raw=self._raw), self._pixels)

    def close(self) -> None:
        """Ask the process to end, and see to it."""
        if self._dispose.alive and self._socket is not None:
            with contextlib.suppress(OSError, wire.WireError):
                self._socket.settimeout(CLOSING)
                wire.send(self._socket, {"do": "close"})
                wire.receive(self._socket)
                self.process.wait(CLOSING)
        self._end()

    def _begin(self, given: dict[str, Any], token: str) -> None:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        limit = time.monotonic() + STARTING
        try:
            stdin.write(json.dumps(given).encode() + b"\n")
            stdin.flush()  # it stays open: its end tells the server that this process is gone
            port = int(_line(stdout.fileno(), limit))
            self._socket = wire.connect(port, token, max(limit - time.monotonic(), 1.0))
        except (OSError, ValueError) as error:
            raise self._failed(
                "start", "it ended" if isinstance(error, ValueError) else str(error)
            ) from error
        finally:
            stdout.close()

    def _ask(self, what: str, **more: Any) -> dict[str, Any]:
        if not self._dispose.alive:
            raise EnvironmentCrashError(
                f"the MineDojo server failed in {what}: found that it has ended, wanted a running one; reset "
                "the environment"
            )
        seconds = self._timeouts[what]
        try:
            self._socket.settimeout(seconds)
            wire.send(self._socket, {"do": what, **more})
            answer = wire.receive(self._socket)
        except TimeoutError as error:
            raise self._failed(what, f"no answer in {seconds:g} seconds") from error
        except (OSError, wire.WireError) as error:
            raise self._failed(what, self._exit() or str(error)) from error
        except BaseException:  # Ctrl-C between question and answer: the next answer would be this one's
            self._end()
            raise
        if "error" in answer:
            raise self._failed(what, str(answer["error"]))
        return answer

    def _failed(self, what: str, found: str) -> EnvironmentCrashError:
        """The process is of no use any more: end it, and say why."""
        self._end()
        last = self._last_words()
        quoted = f", its log ends with {last!r}" if last else ""
        return EnvironmentCrashError(
            f"the MineDojo server failed in {what}: found {found.rstrip('.')[:400]}{quoted}, wanted an "
            "answer; reset the environment to start another, and look with `wmkit minedojo check`"
        )

    def _exit(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        code = self.process.returncode
        if code is None:
            return ""
        return (
            f"that it ended by {signal.Signals(-code).name}"
            if code < 0
            else f"that it ended, exit code {code}"
        )

    def _last_words(self) -> str:
        self._log.seek(max(self._log.seek(0, os.SEEK_END) - 4000, 0))
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")[-200:]

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._dispose()


def _dispose(process: subprocess.Popen, folder: str, owner: int) -> None:
    if os.getpid() != owner:  # a forked copy: the server belongs to the parent
        return
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    shutil.rmtree(folder, ignore_errors=True)  # as the server's shell does, once Minecraft is dead


def _line(fd: int, limit: float) -> bytes:
    """The first line of a pipe; empty at its end, or when time is up."""
    import select

    found = b""
    while not found.endswith(b"\n") and (left := limit - time.monotonic()) > 0:
        if select.select([fd], [], [], left)[0]:
            part = os.read(fd, 64)
            if not part:
                break
            found += part
    return found


def _memory() -> int:
    """A descriptor of memory for one frame, which goes when nobody holds it."""
    size = int(np.prod(SHAPE))
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("wmkit-frame")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd
