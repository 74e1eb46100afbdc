"""The server process: one MineDojo environment for one client on this machine.

    trainer  ──keys, as JSON──▶  127.0.0.1, after a token  ──▶  World
             ◀──numbers, as JSON──                        frame ──▶  memory that both hold

Standard input brings one line of JSON (``token``, ``memory``, ``shape``, ``folder``, ``malmo``, ``port``,
``patience``, ``hud``); its end, or another parent, ends this process. Standard output gets one line, the port
to connect to. A shell at the end of a pipe that this process alone holds then kills the Minecraft that it
started and removes the folder, however this process ends.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

WAITING = 60.0  # seconds for the client to connect
SWEEP = (
    'while read -r group; do groups="$groups $group"; done; '
    'for group in $groups; do kill -9 "-$group" 2>/dev/null; done; rm -rf "$1"'
)


def main() -> None:
    """Serve until the client closes or is gone."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what MineDojo prints goes to the log
    given = json.loads(sys.stdin.buffer.readline(65536))
    parent = os.getppid()
    nothing = subprocess.DEVNULL
    sweeper = subprocess.Popen(
        ["/bin/sh", "-c", SWEEP, "sh", given["folder"]],
        stdin=subprocess.PIPE,
        stdout=nothing,
        stderr=nothing,
        start_new_session=True,
        bufsize=0,
    )
    assert sweeper.stdin is not None
    groups = sweeper.stdin

    def told(group: int) -> None:
        groups.write(b"%d\n" % group)

    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    wire = import_module("far.wire")
    listener = wire.listen()
    os.write(answers, f"{listener.getsockname()[1]}\n".encode())
    os.close(answers)
    try:
        client = wire.accept(listener, given["token"], WAITING)
    except wire.WireError as error:
        sys.exit(f"MineDojo server: {error}")
    listener.close()
    pixels = np.frombuffer(mmap.mmap(given["memory"], int(np.prod(given["shape"]))), np.uint8)
    server = Server(given, pixels.reshape(given["shape"]), told)
    code = 0
    try:
        while True:
            asked = wire.receive(client)
            answer = server.answer(asked)
            try:
                wire.send(client, answer)
            except ValueError as error:
                wire.send(client, {"error": f"{type(error).__name__}: {error}"})
            if asked.get("do") == "close":
                break
    except (OSError, wire.WireError):  # the client is gone
        code = 1
    server.close()
    sys.stderr.flush()
    os._exit(code)  # without MineDojo's own words at exit, which wait for seconds


class Server:
    """What the client may ask for: ``make``, ``reset``, ``step``, ``close``."""

    def __init__(self, given: dict[str, Any], pixels: np.ndarray, launched: Any) -> None:
        self._given, self._pixels, self._launched = given, pixels, launched
        self._world: Any = None

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Values, or ``error`` and what was raised."""
        try:
            what = asked.get("do")
            if what == "make":
                self._make(asked["recipe"])
                return {}
            if what == "close":
                return {}
            if what == "reset" and self._world is not None:
                frame, said = self._world.reset(full=bool(asked["full"]), seed=asked.get("seed"))
            elif what == "step" and self._world is not None:
                frame, said = self._world.step(asked["action"])
            else:
                raise ValueError(f"no such request: {what!r}")
            self._pixels[:] = frame
            if not asked.get("raw"):
                del said["raw"]
            return dict(said)
        except Exception as error:
            text = " ".join(str(error).split())
            return {"error": f"{type(error).__name__}: {text}" if text else type(error).__name__}

    def _make(self, recipe: dict[str, Any]) -> None:
        given = self._given
        self.close()
        world = import_module("far.world")
        if "id" not in recipe:
            world.skip_descriptions()
        self._world = world.World(
            recipe,
            port=given["port"],
            malmo=given["malmo"],
            patience=given["patience"],
            launched=self._launched,
            mask=np.unpackbits(np.frombuffer(bytes.fromhex(given["hud"]), np.uint8)).reshape(
                given["shape"][1:]
            )
            if given["hud"]
            else None,
        )

    def close(self) -> None:
        """End the simulator."""
        if self._world is not None:
            try:
                self._world.close()
            except Exception as error:
                print("MineDojo server:", error)
            self._world = None


def _watch(parent: int) -> None:
    """End when the trainer is gone: its pipe has ended, or another process is this one's parent."""
    while os.getppid() == parent:
        ready, _, _ = select.select([0], [], [], 0.5)
        if ready and not os.read(0, 4096):
            break
    os._exit(1)


if __name__ == "__main__":
    main()
