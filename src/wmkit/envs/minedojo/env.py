"""LS-Imagine's five tasks in Minecraft as a TorchRL environment, over any simulator."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, MultiCategorical, OneHot, Unbounded
from torchrl.envs import EnvBase

from wmkit.arguments import check_range
from wmkit.envs.adapters import ends_spec
from wmkit.envs.minedojo.actions import VECTOR, Keyboard, check_choice, check_vector, to_vector
from wmkit.envs.minedojo.client import MineDojoServer, Simulator
from wmkit.envs.minedojo.episode import Episode
from wmkit.envs.minedojo.interpreter import find_malmo, find_python
from wmkit.envs.minedojo.observations import PLACE, VITALS, Report, to_tensors
from wmkit.envs.minedojo.tasks import HEIGHT, TASKS, WIDTH, MinecraftTask
from wmkit.envs.vizdoom.simulator import ACTIONS
from wmkit.errors import ConfigError

HUD = ("keep", "inpaint")


class MinecraftEnv(EnvBase):
    """A task over a simulator that subclasses make; nothing is started before the first reset.

    Keys: ``pixels`` uint8 ``[3, 64, 64]``, ``frame`` uint8 ``[3, 160, 256]``, ``success`` bool ``[1]``,
    ``reward`` float32 ``[1]``, ``done``, ``terminated``, ``truncated`` bool ``[1]``; ``action`` one-hot int64
    ``[12]`` (:data:`wmkit.envs.ACTIONS`), as in the embedded worlds; with ``numbers`` also ``vitals`` float32
    ``[6]`` and ``place`` float32 ``[5]``.

    Args:
        task: one of LS-Imagine's; None where the simulator says what pays and what is success.
        seed: of what chance the simulator lets be chosen; worlds of Minecraft differ all the same.
        max_steps: time limit, the task's own by default.
        frames: emit ``frame``.
        numbers: emit ``vitals`` and ``place``.
        on_success: ``truncate`` (LS-Imagine's released code), ``terminate`` or ``continue``.
        item_bonus: what an item pays beyond 1 (1 in the released code).
        sticky_jump: steps for which a jump holds jump and forward.
        pitch_limit: degrees beyond which the camera does not bend.
        fast_reset: resets by commands between two new worlds; None is the task's number, 0 none.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(
        self,
        task: MinecraftTask | None,
        *,
        seed: int = 0,
        max_steps: int | None = None,
        frames: bool = True,
        numbers: bool = False,
        on_success: str = "truncate",
        item_bonus: float = 1.0,
        sticky_jump: int = 10,
        pitch_limit: float = 70.0,
        fast_reset: int | None = None,
    ) -> None:
        super().__init__(device="cpu", batch_size=torch.Size([]))
        self.task, self.frames, self.numbers = task, frames, numbers
        steps = (1000 if task is None else task.max_steps) if max_steps is None else max_steps
        self._episode = Episode(
            None if task is None else task.target,
            max_steps=steps,
            on_success=on_success,
            item_bonus=item_bonus,
        )
        self._keyboard = Keyboard(sticky_jump, pitch_limit)
        self.fast_reset = (0 if task is None else task.fast_reset) if fast_reset is None else fast_reset
        check_range("fast_reset", self.fast_reset, 0)
        self.simulator: Simulator | None = None
        self.report: Report | None = None
        self.given: Any = None  # what the simulator was told last
        self._seed, self._resets = int(seed), 0
        self._seeded = False
        spec = Composite(
            pixels=Bounded(0, 255, (3, 64, 64), dtype=torch.uint8), success=Binary(1, dtype=torch.bool)
        )
        if frames:
            spec["frame"] = Bounded(0, 255, (3, HEIGHT, WIDTH), dtype=torch.uint8)
        if numbers:
            spec["vitals"], spec["place"] = Unbounded((len(VITALS),)), Unbounded((len(PLACE),))
        self.observation_spec = spec
        self.action_spec = OneHot(len(ACTIONS), dtype=torch.int64)
        self.reward_spec = Unbounded((1,))
        self.done_spec = ends_spec()

    @abstractmethod
    def _start(self) -> Simulator:
        """A simulator of the task."""

    def _act(self, action: Tensor) -> Any:
        """What the simulator is given."""
        return self._keyboard.press(int(action.argmax()))

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        try:
            if self.simulator is None:
                self.simulator = self._start()
                self._resets, self._seeded = 0, False
            full = self._resets % (self.fast_reset + 1) == 0
            seed = None if self._seeded else self._seed
            self.report = self.simulator.reset(full=full, seed=seed)
        except BaseException:
            self._drop()
            raise
        self._resets, self._seeded = self._resets + 1, True
        self._keyboard.release()
        self._episode.begin(self.report)
        return self._out(self.report, False, {key: False for key in ("done", "terminated", "truncated")})

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self.simulator is None:
            raise ConfigError("the environment has no simulator yet: wanted a reset before the first step")
        try:
            self.given = self._act(tensordict.get("action"))
            self.report = self.simulator.step(self.given)
        except BaseException:
            self._drop()
            raise
        reward, won, terminated, truncated = self._episode.step(self.report)
        flags = {"done": terminated or truncated, "terminated": terminated, "truncated": truncated}
        out = self._out(self.report, won, flags)
        out.set("reward", torch.tensor([reward]))
        return out

    def _out(self, report: Report, won: bool, flags: dict[str, bool]) -> TensorDict:
        values = to_tensors(report, frames=self.frames, numbers=self.numbers)
        values |= {key: torch.tensor([value]) for key, value in {**flags, "success": won}.items()}
        return TensorDict._new_unsafe(values, batch_size=torch.Size([]))

    def _set_seed(self, seed: int | None) -> None:
        self._seed, self._seeded = 0 if seed is None else int(seed), False

    def _drop(self) -> None:
        """The simulator is of no use any more; a reset starts another."""
        simulator, self.simulator = self.simulator, None
        if simulator is not None:
            simulator.close()

    def close(self, **kwargs: Any) -> None:
        """End the simulator."""
        self._drop()
        super().close(**kwargs)


