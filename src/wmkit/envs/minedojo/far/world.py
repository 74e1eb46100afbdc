"""MineDojo behind three calls: make it of a recipe, reset it, step it. Plain values in and out.

For Python 3.9 with old numpy; everything of MineDojo is imported when a :class:`World` is made. A recipe has

    target, biome, tool, mobs, mob_range, break_speed    one of LS-Imagine's tasks (keyboard and mouse), or
    id                                                   any task that ``minedojo.make`` knows (eight numbers)
    fast_reset                                           resets by commands where a full one is not asked for
    height, width, seed, world_seed, hud                 of the frame, of chance, of the world; how shown

MineDojo answers a broken connection with the last observation and ``done``; here that is an error. Of its
wheel's faults two are mended: a task's id can be made twice, and no other process's sockets are looked at.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import socket
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np

VITALS = ("life", "food", "oxygen", "armor", "saturation", "xp")
BLANKS = 20  # steps of waiting for a first picture


class SimulatorError(Exception):
    """The simulator did not do what it was asked."""


class World:
    """One MineDojo environment.

    Args:
        recipe: see above.
        port: of a Malmo that runs already; None starts Minecraft.
        malmo: the folder with ``launchClient.sh`` that is started; None is MineDojo's own.
        patience: seconds in which Malmo must answer a message, in a step and in a reset.
        launched: told the process group of a Minecraft that was started, and then responsible for its end.
        mask: bool ``[H, W]``, what ``hud="inpaint"`` paints over.
    """

    def __init__(
        self,
        recipe: dict[str, Any],
        *,
        port: int | None = None,
        malmo: str | None = None,
        patience: tuple[float, float] = (240.0, 240.0),
        launched: Callable[[int], None] | None = None,
        mask: Any = None,
    ) -> None:
        self._port, self._malmo, self._launched = port, malmo, launched
        self._vector = "id" in recipe
        self._mask = None if mask is None else np.asarray(mask, np.uint8)
        self._env = _make(recipe)
        logging.getLogger("minedojo.sim.handlers").setLevel(
            logging.CRITICAL
        )  # a line per missing key and step
        self._sim = _find(self._env, "_bridge_env")
        self._quick = _find(self._env, "_reset_cmds")
        self._task = _find(self._env, "_success_criteria")
        bridge = self._sim._bridge_env
        self._patience, bridge.SOCKTIME = patience[0], patience[1]
        bridge._get_new_instance = self._instance
        bridge.step = _or_raise(bridge.step)
        self.has_begun = False

    def reset(self, *, full: bool = True, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """A new world, or where a fast reset was asked for and is possible, the same by commands."""
        if seed is not None:
            self._seed(seed)
        if self._quick is not None and (full or self._sim.is_terminated or not self.has_begun):
            self._quick._server_start = False
        try:
            obs = self._env.reset()
        except socket.timeout as error:  # noqa: UP041  (in Python 3.9 it is not TimeoutError)
            raise SimulatorError("Malmo did not answer in time") from error
        for _ in range(BLANKS):
            if np.any(obs["rgb"]):
                break
            obs, _, _, _ = self._sim.step(self._sim.action_space.no_op())  # no picture was ready
        for instance in self._sim._bridge_env._instances:
            instance.client_socket.settimeout(self._patience)
        self.has_begun = True
        return self._report(obs, 0.0, self._sim.prev_info)

    def step(self, action: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """One step.

        Args:
            action: pressed keys by name, ``camera`` among them; of a task by id, eight numbers.
        """
        if self._vector:
            obs, reward, _, info = self._env.step(np.asarray(action, np.int64))
        else:
            full = self._sim.action_space.no_op()
            for key, value in action.items():
                if key not in full:
                    raise SimulatorError(
                        f"key {key!r} is not on this keyboard: it has {', '.join(sorted(full))}"
                    )
                full[key] = np.asarray(value, np.float64) if key == "camera" else int(value)
            obs, reward, _, info = self._env.step(full)
        return self._report(obs, reward, info)

    def close(self) -> None:
        """End the connection, and the Minecraft that was started."""
        self._sim._bridge_env.close()

    def _report(self, obs: Any, reward: float, info: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        life, place = obs["life_stats"], obs["location_stats"]
        return self._picture(obs["rgb"]), {
            "inventory": count_items(info["inventory"]),
            "vitals": [_number(life[name]) for name in VITALS],
            "place": [float(x) for x in place["pos"]] + [_number(place["yaw"]), _number(place["pitch"])],
            "over": bool(self._sim.is_terminated),
            "reward": float(reward),
            "success": bool(self._task is not None and self._task.is_successful),
            "raw": info,
        }

    def _picture(self, rgb: np.ndarray) -> np.ndarray:
        if self._mask is None:
            return rgb
        import cv2

        image = np.ascontiguousarray(rgb.transpose(1, 2, 0))
        return cv2.inpaint(image, self._mask, 3, cv2.INPAINT_TELEA).transpose(2, 0, 1)

    def _seed(self, seed: int) -> None:
        self._sim.seed(seed)
        for layer in _layers(self._env):
            space = vars(layer).get("_mob_spawn_range_space")
            if space is not None:
                space.seed(seed)

    def _instance(self, *_: Any, **__: Any) -> Any:
        """In place of MineDojo's manager, which looks through the sockets of the whole machine."""
        from minedojo.sim.bridge.mc_instance import MinecraftInstance
        from minedojo.sim.bridge.mc_instance import instance as module
        from minedojo.sim.bridge.utils import watchdog

        if self._malmo is not None:
            module.MC_DIR = self._malmo
            schemas = os.path.join(os.path.dirname(self._malmo), "Schemas")
            module.SCHEMAS_DIR = schemas if os.path.isdir(schemas) else module.SCHEMAS_DIR
        if self._launched is not None:  # one keeper is enough, and MineDojo's takes seconds
            watchdog.launch = lambda *_: None
        found = MinecraftInstance(self._port or _free_port(), existing=self._port is not None)
        launch = found._launch_minecraft

        def started(*args: Any, **kwargs: Any) -> Any:
            process = launch(*args, **kwargs)
            if self._launched is not None:
                self._launched(process.pid)  # it leads a session of its own
            return process

        found._launch_minecraft = started
        found.launch(replaceable=True)
        found.had_to_clean = False
        return found


