"""The embedded worlds: five tasks in generated ViZDoom maps, and the walker that keeps them honest.

``tasks``      the five tasks, and what stands in a world
``art``        textures and sprites, whose colours give every kind's exact mask
``meadow``     one seeded map, and the WAD that holds many
``wad``        archives and pictures as ZDoom reads them
``engine``     one ViZDoom process in a folder of its own
``simulator``  the worlds without TorchRL
``env``        the worlds as a TorchRL environment
``walker``     a policy that walks to the goal's mask
"""

from __future__ import annotations

from wmkit.envs.vizdoom.env import VizdoomEnv
from wmkit.envs.vizdoom.simulator import ACTIONS, VizdoomSimulator
from wmkit.envs.vizdoom.tasks import TASKS, Task, task_prompt
from wmkit.envs.vizdoom.walker import MaskWalker, measure, random_policy

__all__ = [
    "ACTIONS",
    "TASKS",
    "MaskWalker",
    "Task",
    "VizdoomEnv",
    "VizdoomSimulator",
    "measure",
    "random_policy",
    "task_prompt",
]
