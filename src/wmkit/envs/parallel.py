"""Environments in processes of their own that say which world killed one of them.

TorchRL's ``ParallelEnv`` only knows that "worker 3" is dead; here the simulator leaves its last words in
a file, and the parent raises them.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase
from torchrl.envs import EnvBase, EnvCreator, ParallelEnv

from wmkit.envs.vizdoom.env import VizdoomEnv
from wmkit.errors import EnvironmentCrashError


class ParallelWorlds(ParallelEnv):
    """``ParallelEnv`` that raises :class:`~wmkit.errors.EnvironmentCrashError` with the world's name.

    Args:
        constructors: one picklable callable per process.
    """

    def __init__(self, constructors: Sequence[Callable[[], EnvBase]]) -> None:
        self._reports = tempfile.mkdtemp(prefix="wmkit-reports-")
        weakref.finalize(self, shutil.rmtree, self._reports, ignore_errors=True)
        creators = [
            EnvCreator(partial(_reporting, create, str(Path(self._reports, str(i)))))
            for i, create in enumerate(constructors)
        ]
        super().__init__(len(creators), creators)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        with self._named():
            return super()._step(tensordict)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        with self._named():
            return super()._reset(tensordict, **kwargs)

    def step_and_maybe_reset(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """As TorchRL's."""
        with self._named():
            return super().step_and_maybe_reset(tensordict)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reports = sorted(Path(self._reports).glob("*"))
            words = [text for path in reports if (text := path.read_text())]  # another may be being written
            if not words:
                raise
            raise EnvironmentCrashError(words[0]) from error


def _reporting(create: Callable[[], EnvBase], report: str) -> EnvBase:
    env = create()
    if isinstance(env, VizdoomEnv):
        env.simulator.report_crashes(report)
    return env
