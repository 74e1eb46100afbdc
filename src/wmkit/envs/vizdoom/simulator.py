"""The embedded worlds as a plain simulator: integers in, numpy arrays out, no TorchRL.

One step is one tic of the engine: a walking action moves exactly :data:`~wmkit.envs.vizdoom.meadow.WALK` map
units without inertia, a camera action turns 10 degrees. The camera's pitch is a multiple of 10 degrees
in [-30, 50] (negative looks up): LS-Imagine clamps at 70, ViZDoom's renderer at 32 and 56.

Every episode is a new world. Episode k of a stream depends on ``(task, world, seed, k)`` only; maps are
written to the engine in blocks, so that a new episode costs milliseconds.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from wmkit.envs.vizdoom.art import SHARES, kind_mask
from wmkit.envs.vizdoom.engine import Engine
from wmkit.envs.vizdoom.meadow import WORLDS, generate, wad
from wmkit.envs.vizdoom.tasks import ACTORS, AIM, REACH, find_task
from wmkit.errors import ConfigError

Observation = dict[str, np.ndarray]

ACTIONS: tuple[str, ...] = ("noop", "attack", "look up", "look down", "turn left", "turn right")
ACTIONS += ("forward", "back", "left", "right", "jump", "use")
TURN = 10  # degrees
PITCH = (-30, 50)  # degrees, up and down
EYE = 41.0  # map units above the feet
MAPS = 16  # worlds per engine start

_BUTTON = {6: 0, 7: 1, 8: 2, 9: 3}  # action -> walking button
_JUMP, _YAW, _LOOK = 4, 5, 6  # the other buttons


class VizdoomSimulator:
    """First-person harvesting in generated block worlds.

    Observations: ``frame`` uint8 ``[3, 160, 256]``; ``goal_mask`` bool ``[1, 160, 256]``, exactly the
    visible pixels of the task's goals; ``pixels`` uint8 ``[3, 64, 64]``, the frame in bilinear
    reduction without antialiasing; ``success`` bool ``[1]``, true from the step that won. Steps add
    ``reward`` float32 ``[1]`` (1.0 once, on success), ``terminated`` and ``truncated`` bool ``[1]``.

    Args:
        task: one of :data:`wmkit.envs.vizdoom.tasks.TASKS`, with or without ``vizdoom/``.
        world: ``"full"`` (4096 units wide, 1000 steps) or ``"small"`` (512 units, 30 steps).
        seed: of the stream of episodes.
        max_steps: time limit in steps, the world's own by default.
        frames: emit ``frame``.
        masks: emit ``goal_mask``.
        success_terminates: end the episode at the first success.
        distractors: actors of each kind that is not the goal, the world's own number by default.
        sticky_jump: steps for which a jump holds jump and forward (LS-Imagine: 10; 1 is not sticky).

    Raises:
        ConfigError: an unknown task or world, or a number out of range.

    >>> simulator = VizdoomSimulator("harvest_log_in_plains", world="small", seed=7)
    >>> simulator.reset()["frame"].shape
    (3, 160, 256)
    >>> simulator.step(5)["goal_mask"].shape  # turn right
    (1, 160, 256)
    >>> simulator.close()
    """

    def __init__(
        self,
        task: str,
        *,
        world: str = "full",
        seed: int = 0,
        max_steps: int | None = None,
        frames: bool = True,
        masks: bool = True,
        success_terminates: bool = True,
        distractors: int | None = None,
        sticky_jump: int = 10,
    ) -> None:
        self.task = find_task(task)
        if world not in WORLDS:
            raise ConfigError(
                f"world {world!r} is unknown: wanted one of {', '.join(WORLDS)}; pick one of them"
            )
        self.world = world
        self.max_steps = WORLDS[world].max_steps if max_steps is None else max_steps
        self.distractors = WORLDS[world].others if distractors is None else distractors
        limits = {"max_steps": (self.max_steps, 1), "sticky_jump": (sticky_jump, 1)}
        limits["distractors"] = (self.distractors, 0)
        for name, (value, least) in limits.items():
            if value < least:
                raise ConfigError(
                    f"option {name}={value} of {self.task.name} is out of range: "
                    f"wanted at least {least}; raise it"
                )
        self.frames, self.masks = frames, masks
        self.success_terminates, self.sticky_jump = success_terminates, sticky_jump
        self._moving = self.task.kind == "sheep"
        self._engine = Engine(objects=self._moving)
        self._block = -1
        self.seed(seed)

    def wait_at_most(self, seconds: float | None) -> None:
        """In which the engine must answer from now on, or it is ended (Linux); None for any time."""
        self._engine.patience = seconds

    def seed(self, seed: int) -> None:
        """Restart the stream of episodes: the next reset enters episode 0 of ``seed``."""
        self._seed, self.episode, self._block = int(seed), -1, -1

    def reset(self, seed: int | None = None) -> Observation:
        """Enter the next episode of the stream, or episode 0 of ``seed``."""
        if seed is not None:
            self.seed(seed)
        self.episode += 1
        block, index = divmod(self.episode, MAPS)
        if block != self._block or not self._engine.running:
            layouts = [self._layout(block * MAPS + i) for i in range(MAPS)]
            self._engine.load(wad(layouts), self.name)
            self._placed, self._block = [layout.goals for layout in layouts], block
        self._goals = self._placed[index]
        self._t, self._pitch, self._jumping, self._won = 0, 0, 0, False
        seed32 = int(self._sequence(self.episode).generate_state(2)[1])
        self._state = self._engine.new_episode(index + 1, seed32, self.name)
        return self._observe()

    @property
    def name(self) -> str:
        """The present world in words: task, size, seed and episode."""
        return f"task {self.task.name!r}, world {self.world!r}, seed {self._seed}, episode {self.episode}"

    def step(self, action: int) -> Observation:
        """Take one of the 12 :data:`ACTIONS`.

        Raises:
            EnvironmentCrashError: the engine died; the message names the world.
        """
        won = action == self.task.action and self.on_target()
        buttons = [0.0] * 7
        if action in _BUTTON:
            buttons[_BUTTON[action]] = 1.0
        elif action in (4, 5):
            buttons[_YAW] = TURN if action == 5 else -TURN
        elif action in (2, 3):
            pitch = min(max(self._pitch + (TURN if action == 3 else -TURN), PITCH[0]), PITCH[1])
            buttons[_LOOK], self._pitch = (
                float(self._pitch - pitch),
                pitch,
            )  # the engine's delta is positive upwards
        elif action == 10:
            self._jumping = self.sticky_jump
        if self._jumping:
            buttons[0] = buttons[_JUMP] = 1.0
            self._jumping -= 1
        self._state = self._engine.step(buttons)
        self._t += 1
        reward = float(won and not self._won)
        self._won |= won
        out = self._observe()
        out["reward"] = np.array([reward], np.float32)
        out["terminated"] = np.array([self._won and self.success_terminates])
        out["truncated"] = np.array([self._t >= self.max_steps and not out["terminated"][0]])
        return out

    def on_target(self) -> bool:
        """Whether the task's action would succeed now: a goal within reach and under the crosshair."""
        x, y, z, angle, pitch = self._state.game_variables.tolist()
        for name, goal_x, goal_y in self._goal_positions():
            actor = ACTORS[name]
            distance = math.hypot(goal_x - x, goal_y - y)
            if distance - actor.radius > REACH:
                continue
            bearing = math.degrees(math.atan2(goal_y - y, goal_x - x)) - angle
            bearing = abs((bearing + 180) % 360 - 180)
            near = max(distance - actor.radius, 1.0)
            # Down is positive; the silhouette spans [top, foot] in pitch and +-half in bearing.
            foot = math.degrees(math.atan2(z + EYE, near))
            top = math.degrees(math.atan2(z + EYE - actor.height, near))
            half = math.degrees(math.atan2(actor.radius, max(distance, 1.0)))
            if bearing <= half + AIM and top - AIM <= pitch <= foot + AIM:
                return True
        return False

    def labels(self) -> dict[str, np.ndarray]:
        """Exact visible pixels of every kind of actor in view, bool ``[160, 256]``."""
        masks = {kind: kind_mask(self._state.screen_buffer, kind)[0] for kind in SHARES if kind != "land"}
        return {kind: mask for kind, mask in masks.items() if mask.any()}

    def close(self) -> None:
        """Stop the engine; a later reset starts another."""
        self._engine.close()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"_engine": Engine(objects=self._engine.objects), "_block": -1}
        state.pop("_state", None)  # views of the engine's memory
        return state

    def _sequence(self, episode: int) -> np.random.SeedSequence:
        world = zlib.crc32(f"{self.task.name}/{self.world}".encode())
        return np.random.SeedSequence([self._seed % 2**64, episode, world])

    def _layout(self, episode: int) -> Any:
        rng = np.random.default_rng(self._sequence(episode))
        return generate(self.task, WORLDS[self.world], self.distractors, rng)

    def _goal_positions(self) -> Iterable[tuple[str, float, float]]:
        if not self._moving:
            return self._goals
        return [
            (thing.name, thing.position_x, thing.position_y)
            for thing in self._state.objects
            if thing.name in self.task.actors
        ]

    def _observe(self) -> Observation:
        frame = self._state.screen_buffer  # [3, 160, 256], a copy of the engine's memory
        out: Observation = {"pixels": shrink(frame), "success": np.array([self._won])}
        if self.frames:
            out["frame"] = frame
        if self.masks:
            out["goal_mask"] = kind_mask(frame, self.task.kind)
        return out


def shrink(frame: np.ndarray) -> np.ndarray:
    """Bilinear 160x256 to 64x64 without antialiasing (half-pixel centres), in integers.

    Columns fall midway between two texels (4i + 1.5), rows a quarter beside one (2.5i + 0.75).

    Args:
        frame: uint8 ``[3, 160, 256]``.

    Returns:
        uint8 ``[3, 64, 64]``, rounded half up.
    """
    # Four neighbouring columns are one little-endian word; the middle two are its middle bytes.
    words = frame.view("<u4").reshape(3, 32, 5, 64)  # two output rows draw on five input rows
    wide = (words >> 8 & 255) + (words >> 16 & 255)  # [3, 32, 5, 64], twice the mean
    out = np.empty((3, 32, 2, 64), np.uint8)
    out[:, :, 0] = (wide[:, :, 0] + 3 * wide[:, :, 1] + 4) >> 3
    out[:, :, 1] = (3 * wide[:, :, 3] + wide[:, :, 4] + 4) >> 3
    return out.reshape(3, 64, 64)