def count_items(slots: list[dict[str, Any]]) -> dict[str, int]:
    """Items of all slots by name, empty slots left out.

    >>> count_items([{"name": "log", "quantity": 2}, {"name": "air", "quantity": 0}])
    {'log': 2}
    """
    held: dict[str, int] = {}
    for slot in slots:
        if slot["name"] != "air" and slot["quantity"] > 0:
            held[slot["name"]] = held.get(slot["name"], 0) + int(slot["quantity"])
    return held


def _make(recipe: dict[str, Any]) -> Any:
    size = (int(recipe["height"]), int(recipe["width"]))
    common = {"image_size": size, "seed": recipe.get("seed"), "world_seed": recipe.get("world_seed")}
    common = {key: value for key, value in common.items() if value is not None}
    if "id" in recipe:
        from minedojo import tasks

        name = str(recipe["id"])
        kept = copy.deepcopy(tasks.ALL_TASKS_SPECS.get(name))  # the wheel takes entries out of its table
        try:
            return tasks.make(name, fast_reset=bool(recipe["fast_reset"]), **common)
        except (AssertionError, ValueError) as error:
            raise SimulatorError(f"MineDojo cannot make task {name!r}: {error}") from error
        finally:
            if kept is not None:
                tasks.ALL_TASKS_SPECS[name] = kept
    from minedojo.sim import InventoryItem
    from minedojo.tasks.meta.harvest import HarvestMeta

    options: dict[str, Any] = {}
    if recipe.get("tool"):
        options["initial_inventory"] = [
            InventoryItem(slot="mainhand", name=recipe["tool"], variant=0, quantity=1)
        ]
    if recipe.get("mobs"):
        low, high = recipe["mob_range"]
        options["initial_mobs"] = list(recipe["mobs"])
        options["initial_mob_spawn_range_low"], options["initial_mob_spawn_range_high"] = (
            tuple(low),
            tuple(high),
        )
    if recipe.get("biome"):
        options["specified_biome"] = recipe["biome"]
    return HarvestMeta(
        target_names=recipe["target"],
        target_quantities=1,
        reward_weights=1.0,
        event_level_control=False,
        fast_reset=bool(recipe["fast_reset"]),
        break_speed_multiplier=float(recipe["break_speed"]),
        **options,
        **common,
    )


def skip_descriptions() -> None:
    """Have what :class:`World` needs for LS-Imagine's tasks imported without MineDojo's 3,131 descriptions.

    They take most of the time that a start takes. Tasks by id cannot be made in this process afterwards.
    """
    spec = importlib.util.find_spec("minedojo")
    if spec is None:
        raise SimulatorError("no module 'minedojo'")
    for name in ("minedojo", "minedojo.tasks"):
        module = types.ModuleType(name)
        module.__path__ = [
            os.path.join(root, *name.split(".")[1:]) for root in spec.submodule_search_locations or ()
        ]
        sys.modules[name] = module


def _or_raise(step: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*args: Any, **kwargs: Any) -> Any:
        out = step(*args, **kwargs)
        if not out.step_success:
            raise SimulatorError("Malmo closed the connection or did not answer")
        return out

    return checked


def _layers(env: Any) -> Any:
    while env is not None:
        yield env
        env = vars(env).get("env")


def _find(env: Any, attribute: str) -> Any:
    """The layer of an environment that has an attribute of its own."""
    return next((layer for layer in _layers(env) if attribute in vars(layer)), None)


def _number(value: Any) -> float:
    return float(np.asarray(value, np.float64).reshape(-1)[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
