"""The five tasks of the embedded worlds, with LS-Imagine's names and prompts (arXiv:2410.03618, table 1).

A task is won by *acting on* its goal: the goal's surface lies within :data:`REACH`, the crosshair is on
the goal give or take :data:`AIM`, and the agent chooses the task's action (1 attack, 11 use). Worlds
hold some of everything; only the kind that the task asks for is a goal.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from wmkit.errors import ConfigError

ATTACK, USE = 1, 11
REACH = 100.0  # map units from the player's centre to the goal's surface; a block is 64
AIM = 10.0  # degrees beyond the goal's silhouette: one turn of the camera

PREFIX = "vizdoom/"


@dataclass(frozen=True)
class Actor:
    """Something that stands in a world.

    Attributes:
        name: DECORATE class, also the ``object_name`` of the engine's labels.
        kind: ``tree``, ``water``, ``sand``, ``sheep``, ``ore`` or ``plant`` (mere decoration).
        sprite: four letters.
        radius: half the side of the solid box, map units.
        height: map units.
        solid: blocks the way.
    """

    name: str
    kind: str
    sprite: str
    radius: int
    height: int
    solid: bool = True


ACTORS: dict[str, Actor] = {
    actor.name: actor
    for actor in (
        Actor("WmOak", "tree", "WOAK", 18, 200),
        Actor("WmBirch", "tree", "WBIR", 18, 200),
        Actor("WmSpring", "water", "WWAT", 48, 64),
        Actor("WmSand", "sand", "WSND", 44, 64),
        Actor("WmSheep", "sheep", "WSHP", 24, 64),
        Actor("WmOre", "ore", "WORE", 36, 84),
        Actor("WmRedFlower", "plant", "WRED", 8, 24, solid=False),
        Actor("WmYellowFlower", "plant", "WYEL", 8, 24, solid=False),
        Actor("WmBush", "plant", "WBUS", 16, 32, solid=False),
        Actor("WmRock", "plant", "WROK", 24, 28),
    )
}
KINDS = ("tree", "water", "sand", "sheep", "ore")


@dataclass(frozen=True)
class Task:
    """A task: what to say, what to find, what to do to it.

    Attributes:
        name: LS-Imagine's task key.
        prompt: LS-Imagine's instruction.
        kind: the kind of actor that is the goal.
        action: the action that wins, :data:`ATTACK` or :data:`USE`.
        goals: how many goals a world holds, by world name.
    """

    name: str
    prompt: str
    kind: str
    action: int
    goals: dict[str, int]

    @property
    def actors(self) -> tuple[str, ...]:
        """DECORATE classes of the goal."""
        return tuple(name for name, actor in ACTORS.items() if actor.kind == self.kind)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("harvest_log_in_plains", "Cut a tree", "tree", ATTACK, {"small": 4, "full": 4}),
        Task("harvest_water_with_bucket", "Obtain water", "water", USE, {"small": 3, "full": 4}),
        Task("harvest_sand", "Obtain sand", "sand", ATTACK, {"small": 3, "full": 4}),
        Task("shear_sheep", "Obtain wool", "sheep", USE, {"small": 5, "full": 5}),
        Task("mine_iron_ore", "Mine iron ore", "ore", ATTACK, {"small": 2, "full": 4}),
    )
}


def find_task(name: str) -> Task:
    """The task called ``name``, with or without the prefix ``vizdoom/``.

    Raises:
        ConfigError: no such task.

    >>> find_task("vizdoom/shear_sheep").prompt
    'Obtain wool'
    """
    key = name.removeprefix(PREFIX)
    if key not in TASKS:
        near = difflib.get_close_matches(key, TASKS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "run `wmkit list env`"
        raise ConfigError(f"task {name!r} is unknown: wanted one of {', '.join(TASKS)}; {hint}")
    return TASKS[key]


def task_prompt(env_name: str) -> str:
    """The prompt of an environment for the affordance scorer.

    The instruction of one of the five tasks, in whichever simulator; for any other environment its own name
    in words.

    >>> task_prompt("vizdoom/harvest_log_in_plains")
    'Cut a tree'
    >>> task_prompt("minedojo/harvest_sand")
    'Obtain sand'
    >>> task_prompt("gym/CartPole-v1")
    'CartPole v1'
    """
    if env_name.startswith(PREFIX):
        return find_task(env_name).prompt
    if (task := env_name.rpartition("/")[2]) in TASKS:
        return TASKS[task].prompt
    return env_name.split("/", 1)[-1].replace("-", " ").replace("_", " ")
