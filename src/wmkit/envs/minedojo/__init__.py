"""Minecraft: LS-Imagine's five tasks over MineDojo, which runs in an interpreter of its own.

``tasks``         the five tasks
``actions``       12 actions as keys, MineDojo's dictionary and its eight numbers
``observations``  what a simulator shows
``episode``       rewards, success and ends
``env``           the TorchRL environment
``far``           what runs in MineDojo's interpreter: the server and MineDojo behind it
``client``        the trainer's end of that process
``here``          MineDojo in this process
``interpreter``   where MineDojo's interpreter is, and how it is made
``recording``     an episode in a file, with all that the game said

>>> TASKS["harvest_sand"].prompt
'Obtain sand'
"""

from __future__ import annotations

from wmkit.envs.minedojo.actions import VECTOR, Keyboard
from wmkit.envs.minedojo.env import MinecraftEnv, MineDojoEnv
from wmkit.envs.minedojo.observations import Report
from wmkit.envs.minedojo.tasks import TASKS, MinecraftTask

__all__ = ["TASKS", "VECTOR", "Keyboard", "MineDojoEnv", "MinecraftEnv", "MinecraftTask", "Report"]
