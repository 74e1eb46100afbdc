"""Environments in processes of their own, which may die, hang or raise.

    trainer  ──action──▶  shared memory  ──▶  worker i: env.step
             ◀─────────  observation, reward, ends  ◀──

A step is one letter down a pipe and one answer back; tensors lie in one block of shared memory that has no
name and no file. A worker that does not answer in time, dies or reports an error is killed with all that it
started, and replaced where the :class:`~wmkit.envs.guarded.Guard` allows; its episode ends as
:mod:`wmkit.envs.guarded` says. No worker outlives the trainer: the kernel kills it with its parent (Linux),
or it finds its pipe closed; a shell at the end of a pipe then ends what the worker had started.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection
from typing import Any

import cloudpickle
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch import multiprocessing as processes
from torchrl.envs import EnvBase

from wmkit.envs.guarded import NEW_STREAM, RESETS, Expected, Guard, _told
from wmkit.errors import EnvironmentCrashError

LOOK = 0.5  # seconds between two looks at whether to stop waiting
GRACE = 1.0  # seconds that an interrupt leaves a worker to answer
CLOSING = 5.0  # seconds for an environment to close
MAKING = 600.0  # seconds, if not the timeout, that making an environment may take
STEP, RESET, SEED, CLOSE = b"s", b"r", b"n", b"q"
GOOD, WRONG = b"+", b"!"


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
            self.full_state_spec = probe.full_state_spec.expand(len(constructors), *probe.full_state_spec.shape)
        probe.close()
        self.guard = guard or Guard(name)
        self._strict = guard is None
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
            if self.guard.over is not None or self.guard.stopping() and not asked:
                break
            for worker in asked:
                worker.age = 0
                worker.ask(RESET)
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

    def _await(
        self, asked: Iterable[Worker], where: str | None, timeout: float | None
    ) -> dict[Worker, list[str]]:
        """Hear the answers; those that showed NaN, with its keys. Who failed is broken."""
        bad: dict[Worker, list[str]] = {}
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
            if limit is not None and now > limit or stop is not None and now > stop:
                for worker in pending.values():
                    found = "no answer" if stop is not None else f"no answer in {timeout:g} seconds (env.timeout)"
                    self._fail(worker, where, found)
                break
        return bad

    def _fail(self, worker: Worker, where: str | None, found: str) -> None:
        self._abandon(worker)
        if not self._strict:
            self.guard.failed(worker.number, where or worker.where(), found, fresh=worker.fresh)
        elif self.guard.over is None:
            self.guard.over = (
                f"environment {worker.number} ({self.guard.name!r}) failed in {where or worker.where()}: found "
                f"{found}, wanted an answer; make the environments anew"
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
            self._seeds[number] = seed + NEW_STREAM
            worker.ask(SEED + json.dumps([seed + NEW_STREAM, False]).encode())
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


class Layout:
    """Where the tensors of N environments lie in one block of shared memory.

    Args:
        env: one of them.
        count: N.
        name: of the environment.
    """

    def __init__(self, env: EnvBase, count: int, name: str) -> None:
        self.expected = Expected(env, name)
        taken = [
            (key, spec.shape, spec.dtype)
            for specs in (env.full_action_spec, env.full_state_spec)
            for key, spec in specs.items(True, True)
            if spec.dtype is not None
        ]
        places = {"in": taken, "out": [*self.expected.observations, *self.expected.rewards, *self.expected.done]}
        self._places: dict[str, list[tuple[Any, int, tuple[int, ...], torch.dtype]]] = {}
        size = 0
        for side, entries in places.items():
            self._places[side] = []
            for key, shape, dtype in entries:
                whole = (count, *shape)
                self._places[side].append((key, size, whole, dtype))
                size += -(-torch.Size(whole).numel() * dtype.itemsize // 64) * 64
        self.block = torch.zeros(max(size, 1), dtype=torch.uint8).share_memory_()
        self._views()

    def _views(self) -> None:
        self.views: dict[str, dict[Any, Tensor]] = {
            side: {
                key: self.block[at : at + torch.Size(whole).numel() * dtype.itemsize].view(dtype).view(whole)
                for key, at, whole, dtype in entries
            }
            for side, entries in self._places.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "views"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._views()

    def put(self, tensordict: TensorDictBase) -> None:
        """Write what N environments are given."""
        for key, view in self.views["in"].items():
            view.copy_(tensordict.get(key))

    def get(self, *, step: bool) -> TensorDict:
        """Copies ``[N, ...]`` of what they gave; of a reset, no rewards."""
        rewards = () if step else {key for key, _, _ in self.expected.rewards}
        whole = {key: view.clone() for key, view in self.views["out"].items() if key not in rewards}
        if not step:
            for key, _, _ in self.expected.done:
                whole[key].zero_()
        return _nested(whole, [len(next(iter(whole.values())))])

    def stand_in(self, out: TensorDict, number: int) -> None:
        """Put the transition that never came into row ``number``, over its last good observation."""
        row = out[number]
        row.update_(self.expected.stand_in(row))

    def given(self, number: int) -> TensorDict:
        """What environment ``number`` is given."""
        return _nested({key: view[number].clone() for key, view in self.views["in"].items()}, [])

    def answer(self, number: int, out: TensorDictBase, *, step: bool) -> list[str]:
        """Write what environment ``number`` gave, if it is good; else the keys that are not finite."""
        found = self.expected.check(out, step=step)
        if not found:
            for key, view in self.views["out"].items():
                value = out.get(key, None)
                if value is not None:
                    view[number].copy_(value)
                elif key not in {key for key, _, _ in self.expected.rewards}:
                    view[number].zero_()
        return found


def _nested(flat: dict[Any, Tensor], batch: list[int]) -> TensorDict:
    if all(isinstance(key, str) for key in flat):
        return TensorDict._new_unsafe(flat, batch_size=torch.Size(batch))
    out = TensorDict({}, batch)
    for key, value in flat.items():
        out.set(key, value)
    return out


class Worker:
    """One process and the end of its pipe.

    Args:
        create: makes its environment.
        number: which of the batch.
        layout: the shared memory.
    """

    def __init__(self, create: Callable[[], EnvBase], number: int, layout: Layout) -> None:
        self.create, self.number, self.layout = create, number, layout
        self.answer: list[Any] = []
        self.start()

    def start(self) -> None:
        """Begin a process; it answers when its environment is made."""
        self.broken, self.fresh = False, True
        self.taken = self.age = 0
        self.pipe, theirs = processes.Pipe()
        main = threading.current_thread() is threading.main_thread()
        self.process = processes.get_context("spawn").Process(
            target=work,
            args=(cloudpickle.dumps(self.create), self.number, self.layout, theirs, os.getpid() if main else None),
            name=f"wmkit-env-{self.number}",
            daemon=True,
        )
        with _without_interrupts():
            self.process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self.process.pid

    def where(self) -> str:
        """The step it is in, in words."""
        return f"step {self.taken} ({self.age} of its episode)"

    def ask(self, what: bytes) -> None:
        """Send a request; that nobody is there any more is found when the answer is awaited."""
        if not self.broken:
            with suppress(OSError):
                self.pipe.send_bytes(what)

    def ended(self) -> str:
        """How the process ended, in words."""
        self.process.join(1.0)
        code = self.process.exitcode
        if code is None:
            return "no exit code yet"
        return f"exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"

    def end(self, seconds: float) -> None:
        """Wait for a process that was asked to close, then kill it."""
        self.process.join(seconds)
        self.kill()

    def kill(self) -> None:
        """Now, with all that it has started."""
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


# ---------------------------------------------------------------------- the worker's side

# Waits for the end of a pipe that the worker alone holds, then ends the group of processes that it led.
_SWEEP = 'read -r word; kill -9 -- "-$1" 2>/dev/null'


def work(
    create: bytes, number: int, layout: Layout, pipe: Any, parent: int | None
) -> None:
    """What a worker does until it is told to close, or its trainer is gone."""
    sweeper = _bind_to(parent)  # noqa: F841  (its pipe closes when this process is gone)
    torch.set_num_threads(1)
    env: EnvBase | None = None
    try:
        env = _answered(pipe, cloudpickle.loads(create))
        while env is not None:
            what = pipe.recv_bytes()
            if what == CLOSE:
                break
            _answered(pipe, lambda what=what: _do(env, number, layout, what))
    except (EOFError, OSError):  # the trainer is gone
        pass
    finally:
        if env is not None:
            with suppress(Exception):
                env.close()


def _do(env: EnvBase, number: int, layout: Layout, what: bytes) -> list[Any] | None:
    if what == STEP:
        return layout.answer(number, env.step(layout.given(number)).get("next"), step=True) or None
    if what == RESET:
        return layout.answer(number, env.reset(), step=False) or None
    seed, static = json.loads(what[1:])
    return [env.set_seed(seed, static)]


def _answered(pipe: Any, call: Callable[[], Any]) -> Any:
    """Do it and answer: done, a list of what is to be said, or what was raised."""
    try:
        out = call()
    except Exception as error:
        pipe.send_bytes(WRONG + _told(error).encode())
        return None
    pipe.send_bytes(b"?" + json.dumps(out).encode() if isinstance(out, list) else GOOD)
    return out


def _bind_to(parent: int | None) -> subprocess.Popen | None:
    """Lead a group of its own, which Ctrl-C does not reach, and end with the trainer."""
    if os.name != "posix":
        return None
    os.setpgid(0, 0)
    if parent is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
    nothing = subprocess.DEVNULL
    return subprocess.Popen(
        ["/bin/sh", "-c", _SWEEP, "sh", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=nothing,
        stderr=nothing,
        start_new_session=True,
    )


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process started inside inherits a blocked SIGINT."""
    if os.name != "posix":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

