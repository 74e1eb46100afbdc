"""LS-Imagine's five tasks over CraftGround: a kept package, Minecraft 1.21, JDK 21; MineDojo's keys.

Read of craftground 2.7.4 and its runtime 0.1.0 for Minecraft 1.21, and tried against a stand-in for the game:
no real one was at hand. Names of items are mapped back to those of Minecraft 1.11, so that what wins is the
same: see :data:`COUNTS`. What cannot be the same:

* Its mod makes no world of one biome: tasks in plains begin where the world begins (``world_seed`` fixes it).
* A new world is a new Java process, and it is waited for without end. Play it with ``env.parallel=true``,
  where a worker that hangs is ended after ``env.timeout`` and made anew.
"""

from __future__ import annotations

import os
import subprocess
import weakref
from typing import Any

import numpy as np

from wmkit.arguments import check_range
from wmkit.envs.adapters import needs
from wmkit.envs.minedojo.actions import KEYS
from wmkit.envs.minedojo.env import MinecraftEnv
from wmkit.envs.minedojo.observations import Report
from wmkit.envs.minedojo.tasks import HEIGHT, TELEPORT, WIDTH, MinecraftTask, find_minecraft_task
from wmkit.errors import EnvironmentCrashError

WOODS = ("oak", "spruce", "birch", "jungle")  # acacia and dark oak are 1.11's log2, which does not win
COLOURS = (
    *("white", "orange", "magenta", "light_blue", "yellow", "lime", "pink", "gray"),
    *("light_gray", "cyan", "purple", "blue", "brown", "green", "red", "black"),
)
COUNTS: dict[str, str] = {
    **{f"{wood}_log": "log" for wood in WOODS},
    **{f"{colour}_wool": "wool" for colour in COLOURS},
    **{"red_sand": "sand", "raw_iron": "iron_ore", "deepslate_iron_ore": "iron_ore"},
}
"""Items of Minecraft 1.21, and what they were called in 1.11; others keep their name."""

_PLAIN_KEYS = (*KEYS, "inventory")
# Waits for a line or the end of the pipe; without the line the owner was killed.
_WATCH = 'read -r word; [ "$word" = closed ] || kill -9 "-$1"'
SETTLE = 2  # steps after the commands of a reset


def to_action(keys: dict[str, Any]) -> dict[str, bool | float]:
    """CraftGround's dictionary of keys.

    >>> found = to_action({"forward": 1, "camera": [10, -5]})
    >>> found["forward"], found["back"], found["camera_pitch"], found["camera_yaw"]
    (True, False, 10.0, -5.0)
    """
    pitch, yaw = keys.get("camera", (0, 0))
    hotbar = {f"hotbar.{i}": bool(keys.get(f"hotbar.{i}")) for i in range(1, 10)}
    plain = {key: bool(keys.get(key)) for key in _PLAIN_KEYS}
    return {**plain, **hotbar, "camera_pitch": float(pitch), "camera_yaw": float(yaw)}


def count_stacks(stacks: Any) -> dict[str, int]:
    """Items by their name of Minecraft 1.11.

    Args:
        stacks: of the game, each with ``translation_key`` and ``count``.

    >>> from types import SimpleNamespace
    >>> names = ("block.minecraft.oak_log", "block.minecraft.birch_log", "block.minecraft.air")
    >>> count_stacks([SimpleNamespace(translation_key=name, count=2) for name in names])
    {'log': 4}
    """
    held: dict[str, int] = {}
    for stack in stacks:
        name = stack.translation_key.rpartition(".")[2]
        if stack.count > 0 and name not in ("", "air"):
            name = COUNTS.get(name, name)
            held[name] = held.get(name, 0) + int(stack.count)
    return held


def commands(task: MinecraftTask, rng: np.random.Generator, *, quick: bool) -> list[str]:
    """What is typed at a reset: where the agent stands, what it holds, who is near.

    Args:
        task: one of the five.
        rng: chooses where mobs appear.
        quick: whether the world stays.

    >>> commands(find_minecraft_task("harvest_sand"), np.random.default_rng(0), quick=False)
    ['attribute @p minecraft:player.block_break_speed base set 100.0']
    """
    recipe = task.recipe()
    typed = [f"attribute @p minecraft:player.block_break_speed base set {recipe['break_speed']}"]
    if quick:
        typed += ["clear @p", f"spreadplayers ~ ~ 0 {TELEPORT} false @p", "time set 0", "weather clear"]
    if task.tool is not None:
        typed.append(f"item replace entity @p weapon.mainhand with minecraft:{task.tool}")
    low, high = recipe["mob_range"]
    for mob in task.mobs:
        x, y, z = rng.integers(low, np.add(high, 1))
        typed.append(f"summon minecraft:{mob} ~{x} ~{y} ~{z}")
    return typed


