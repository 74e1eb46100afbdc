"""One environment in a process of its own: the process, the memory it shares, and how it ends.

Tensors lie in one block of shared memory without name or file; requests and answers are letters in a
pipe. The process leads a group of its own, so that Ctrl-C does not reach it, and is ended with the trainer:
by the kernel (Linux), or when it finds its pipe closed. A shell at the end of a pipe that it alone holds then
ends what it had started.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch import multiprocessing as processes
from torchrl.envs import EnvBase

from wmkit.envs.expected import Expected
from wmkit.envs.guarded import told

STEP, RESET, SEED, CLOSE = b"s", b"r", b"n", b"q"
GOOD, WRONG = b"+", b"!"


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
        places = {
            "in": taken,
            "out": [*self.expected.observations, *self.expected.rewards, *self.expected.done],
        }
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
        self.episode = 0  # that the next reset begins, where they are numbered
        self.start()

    def start(self) -> None:
        """Begin a process; it answers when its environment is made."""
        self.broken, self.fresh = False, True
        self.taken = self.age = 0
        self.pipe, theirs = processes.Pipe()
        main = threading.current_thread() is threading.main_thread()
        self.process = processes.get_context("spawn").Process(
            target=work,
            args=(
                cloudpickle.dumps(self.create),
                self.number,
                self.layout,
                theirs,
                os.getpid() if main else None,
            ),
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


# Waits for the end of a pipe that the worker alone holds, then ends the group of processes that it led.
_SWEEP = 'read -r word; kill -9 "-$1" 2>/dev/null'


def work(create: bytes, number: int, layout: Layout, pipe: Any, parent: int | None) -> None:
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
            _answered(pipe, partial(_do, env, number, layout, what))
    except (EOFError, OSError):  # the trainer is gone
        pass
    finally:
        if env is not None:
            with suppress(Exception):
                env.close()


def _do(env: EnvBase, number: int, layout: Layout, what: bytes) -> list[Any] | None:
    if what == STEP:
        return layout.answer(number, env.step(layout.given(number)).get("next"), step=True) or None
    if what[:1] == RESET:
        if what[1:]:
            _enter(env, *json.loads(what[1:]))
        return layout.answer(number, env.reset(), step=False) or None
    seed, static = json.loads(what[1:])
    return [env.set_seed(seed, static)]


def _enter(env: EnvBase, episode: int, seed: int) -> None:
    """Let the next reset begin an episode, and the chance of this process with it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if callable(enter := getattr(env, "enter", None)):
        enter(episode)


def _answered(pipe: Any, call: Callable[[], Any]) -> Any:
    """Do it and answer: done, a list of what is to be said, or what was raised."""
    try:
        out = call()
    except Exception as error:
        pipe.send_bytes(WRONG + told(error).encode())
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
