"""A stand-in for the Minecraft that CraftGround starts: it listens where the mod does, in its messages.

Run as ``python craftground_game.py LOG`` with ``PORT`` set; what it was told goes to LOG, in lines of JSON.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys

from craftground.proto.action_space_pb2 import ActionSpaceMessageV2
from craftground.proto.initial_environment_pb2 import InitialEnvironmentMessage
from craftground.proto.observation_space_pb2 import ObservationSpaceMessage

GIVES = {"attack": "block.minecraft.birch_log", "use": "item.minecraft.water_bucket"}
HITS = 3


class Game:
    """One world, one player."""

    def __init__(self, size):
        self.height, self.width = size
        self.steps = 0
        self.begin()

    def begin(self):
        self.held, self.pressed, self.dead, self.pitch, self.yaw = {}, {}, False, 0.0, 0.0

    def type(self, command):
        words = command.split()
        if words[0] == "fastreset":
            self.begin()
        elif words[0] == "clear":
            self.held = {}
        elif words[0] == "kill":
            self.dead = True
        elif words[:2] == ["item", "replace"]:
            self.held["item.minecraft." + words[-1].partition(":")[2]] = 1

    def press(self, action):
        self.pitch += action.camera_pitch
        self.yaw += action.camera_yaw
        for key, item in GIVES.items():
            if getattr(action, key):
                self.pressed[key] = self.pressed.get(key, 0) + 1
                if self.pressed[key] == HITS:
                    self.held[item] = self.held.get(item, 0) + 1

    def observe(self):
        rows = (bytes((row, 0, self.steps % 256)) * self.width for row in reversed(range(self.height)))
        message = ObservationSpaceMessage(
            image=b"".join(rows), x=0.5, y=64.0, z=0.5, yaw=self.yaw, pitch=self.pitch
        )
        message.health, message.food_level, message.is_dead = 20.0, 20.0, self.dead
        for name, count in {**self.held, "block.minecraft.air": 0}.items():
            message.inventory.add(translation_key=name, count=count)
        return message


def main():
    log = open(sys.argv[1], "a", buffering=1)  # noqa: SIM115
    path = os.path.join(os.sep, "tmp", f"minecraftrl_{os.environ['PORT']}.sock")
    if os.path.exists(path):
        os.remove(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        sock, _ = listener.accept()

    def read():
        head = sock.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            sys.exit()
        return sock.recv(struct.unpack("<I", head)[0], socket.MSG_WAITALL)

    def write(message):
        payload = message.SerializeToString()
        sock.sendall(struct.pack("<I", len(payload)) + payload)

    world = InitialEnvironmentMessage.FromString(read())
    log.write(json.dumps({"world": world.seed, "hud": world.hudHidden, "pid": os.getpid()}) + "\n")
    game = Game((world.imageSizeY, world.imageSizeX))
    write(game.observe())
    while True:
        action = ActionSpaceMessageV2.FromString(read())
        game.steps += 1
        told = list(action.commands)
        log.write(json.dumps({"commands": told, "forward": action.forward, "jump": action.jump}) + "\n")
        if "exit" in told:
            return
        for command in told:
            game.type(command)
        game.press(action)
        write(game.observe())


if __name__ == "__main__":
    main()