class CraftGroundSimulator:
    """Minecraft 1.21 by CraftGround; a :class:`~wmkit.envs.minedojo.client.Simulator`.

    Args:
        task: one of the five.
        world_seed: of the world; None is another one each time Java is started.
        port: the first one that is tried.
        render_distance: chunks.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(
        self,
        task: MinecraftTask,
        *,
        world_seed: str | int | None = None,
        port: int = 8000,
        render_distance: int = 6,
    ) -> None:
        with needs("craftground", "Minecraft by CraftGround"):
            import craftground
            from craftground.environment.action_space import ActionSpaceVersion
        config = craftground.InitialEnvironmentConfig(
            image_width=WIDTH,
            image_height=HEIGHT,
            seed="" if world_seed is None else str(world_seed),
            hud_hidden=True,
            render_distance=render_distance,
            simulation_distance=render_distance,
        )
        keys = ActionSpaceVersion.V2_MINERL_HUMAN
        self._env = craftground.make(config, port=port, action_space_version=keys)
        self._task, self._rng = task, np.random.default_rng()
        self._watched: Any = None
        self._keeper: weakref.finalize | None = None

    def reset(self, *, full: bool, seed: int | None) -> Report:
        """Begin an episode; the first one, and full ones, start Java."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        quick = not full and self._env.is_alive
        typed = commands(self._task, self._rng, quick=quick)
        self._told("reset", self._env.reset, options={"fast_reset": quick})
        self._watch()
        self._env.add_commands(typed)
        return [self.step({}) for _ in range(SETTLE)][-1]

    def step(self, action: Any) -> Report:
        """One step with pressed keys."""
        obs, _, _, _, _ = self._told("step", self._env.step, to_action(action))
        full = obs["full"]
        life = 0.0 if full.is_dead else float(full.health)
        vitals = (life, full.food_level, 300.0, 0.0, full.saturation_level, full.experience)
        return Report(
            frame=np.array(np.asarray(obs["rgb"]).transpose(2, 0, 1), np.uint8, order="C"),
            inventory=count_stacks(full.inventory),
            vitals=tuple(float(value) for value in vitals),
            place=(full.x, full.y, full.z, full.yaw, full.pitch),
        )

    def close(self) -> None:
        """End Java."""
        self._env.terminate()
        if self._keeper is not None:
            self._keeper()

    def _watch(self) -> None:
        """Have the Java that was started end with this process, however that ends."""
        process = self._env.process
        if process is self._watched or os.name != "posix":
            return
        if self._keeper is not None:
            self._keeper()
        nothing = subprocess.DEVNULL
        shell = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", str(process.pid)],  # it leads a group of its own
            stdin=subprocess.PIPE,
            stdout=nothing,
            stderr=nothing,
            start_new_session=True,
        )
        self._watched, self._keeper = process, weakref.finalize(self, shell.communicate, b"closed\n")

    @staticmethod
    def _told(what: str, call: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            text = " ".join(str(error).split()) or "no message"
            raise EnvironmentCrashError(
                f"CraftGround failed in {what}: found {type(error).__name__}: {text}, wanted an answer of "
                "the game; reset the environment to start another"
            ) from error


class CraftGroundEnv(MinecraftEnv):
    """LS-Imagine's tasks over CraftGround; keys, actions, prompts and rules are those of MineDojo.

    Args:
        task: one of LS-Imagine's five.
        seed: of where mobs appear.
        world_seed: of the world; None is another one at every full reset.
        port: the first one that is tried.
        render_distance: chunks.
        max_steps: time limit, the task's own by default.
        frames: emit ``frame``.
        numbers: emit ``vitals`` and ``place``.
        on_success: ``truncate`` (LS-Imagine's released code), ``terminate`` or ``continue``.
        item_bonus: what an item pays beyond 1 (1 in the released code).
        sticky_jump: steps for which a jump holds jump and forward.
        pitch_limit: degrees beyond which the camera does not bend.
        fast_reset: resets by commands between two new worlds; None is the task's number, 0 none.

    Raises:
        ConfigError: an unknown task, a package that is not installed, or a number out of range.
    """

    def __init__(
        self,
        task: str,
        *,
        seed: int = 0,
        world_seed: str | int | None = None,
        port: int = 8000,
        render_distance: int = 6,
        max_steps: int | None = None,
        frames: bool = True,
        numbers: bool = False,
        on_success: str = "truncate",
        item_bonus: float = 1.0,
        sticky_jump: int = 10,
        pitch_limit: float = 70.0,
        fast_reset: int | None = None,
    ) -> None:
        found = find_minecraft_task(task)
        check_range("port", port, 1, 65535)
        check_range("render_distance", render_distance, 2)
        with needs("craftground", "Minecraft by CraftGround"):
            import craftground  # noqa: F401
        super().__init__(
            found,
            seed=seed,
            max_steps=max_steps,
            frames=frames,
            numbers=numbers,
            on_success=on_success,
            item_bonus=item_bonus,
            sticky_jump=sticky_jump,
            pitch_limit=pitch_limit,
            fast_reset=fast_reset,
        )
        self._options: dict[str, Any] = {
            "world_seed": world_seed,
            "port": port,
            "render_distance": render_distance,
        }

    def _start(self) -> CraftGroundSimulator:
        assert self.task is not None
        return CraftGroundSimulator(self.task, **self._options)
