"""DeepMind Control Suite (Tassa et al. 2018, arXiv:1801.00690): from its numbers, or from pictures.

    step        one control step, no repeat (the DreamerV3 paper repeats twice: ``action_repeat=2``)
    reward      of the task, in [0, 1] per control step
    end         1000 control steps: truncated. Only ``lqr`` ever terminates.

    dmc_proprio   ``observation``: the task's numbers, joined in the order of their names, or, with
                  ``joined=False``, each vector under its own name; never draws
    dmc_vision    ``pixels``: 64 x 64 in colour from camera 0 (``quadruped``: 2), and nothing else

TorchRL's wrapper does the talking; here are the names, one dtype and a way to draw without a screen.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import numpy as np
import torch
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import DMControlWrapper

from wmkit.envs.adapters import channels_first, needs, unknown
from wmkit.envs.episodes import episode_seed
from wmkit.errors import ConfigError

CAMERAS = {"quadruped": 2}  # 0 elsewhere: the one that shows what the task is about
ALIASES = {"cup_catch": "ball_in_cup_catch"}
RENDERERS = ("egl", "osmesa", "off")
HINT = " with Python 3.12 or older (labmaze, which dm_control asks for, has no newer wheel)"


class NumberedEnv(DMControlWrapper):
    """A task whose episodes follow from its seed and their number (:mod:`wmkit.envs.episodes`)."""

    _stream: int | None = None

    def enter(self, episode: int) -> None:
        """The next reset begins this episode of the stream of its seed."""
        self._env.task.random.seed(episode_seed(self._stream, episode) % 2**32)

    def _set_seed(self, seed: int | None) -> None:
        self._stream = seed
        super()._set_seed(seed)


class ProprioEnv(NumberedEnv):
    """A task seen by its numbers: each of its observations under its own name, float32 ``[D]``."""

    def _make_specs(self, env: Any) -> None:
        super()._make_specs(env)
        sizes = {key: int(np.prod(spec.shape)) for key, spec in env.observation_spec().items()}
        self.observation_spec = Composite({key: Unbounded((size,)) for key, size in sorted(sizes.items())})
        _make_float32(self)

    def _output_transform(self, timestep: Any) -> tuple:
        values, *rest = super()._output_transform(timestep)
        return {key: np.ravel(values[key]).astype(np.float32) for key in sorted(values)}, *rest


class JoinedProprioEnv(ProprioEnv):
    """The same numbers as one vector: ``observation`` float32 ``[D]``, in the order of their names."""

    def _make_specs(self, env: Any) -> None:
        super()._make_specs(env)
        size = sum(spec.shape.numel() for spec in self.observation_spec.values())
        self.observation_spec = Composite(observation=Unbounded((size,)))

    def _output_transform(self, timestep: Any) -> tuple:
        values, *rest = super()._output_transform(timestep)
        return {"observation": np.concatenate(list(values.values()))}, *rest


class VisionEnv(NumberedEnv):
    """A task seen by a camera: ``pixels`` uint8 ``[3, side, side]``."""

    def _make_specs(self, env: Any) -> None:
        super()._make_specs(env)
        height, width, channels = env.observation_spec()["pixels"].shape
        self.observation_spec = Composite(
            pixels=Bounded(0, 255, (channels, height, width), dtype=torch.uint8)
        )
        _make_float32(self)

    def _output_transform(self, timestep: Any) -> tuple:
        values, *rest = super()._output_transform(timestep)
        return {"pixels": channels_first(values["pixels"])}, *rest


class _Repeat:
    """Holds an action for some control steps, under the drawing, so that only the last one is drawn."""

    def __init__(self, env: Any, steps: int) -> None:
        self._env, self._steps = env, steps

    def step(self, action: np.ndarray) -> Any:
        reward = 0.0
        for _ in range(self._steps):
            timestep = self._env.step(action)
            reward += timestep.reward or 0.0
            if timestep.last():
                break
        return timestep._replace(reward=reward)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


def dmc_proprio(task: str, *, seed: int = 0, action_repeat: int = 1, joined: bool = True) -> ProprioEnv:
    """A task of the suite from its numbers.

    Args:
        task: domain and task, such as ``walker_walk``.
        seed: of the initial states.
        action_repeat: control steps per action; their rewards are summed.
        joined: one vector, ``observation``; False keeps the task's vectors apart under their own names, as
            the official DreamerV3 reads them.

    Raises:
        ConfigError: dm_control is missing, no such task, or an option out of range.

    >>> dmc_proprio("walker_walk").rollout(3)["observation"].shape  # doctest: +SKIP
    torch.Size([3, 24])
    >>> sorted(dmc_proprio("walker_walk", joined=False).observation_spec.keys())  # doctest: +SKIP
    ['height', 'orientations', 'velocity']
    """
    _check(task, action_repeat=action_repeat)
    kind = JoinedProprioEnv if joined else ProprioEnv
    return kind(_load(task, seed), frame_skip=action_repeat)


def dmc_vision(
    task: str,
    *,
    seed: int = 0,
    action_repeat: int = 1,
    image_size: int = 64,
    camera: int | None = None,
    shadows: bool = True,
) -> VisionEnv:
    """A task of the suite from pictures.

    Without ``MUJOCO_GL`` in the environment, EGL draws, or OSMesa where there is no EGL; neither needs
    a screen or a GPU.

    Args:
        task: domain and task, such as ``walker_walk``.
        seed: of the initial states.
        action_repeat: control steps per action; their rewards are summed, the last one is drawn.
        image_size: side of the image.
        camera: None for the benchmark's.
        shadows: draw shadows and smooth edges, as the benchmark does; False is several times faster
            without a GPU, and another picture.

    Raises:
        ConfigError: dm_control or a renderer is missing, no such task, or an option out of range.

    >>> dmc_vision("walker_walk").rollout(3)["pixels"].shape  # doctest: +SKIP
    torch.Size([3, 3, 64, 64])
    """
    _check(task, action_repeat=action_repeat, image_size=image_size)
    env = _load(task, seed)
    from dm_control.suite.wrappers import pixels

    if camera is None:
        camera = CAMERAS.get(task.split("_")[0], 0)
    if not shadows:
        quality = env.physics.model.vis.quality
        quality.shadowsize = quality.offsamples = 0
    view = {"height": image_size, "width": image_size, "camera_id": camera}
    try:
        drawn = pixels.Wrapper(_Repeat(env, action_repeat), render_kwargs=view)
    except Exception as error:
        if "camera" in str(error).lower():
            raise ConfigError(f"task {task!r} has no camera {camera}: {error}; leave camera out") from error
        raise ConfigError(
            f"task {task!r} cannot be drawn with MUJOCO_GL={os.environ.get('MUJOCO_GL')}: found {error}, "
            "wanted EGL or OSMesa; install libegl1 or libosmesa6, or set MUJOCO_GL to one that is there"
        ) from error
    return VisionEnv(drawn)


def _check(task: str, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"task {task!r} got {name}={number}: wanted at least 1; correct it")


def find_suite_task(task: str) -> tuple[str, str]:
    """Domain and task of one name.

    Raises:
        ConfigError: dm_control is missing, or no such task.

    >>> find_suite_task("ball_in_cup_catch")  # doctest: +SKIP
    ('ball_in_cup', 'catch')
    """
    with needs("dmc", "tasks of the DeepMind Control Suite", HINT):
        _choose_renderer()
        from dm_control import suite
    tasks = {f"{domain}_{name}": (domain, name) for domain, name in suite.ALL_TASKS}
    name = ALIASES.get(task, task)
    if name not in tasks:
        raise unknown("task", task, tasks, "see dm_control.suite.ALL_TASKS")
    return tasks[name]


def _load(task: str, seed: int) -> Any:
    """``suite.load`` by one name."""
    names = find_suite_task(task)
    from dm_control import suite

    return suite.load(*names, task_kwargs={"random": np.random.RandomState(seed)})


def _choose_renderer() -> None:
    """Set ``MUJOCO_GL`` to the first renderer that works, unless the user has; nothing is drawn yet.

    dm_control decides when it is imported, also for tasks that are never drawn, and left alone takes
    GLFW, which fails without a screen.
    """
    if "MUJOCO_GL" in os.environ or "dm_control._render" in sys.modules or sys.platform != "linux":
        return
    importlib.import_module("dm_control")
    for name in RENDERERS:
        os.environ["MUJOCO_GL"] = name
        try:
            importlib.import_module("dm_control._render")
            return
        except (ImportError, AttributeError, RuntimeError, OSError):  # half imported: forget all of it
            for module in list(sys.modules):
                if module.split(".")[0] == "OpenGL" or module.startswith("dm_control._render"):
                    del sys.modules[module]
            os.environ.pop("PYOPENGL_PLATFORM", None)


def _make_float32(env: DMControlWrapper) -> None:
    action = env.action_spec
    env.action_spec = Bounded(action.space.low.float(), action.space.high.float(), action.shape)
    env.reward_spec = Unbounded((1,))
