"""A stand-in for Minecraft with Malmo: it speaks the protocol of MineDojo 0.1, and fails when told to.

Standard library only, so that it also runs as the program that MineDojo starts (``malmo.py -port N``).
Messages are payloads behind ``!I`` lengths. A connection is: hello (no reply), ``<Quit/>``, mission and token
until the reply is 1, ``<Peek/>``, then steps; MineDojo opens another one at every full reset.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import struct
import threading
import time

ITEMS = {"attack": "log", "use": "water_bucket"}
SLOTS = 41


class Malmo:
    """Listens on the loopback address until it is closed.

    Args:
        port: 0 is one of the system's choice.
        busy: missions that are refused before one is taken.
        hits: presses of a key in an episode that give its item of :data:`ITEMS`.
        faults: what goes wrong at which step of a connection, from 1 on: ``drop``, ``hang``, ``garbage``,
            ``short``, ``missing``, ``die``, ``done``; 0 is the reset. Each happens once.
        recording: what is told instead, pairs of values and picture.
    """

    def __init__(self, port=0, *, busy=0, hits=3, faults=None, recording=None):
        self.busy, self.hits, self.faults = busy, hits, dict(faults or {})
        self.recording = list(recording or ())
        self.hellos, self.disconnects, self.missions, self.tokens, self.commands = 0, 0, [], [], []
        self.open = 0
        self._hanging = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._hanging.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone does not wake who accepts
        self._listener.close()

    @property
    def chats(self):
        """Commands that were typed, in order."""
        return [line[5:] for step in self.commands for line in step.split("\n") if line.startswith("chat ")]

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        self.open += 1
        try:
            Player(self, sock).play()
        except (OSError, EOFError):
            pass
        finally:
            self.open -= 1
            sock.close()


class Player:
    """One connection."""

    def __init__(self, malmo, sock):
        self.malmo, self.sock = malmo, sock
        self.steps, self.size = 0, (64, 64)
        self.mission, self.blank = "", None
        self.begin()

    def begin(self):
        self.held, self.pressed, self.life, self.place = {}, {}, 20.0, [0.5, 64.0, 0.5, 0.0, 0.0]

    def play(self):
        if self.read() != b"<MalmoEnv0.37.0/>":
            return
        self.malmo.hellos += 1
        while True:
            message = self.read()
            if message == b"<Disconnect/>":
                self.malmo.disconnects += 1
                return
            if message == b"<Quit/>":
                self.write(struct.pack("!I", 0))
            elif message.startswith(b"<MissionInit") or b"<Mission" in message[:200]:
                self.begin_mission(message.decode())
            elif message == b"<Peek/>":
                fault = self.malmo.faults.pop(0, None)
                if not self.go_wrong(fault):
                    self.tell(fault)
                    self.write(struct.pack("!b", 0))
            elif message.startswith(b"<StepClient0>"):
                self.step(message.decode())
            elif message == b"<Exit>NOW</Exit>":
                self.write(struct.pack("!I", 1))
                return
            elif message != b"<StepServer></StepServer>":
                raise EOFError(message[:80])

    def begin_mission(self, mission):
        token = self.read().decode()
        if self.malmo.busy:
            self.malmo.busy -= 1
            self.write(struct.pack("!I", 0))
            return
        width, height = (re.search(rf"<{name}>\s*(\d+)", mission)[1] for name in ("Width", "Height"))
        self.size = (int(height), int(width))
        for item in re.findall(r'<InventoryObject[^>]*type="(\w+)"', mission):
            self.held[item] = self.held.get(item, 0) + 1
        self.mission = mission
        self.malmo.missions.append(mission)
        self.malmo.tokens.append(token)
        self.write(struct.pack("!I", 1))

    def step(self, message):
        commands = re.fullmatch(r"<StepClient0>(.*)</StepClient0 >", message, re.DOTALL)[1]
        self.malmo.commands.append(commands)
        self.steps += 1
        fault = self.malmo.faults.pop(self.steps, None)
        if self.go_wrong(fault):
            return
        for line in commands.split("\n"):
            key, _, value = line.partition(" ")
            if key == "chat":
                self.chat(value)
            elif key == "camera":
                pitch, yaw = map(float, value.split())
                self.place[3] += yaw
                self.place[4] += pitch
            elif key in ITEMS and value == "1":
                self.pressed[key] = self.pressed.get(key, 0) + 1
                if self.pressed[key] == self.malmo.hits:
                    self.held[ITEMS[key]] = self.held.get(ITEMS[key], 0) + 1
            elif key == "forward" and value == "1":
                self.place[2] += 0.2
        if fault == "die":
            self.life = 0.0
        self.tell(fault, struct.pack("!dbb", 0.0, int(fault == "done"), 1))

    def chat(self, command):
        if command == "/kill":
            self.begin()
        elif given := re.match(r"/replaceitem entity @p \S+ minecraft:(\w+) (\d+)", command):
            self.held[given[1]] = int(given[2])

    def go_wrong(self, fault):
        """Whether nothing is told."""
        if fault == "hang":
            self.malmo._hanging.wait()
        elif fault == "drop":
            self.sock.shutdown(socket.SHUT_RDWR)
        return fault in ("hang", "drop")

    def tell(self, fault, between=None):
        """Picture, perhaps a few bytes, and the values of a moment."""
        height, width = self.size
        if self.malmo.recording:
            values, picture = self.malmo.recording.pop(0)
        else:
            values, picture = self.values(), self.picture(height, width)
        if fault == "missing":
            del values["inventory"]
        said = b'{"life": ' if fault == "garbage" else json.dumps(values).encode()
        self.write(picture[:-3] if fault == "short" else picture)
        if between is not None:
            self.write(between)
        self.write(said)

    def picture(self, height, width):
        """Rows from the bottom up: red is the row from the top, green the column, blue the step."""
        if self.blank is None or len(self.blank) != height * width * 3:
            line = [bytes((column % 256, 0)) for column in range(width)]
            self.blank = bytearray(
                b"".join(bytes((row,)) + rest for row in reversed(range(height)) for rest in line)
            )
        self.blank[2::3] = bytes((self.steps % 255 + 1,)) * (height * width)
        return bytes(self.blank)

    def values(self):
        slots = [
            {"inventory": "inventory", "name": "air", "variant": 0, "quantity": 0}
            | {"max_durability": -1, "cur_durability": -1}
            for _ in range(SLOTS)
        ]
        for slot, (name, count) in zip(slots, self.held.items()):  # noqa: B905  (old interpreters)
            slot.update(name=name, quantity=count)
        x, y, z, yaw, pitch = self.place
        return {
            "inventory": slots,
            "nearby_crafting_table": False,
            "nearby_furnace": False,
            **{"xpos": x, "ypos": y, "zpos": z, "yaw": yaw, "pitch": pitch},
            **{"life": self.life, "food": 20, "saturation": 5.0, "air": 300, "armor": 0, "xp": 0},
            "stat": {},
            "voxels": ["air", 0, False, True, False, False, False, False, False, 0.0] * 27,
        }

    def read(self):
        (length,) = struct.unpack("!I", self.exactly(4))
        return self.exactly(length)

    def exactly(self, count):
        parts = b""
        while len(parts) < count:
            part = self.sock.recv(count - len(parts))
            if not part:
                raise EOFError
            parts += part
        return parts

    def write(self, payload):
        self.sock.sendall(struct.pack("!I", len(payload)) + payload)


def main():
    """What MineDojo starts: it waits for ``CLIENT enter state: DORMANT`` on standard output."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-port", type=int, required=True)
    given, _ = parser.parse_known_args()
    malmo = Malmo(given.port)
    print(f"***** Start MalmoEnvServer on port {malmo.port}", flush=True)
    print("CLIENT enter state: DORMANT", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
