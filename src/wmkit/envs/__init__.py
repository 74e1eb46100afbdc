"""Environments: embedded ViZDoom worlds, the benchmarks (Atari, DMC, Crafter, ...), and a toy that counts.

>>> env = make_env("vizdoom/harvest_log_in_plains", world="small", max_steps=2)
>>> sorted(env.reset().keys())
['done', 'frame', 'goal_mask', 'pixels', 'success', 'terminated', 'truncated']
>>> env.close()
"""

from __future__ import annotations

from wmkit.envs.actions import unit_actions
from wmkit.envs.counting import CountingEnv
from wmkit.envs.make import make_env, read_options, read_rules
from wmkit.envs.vizdoom import (
    ACTIONS,
    TASKS,
    MaskWalker,
    Task,
    VizdoomEnv,
    VizdoomSimulator,
    measure,
    random_policy,
    task_prompt,
)

__all__ = [
    "ACTIONS",
    "TASKS",
    "CountingEnv",
    "MaskWalker",
    "Task",
    "VizdoomEnv",
    "VizdoomSimulator",
    "make_env",
    "measure",
    "random_policy",
    "read_options",
    "read_rules",
    "task_prompt",
    "unit_actions",
]
