"""One ViZDoom process in a private folder, and the guarantee that its death is heard.

The engine writes ``_vizdoom`` and its settings into the current directory, so it is started from a
thread that has a current directory of its own (Linux), or with the process's directory changed for the
time of the start (elsewhere). The folder goes when the engine is closed, collected or the interpreter
exits; should the interpreter be killed, or a call take too long, a process beside it (Linux) ends the engine
and removes what is left, see :mod:`wmkit.envs.vizdoom.watcher`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import vizdoom as vzd

from wmkit.envs.vizdoom.watcher import Watcher
from wmkit.errors import EnvironmentCrashError

SETTLE = 10  # tics at the start of a map during which the engine holds the player still
HEIGHT, WIDTH = 160, 256
CLOSING = 5.0  # seconds for an engine to close
CLONE_FS = 0x200  # unshare(2): a current directory of the thread's own

BUTTONS: tuple[str, ...] = (
    "MOVE_FORWARD",
    "MOVE_BACKWARD",
    "MOVE_LEFT",
    "MOVE_RIGHT",
    "JUMP",
    "TURN_LEFT_RIGHT_DELTA",
)
BUTTONS += ("LOOK_UP_DOWN_DELTA",)
VARIABLES = ("POSITION_X", "POSITION_Y", "POSITION_Z", "ANGLE", "PITCH")

_start_lock = threading.Lock()


class Engine:
    """Runs maps of a WAD; one tic of the engine is one step.

    Args:
        objects: list the actors with their positions in every state.
        labels: render the labels buffer (which actor each pixel belongs to); slow, for tests.

    Attributes:
        patience: seconds in which an engine loaded from now on must answer (Linux); None for any time.
    """

    def __init__(self, *, objects: bool = False, labels: bool = False) -> None:
        self.objects, self.labels = objects, labels
        self.patience: float | None = None
        self.world = "no world"
        self._game: Any = None
        self._dispose: weakref.finalize | None = None

    @property
    def running(self) -> bool:
        """Whether a WAD is loaded."""
        return self._game is not None

    def load(self, wad: bytes, world: str = "no world") -> None:
        """Start the engine on ``wad``, replacing whatever ran before (about 0.15 s)."""
        self.close()
        self.world = world
        self._folder = folder = tempfile.mkdtemp(prefix="wmkit-vizdoom-")
        path = Path(folder, "worlds.wad")
        path.write_bytes(wad)
        game = vzd.DoomGame()
        self._watcher = Watcher(folder)
        self._dispose = weakref.finalize(self, _dispose, game, folder, os.getpid(), self._watcher)
        game.set_doom_game_path(str(Path(vzd.__file__).with_name("freedoom2.wad")))  # loaded, never seen
        game.set_doom_scenario_path(str(path))
        game.set_doom_config_path(str(Path(folder, "engine.ini")))
        game.set_doom_map("MAP01")
        game.set_episode_start_time(SETTLE)
        game.set_episode_timeout(0)
        game.set_mode(vzd.Mode.PLAYER)
        game.set_screen_resolution(vzd.ScreenResolution.RES_256X160)
        game.set_screen_format(vzd.ScreenFormat.CRCGCB)  # channels first
        game.set_objects_info_enabled(self.objects)
        game.set_labels_buffer_enabled(self.labels)
        for hide in ("hud", "weapon", "crosshair", "messages", "decals", "particles", "effects_sprites"):
            getattr(game, f"set_render_{hide}")(False)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_available_buttons([getattr(vzd.Button, name) for name in BUTTONS])
        game.set_available_game_variables([getattr(vzd.GameVariable, name) for name in VARIABLES])
        game.add_game_args("+movebob 0")
        self._game = game
        self._guard(self._start, folder, game)

    def new_episode(self, number: int, seed: int, world: str) -> Any:
        """Enter map ``number`` (from 1) with the engine's generator seeded; returns the first state."""
        self.world = world
        return self._guard(self._new_episode, number, seed)

    def step(self, buttons: Sequence[float]) -> Any:
        """Hold ``buttons`` (values of :data:`BUTTONS`) for one tic; returns the state after it.

        Raises:
            EnvironmentCrashError: the engine died; the message names the world.
        """
        return self._guard(self._advance, buttons)

    def close(self) -> None:
        """Stop the engine and remove its folder."""
        self._game = None
        if self._dispose is not None:
            self._dispose()
            self._dispose = None

    def _start(self, folder: str, game: Any) -> bool:
        try:
            return _start_in(folder, game, self.patience)
        except _Abandoned as abandoned:  # whoever ends the engine now ends this process with it
            assert self._dispose is not None
            self._dispose.detach()
            self._dispose, self._game = None, None
            self._watcher.leave()
            raise abandoned.cause from None

    def _new_episode(self, number: int, seed: int) -> Any:
        with self._watcher.calling(self.patience):
            self._game.set_seed(seed)
            self._game.set_doom_map(f"MAP{number:02d}")
            self._game.new_episode()
            return self._game.get_state()

    def _advance(self, buttons: Sequence[float]) -> Any:
        with self._watcher.calling(self.patience):
            self._game.make_action(buttons)
            return self._game.get_state()

    def _guard(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            out = call(*args)
        except Exception as error:  # vizdoom's exceptions share no base of their own
            self.close()
            raise self._crash(str(error)) from error
        if out is None:
            self.close()
            raise self._crash("it returned no state")
        return out

    def _crash(self, reason: str) -> EnvironmentCrashError:
        reason = reason.strip().rstrip(".") or "no message"
        return EnvironmentCrashError(
            f"the ViZDoom engine of {self.world} died: found {reason!r}, wanted a running engine; "
            "reset the environment to start another, and report the world if it happens again"
        )


class _Abandoned(Exception):
    """An engine is still starting, and is waited for no longer because of ``cause``."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__()
        self.cause = cause


def _start_in(folder: str, game: Any, patience: float | None) -> bool:
    """``game.init()`` with ``folder`` as the current directory of the new process."""
    global _start_lock
    failed: list[BaseException] = []
    lock = _start_lock

    def start() -> None:
        try:
            private = _private_directory()
            if hasattr(
                signal, "pthread_sigmask"
            ):  # the engine inherits it: Ctrl-C reaches this process alone
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            with lock:
                home = None if private else os.getcwd()
                os.chdir(folder)
                try:
                    game.init()
                finally:
                    if home is not None:
                        os.chdir(home)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=start, name="wmkit-vizdoom-start", daemon=True)
    thread.start()
    cause: BaseException
    try:
        thread.join(patience)
        cause = TimeoutError(f"no answer in {patience} seconds to its start")
    except BaseException as error:
        cause = error
    if thread.is_alive():
        _start_lock = threading.Lock()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(game))  # its end would wait for the engine's
        raise _Abandoned(cause)
    if failed:
        raise failed[0]
    return True


def _private_directory() -> bool:
    """Give the calling thread a current directory of its own, where the system can."""
    unshare = getattr(ctypes.CDLL(None), "unshare", None) if os.name == "posix" else None
    return unshare is not None and unshare(CLONE_FS) == 0


def _dispose(game: Any, folder: str, owner: int, watcher: Watcher) -> None:
    if os.getpid() != owner:  # a forked copy: the engine belongs to the parent
        return
    try:
        with watcher.calling(CLOSING):
            game.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        watcher.close()