class MineDojoEnv(MinecraftEnv):
    """MineDojo 0.1, in its own interpreter (``wmkit minedojo setup``) or in this process.

    Args:
        task: one of LS-Imagine's five, or any id that ``minedojo.make`` knows (MineDojo's own reward and
            success; its eight numbers, in which camera steps of 10 degrees become 15).
        seed: of where mobs appear; ``world_seed`` fixes the world.
        actions: ``twelve``, one-hot; or, of a task by id, ``vector``: int64 ``[8]``, choices of
            :data:`wmkit.envs.minedojo.VECTOR`.
        world_seed: of the world; None is another one at every full reset.
        hud: ``keep``, or ``inpaint`` hot bar and hand as the released code does (26 % of the
            frame, by OpenCV).
        port: of a Malmo that already runs on this machine; None starts Minecraft.
        server: False plays in this process, where MineDojo can be imported.
        step_timeout: seconds in which a step must be answered.
        reset_timeout: seconds in which a reset must be; the first one starts Minecraft.
        raw: have :attr:`report` bring what the game said.
        **options: of :class:`MinecraftEnv`.

    Raises:
        ConfigError: no interpreter with MineDojo, an unknown option or a number out of range.
    """

    def __init__(
        self,
        task: str,
        *,
        seed: int = 0,
        actions: str = "twelve",
        world_seed: str | int | None = None,
        hud: str = "keep",
        port: int | None = None,
        server: bool = True,
        step_timeout: float = 60.0,
        reset_timeout: float = 900.0,
        raw: bool = False,
        max_steps: int | None = None,
        frames: bool = True,
        numbers: bool = False,
        on_success: str = "truncate",
        item_bonus: float = 1.0,
        sticky_jump: int = 10,
        pitch_limit: float = 70.0,
        fast_reset: int | None = None,
    ) -> None:
        known = TASKS.get(task)
        check_choice("actions", actions, ("twelve", "vector"))
        check_choice("hud", hud, HUD)
        check_range("port", 1 if port is None else port, 1, 65535)
        for name, seconds in (("step_timeout", step_timeout), ("reset_timeout", reset_timeout)):
            check_range(name, seconds, 1)
        if known is not None and actions == "vector":
            raise ConfigError(
                f"actions is 'vector' of {task}: wanted 'twelve', which is how LS-Imagine plays it; choose a "
                "task by MineDojo's id for eight numbers"
            )
        super().__init__(
            known,
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
        self.name, self._vector = task, known is None
        self._python = find_python() if server else None
        self._malmo = find_malmo()
        self._options: dict[str, Any] = {
            "port": port,
            "step_timeout": step_timeout,
            "reset_timeout": reset_timeout,
            "raw": raw,
        }
        self._recipe = {
            **({"id": task} if known is None else known.recipe()),
            "fast_reset": self.fast_reset > 0,
            "height": HEIGHT,
            "width": WIDTH,
            "world_seed": world_seed,
            "hud": hud,
        }
        if actions == "vector":
            self.action_spec = MultiCategorical(nvec=torch.tensor(VECTOR), dtype=torch.int64)
        self._twelve = actions == "twelve"

    def _start(self) -> Simulator:
        recipe = {**self._recipe, "seed": self._seed}
        if self._python is None:
            from wmkit.envs.minedojo.here import MineDojoHere

            return MineDojoHere(recipe, malmo=self._malmo, **self._options)
        return MineDojoServer(self._python, recipe, malmo=self._malmo, **self._options)

    def _act(self, action: Tensor) -> Any:
        if not self._twelve:
            return check_vector(action.tolist())
        keys = super()._act(action)
        return to_vector(keys) if self._vector else keys
