"""LS-Imagine's five tasks in Minecraft (arXiv:2410.03618, table 1, and its released code)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from wmkit.envs.vizdoom.tasks import TASKS as EMBEDDED
from wmkit.errors import ConfigError

BREAK_SPEED = 100.0  # blocks break so many times faster, in all five
MOB_RANGE = ((-15, 1, -15), (15, 1, 15))  # blocks from the agent: x, y (up), z
TELEPORT = 200  # blocks, the reach of a fast reset
HEIGHT, WIDTH = 160, 256  # of the simulator's frame


@dataclass(frozen=True)
class MinecraftTask:
    """What the agent begins with, where, and what it has to hold in the end.

    Attributes:
        name: LS-Imagine's task key.
        target: the item that wins, by Minecraft's name; one is enough.
        biome: of the world; None for any.
        tool: in the main hand at the start; None for nothing.
        mobs: summoned near the agent at every reset.
        max_steps: time limit.
        fast_reset: resets by commands between two new worlds.
    """

    name: str
    target: str
    biome: str | None = None
    tool: str | None = None
    mobs: tuple[str, ...] = ()
    max_steps: int = 1000
    fast_reset: int = 5

    @property
    def prompt(self) -> str:
        """LS-Imagine's instruction, as in the embedded worlds."""
        return EMBEDDED[self.name].prompt

    def recipe(self) -> dict[str, Any]:
        """What a simulator is to make, in plain values.

        >>> sorted(TASKS["shear_sheep"].recipe())
        ['biome', 'break_speed', 'mob_range', 'mobs', 'target', 'tool']
        """
        return {
            "target": self.target,
            "biome": self.biome,
            "tool": self.tool,
            "mobs": list(self.mobs),
            "mob_range": [list(corner) for corner in MOB_RANGE],
            "break_speed": BREAK_SPEED,
        }


TASKS: dict[str, MinecraftTask] = {
    task.name: task
    for task in (
        MinecraftTask("harvest_log_in_plains", "log", biome="plains"),
        MinecraftTask("harvest_water_with_bucket", "water_bucket", biome="plains", tool="bucket"),
        MinecraftTask("harvest_sand", "sand"),
        MinecraftTask("mine_iron_ore", "iron_ore", tool="stone_pickaxe", max_steps=2000, fast_reset=10),
        MinecraftTask("shear_sheep", "wool", biome="plains", tool="shears", mobs=("sheep",)),
    )
}


def find_minecraft_task(name: str) -> MinecraftTask:
    """One of the five.

    Raises:
        ConfigError: no such task.

    >>> find_minecraft_task("shear_sheep").prompt
    'Obtain wool'
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "run `wmkit list env`"
        raise ConfigError(f"Minecraft task {name!r} is unknown: wanted one of {', '.join(TASKS)}; {hint}")
    return TASKS[name]
