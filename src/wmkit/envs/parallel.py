"""Environments in processes of their own, which may die, hang or raise.

    trainer  ──action──▶  shared memory  ──▶  worker i: env.step
             ◀─────────  observation, reward, ends  ◀──

A worker that does not answer in time, dies or reports an error is killed with all that it started, and
replaced where the :class:`~wmkit.envs.guarded.Guard` allows; its episode ends as :mod:`wmkit.envs.guarded`
says. How a process is held and ended is in :mod:`wmkit.envs.worker`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing import connection
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase

from wmkit.envs.episodes import episode_seed
from wmkit.envs.guarded import NEW_STREAM, RESETS, Guard
from wmkit.envs.worker import CLOSE, GOOD, RESET, SEED, STEP, WRONG, Layout, Worker
from wmkit.errors import EnvironmentCrashError

LOOK = 0.5  # seconds between two looks at whether to stop waiting
GRACE = 1.0  # seconds that an interrupt leaves a worker to answer
CLOSING = 5.0  # seconds for an environment to close
MAKING = 600.0  # seconds, if not the timeout, that making an environment may take


class ParallelWorlds(EnvBase):
    """One process per environment, stepped side by side; ``batch_size [N]``.

    Args:
        constructors: one picklable callable per process.
        guard: what is to be done about failures; None ends at the first.

    Raises:
        ConfigError: an environment has a batch of its own.
        EnvironmentCrashError: one failed, and there is no guard that allows for it.
    """

    def __init__(self, constructors: Sequence[Callable[[], EnvBase]], guard: Guard | None = None) -> None:
        probe = constructors[0]()  # option values fail here, in one sentence, and not in a worker
        name = guard.name if guard is not None else type(probe).__name__
        self._layout = Layout(probe, len(constructors), name)
        super().__init__(device=probe.device, batch_size=torch.Size([len(constructors)]))
        for spec in ("observation_spec", "full_action_spec", "full_reward_spec", "full_done_spec"):
            source = getattr(probe, spec.replace("observation_spec", "full_observation_spec"))
            setattr(self, spec, source.expand(len(constructors), *source.shape))
        if len(probe.full_state_spec.keys()):
            self.full_state_spec = probe.full_state_spec.expand(
                len(constructors), *probe.full_state_spec.shape
            )
        self._enters = callable(getattr(probe, "enter", None))
        probe.close()
        self.guard = guard or Guard(name)
        self._strict, self._over = guard is None, False
        self._workers = [Worker(create, i, self._layout) for i, create in enumerate(constructors)]
        self._ever: set[int] = set()  # that were reset once: their rows hold an observation
        self._seeds: list[int | None] = [None] * len(constructors)
        self._await(self._workers, "being made", self._making())
        if self.guard.over is not None:
            self.close()
            raise EnvironmentCrashError(self.guard.over)

    # ------------------------------------------------------------------ stepping

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._layout.put(tensordict)
        for worker in self._workers:
            worker.taken += 1
            worker.age += 1
            worker.ask(STEP)
        bad = self._await(self._workers, None, self.guard.timeout)
        self._raise_if_over()
        out = self._layout.get(step=True)
        for worker in self._workers:
            if worker.broken or worker in bad:
                self._layout.stand_in(out, worker.number)
            else:
                worker.fresh = False
        return out

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        flags = [True] * len(self._workers) if mask is None else mask.flatten(1).any(1).tolist()
        waiting = [worker for worker, flag in zip(self._workers, flags, strict=True) if flag]
        tries = dict.fromkeys(waiting, 0)
        while waiting:
            asked = [w for w in waiting if not w.broken or self._renew(w)]
            if self.guard.over is not None or (self.guard.stopping() and not asked):
                break
            for worker in asked:
                worker.age = 0
                worker.ask(RESET + self._next_episode(worker))
            bad = self._await(asked, "reset", self.guard.timeout)
            for worker, keys in bad.items():
                tries[worker] += 1
                if tries[worker] == RESETS:
                    self.guard.never_finite(worker.number, keys)
            good = [w for w in asked if not w.broken and w not in bad]
            self._ever.update(w.number for w in good)
            waiting = [w for w in waiting if w not in good]
        self._raise_if_over(any(w.number not in self._ever for w in waiting))
        for worker in waiting:  # the last observation once more; nothing is kept that comes after it
            self._abandon(worker)
        return self._layout.get(step=False)

    def _next_episode(self, worker: Worker) -> bytes:
        if not self.guard.numbered:
            return b""
        episode, worker.episode = worker.episode, worker.episode + 1
        return json.dumps([episode, episode_seed(self._seeds[worker.number], episode)]).encode()

    @property
    def worlds(self) -> list[_Seat]:
        """Its environments, see :mod:`wmkit.envs.episodes`."""
        return [_Seat(self, worker) for worker in self._workers]

    def _await(
        self, asked: Iterable[Worker], where: str | None, timeout: float | None
    ) -> dict[Worker, list[Any]]:
        """Hear the answers; those that showed NaN, with its keys. Who failed is broken."""
        if self._over:
            raise EnvironmentCrashError(
                f"environments {self.guard.name!r} cannot answer: found them closed, wanted them open; make "
                "them anew"
            )
        bad: dict[Worker, list[Any]] = {}
        pending = {worker.pipe: worker for worker in asked if not worker.broken}
        limit = None if timeout is None else time.monotonic() + timeout
        stop: float | None = None
        while pending:
            for pipe in connection.wait(list(pending), LOOK):
                worker = pending.pop(pipe)  # type: ignore[call-overload]
                try:
                    answer = pipe.recv_bytes()  # type: ignore[union-attr]
                except (EOFError, OSError):
                    self._fail(worker, where, f"its process ended ({worker.ended()})")
                    continue
                if answer.startswith(WRONG):
                    self._fail(worker, where, answer[1:].decode())
                elif answer != GOOD:
                    bad[worker] = worker.answer = json.loads(answer[1:])
                    if where in (None, "reset"):
                        self.guard.not_finite(worker.number, where or worker.where(), bad[worker])
            if not pending:
                break
            now = time.monotonic()
            if self.guard.stopping():
                stop = stop or now + GRACE
            if (limit is not None and now > limit) or (stop is not None and now > stop):
                for worker in pending.values():
                    found = (
                        "no answer" if stop is not None else f"no answer in {timeout:g} seconds (env.timeout)"
                    )
                    self._fail(worker, where, found)
                break
        return bad

    def _fail(self, worker: Worker, where: str | None, found: str) -> None:
        self._abandon(worker)
        if not self._strict:
            self.guard.failed(worker.number, where or worker.where(), found, fresh=worker.fresh)
        elif self.guard.over is None:
            self.guard.over = (
                f"environment {worker.number} ({self.guard.name!r}) failed in {where or worker.where()}: "
                f"found {found}, wanted an answer; make the environments anew"
            )

    @staticmethod
    def _abandon(worker: Worker) -> None:
        worker.broken = True
        worker.kill()

    def _renew(self, worker: Worker) -> bool:
        """A new process for one that is broken; whether that went well."""
        number = worker.number
        if self.guard.stopping():
            return False
        worker.start()
        self._await([worker], "being made anew", self._making())
        if not worker.broken and (seed := self._seeds[number]) is not None:
            if not (self.guard.numbered and self._enters):  # else the next episode is another one anyway
                seed += NEW_STREAM
            self._seeds[number] = seed
            worker.ask(SEED + json.dumps([seed, False]).encode())
            self._await([worker], "being made anew", self.guard.timeout)
        return not worker.broken

    def _making(self) -> float | None:
        return None if self.guard.timeout is None else max(self.guard.timeout, MAKING)

    def _raise_if_over(self, at_once: bool = False) -> None:
        if self.guard.over is not None and (self._strict or at_once):
            raise EnvironmentCrashError(self.guard.over)

    # ------------------------------------------------------------------ the rest

    def set_seed(self, seed: int | None = None, static_seed: bool = False) -> int | None:
        """As ``SerialEnv``: each environment's seed follows from the one before."""
        for worker in self._workers:
            self._seeds[worker.number] = seed
            if worker.broken:
                continue
            worker.ask(SEED + json.dumps([seed, static_seed]).encode())
            answer = self._await([worker], "being seeded", self.guard.timeout).get(worker)
            if answer is not None:
                seed = answer[0]
        self._raise_if_over(True)
        return seed

    def _set_seed(self, seed: int | None) -> None:
        self.set_seed(seed)

    def close(self, **kwargs: Any) -> None:
        """End the processes."""
        self._over = True
        limit = time.monotonic() + CLOSING
        for worker in self._workers:
            if not worker.broken:
                worker.ask(CLOSE)
        for worker in self._workers:
            worker.end(max(limit - time.monotonic(), 0.0))
        super().close(**kwargs)

    def __del__(self) -> None:
        for worker in self.__dict__.get("_workers", ()):
            with suppress(Exception):
                worker.kill()


class _Seat:
    """One environment of a batch of processes, as :class:`wmkit.envs.episodes.World`."""

    def __init__(self, batch: ParallelWorlds, worker: Worker) -> None:
        self._batch, self._worker = batch, worker
        self.number, self.enters = worker.number, batch._enters

    @property
    def episode(self) -> int:
        return self._worker.episode

    @episode.setter
    def episode(self, number: int) -> None:
        self._worker.episode = number

    @property
    def broken(self) -> bool:
        return self._worker.broken

    def begin(self, episode: int) -> TensorDictBase:
        self.episode = episode
        mask = torch.arange(len(self._batch._workers)) == self.number
        return self._batch._reset(TensorDict({"_reset": mask[:, None]}, mask.shape))[self.number]

    def take(self, action: torch.Tensor) -> TensorDictBase:
        batch, worker = self._batch, self._worker
        batch._layout.views["in"]["action"][self.number] = action
        worker.taken += 1
        worker.age += 1
        worker.ask(STEP)
        bad = batch._await([worker], None, batch.guard.timeout)
        worker.fresh &= worker.broken or bool(bad)
        return batch._layout.get(step=True)[self.number]
