"""What goes wrong inside a running environment: told in one sentence, and survived where it can be.

    a step that raises, or is not what the specs say    the environment is made anew
    a worker that dies or does not answer               a new process, see :mod:`wmkit.envs.parallel`
    NaN or infinity in an observation or reward         the environment is reset

In all three the episode ends here: the transition that never came is stood in for by the last good
observation, ``truncated``, and a reward of NaN. That reward is the mark by which replay and statistics
leave the transition out; a policy never acts on it, since a reset follows. What happened is noted in the
:class:`Guard`, which whoever steps the environments asks.

A worker is killed after ``timeout``, and so is the simulator of an environment of this process that has
``wait_at_most(seconds)``. Any other step that hangs within this process can only be answered by Ctrl-C.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl._utils import seed_generator
from torchrl.envs import EnvBase, TransformedEnv

from wmkit.envs.expected import Expected
from wmkit.errors import EnvironmentCrashError

HOUR = 3600.0
RESETS = 3  # of a world whose first observation holds NaN
NEW_STREAM = 1_000_003  # added to the seed of an environment that is made anew


@dataclass(frozen=True)
class Fault:
    """One thing that went wrong: ``value`` is true of NaN and infinity, ``text`` a sentence."""

    value: bool
    text: str


class Guard:
    """The rules for a batch of environments, and what happened in it.

    Args:
        name: of the environments, for the sentences.
        timeout: seconds in which a worker must answer to a step or a reset; None waits for ever.
        restarts: environments of the batch that may be made anew within an hour.
        clock: seconds.

    Attributes:
        over: the sentence with which stepping ends; None as long as it goes on.
        stopping: asked while a worker is waited for; true gives it a second more and no restart.
        numbered: resets enter episode after episode by number, see :mod:`wmkit.envs.episodes`.
        busy: the number of the call that an environment in the main thread is in; None outside of
            one. An interrupt cannot end a call of another thread (``collect_ahead``).

    >>> guard = Guard("counting", restarts=1, clock=lambda: 0.0)
    >>> guard.failed(0, "step 3", "RuntimeError: no more"), guard.failed(1, "step 5", "RuntimeError: no more")
    (True, False)
    >>> guard.over
    "environment 1 ('counting') failed in step 5: found RuntimeError: no more, wanted an answer to every ..."
    """

    def __init__(
        self,
        name: str,
        *,
        timeout: float | None = None,
        restarts: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.timeout, self.restarts, self._clock = name, timeout, restarts, clock
        self.faults: list[Fault] = []
        self.over: str | None = None
        self.stopping: Callable[[], bool] = _never
        self.numbered = False
        self.busy: int | None = None
        self._calls, self._cut = 0, False
        self._times: deque[float] = deque(maxlen=max(restarts, 1))

    def failed(self, number: int, where: str, found: str, *, fresh: bool = False) -> bool:
        """Note that an environment failed.

        Args:
            number: which of the batch.
            where: ``reset``, or the step.
            found: what came instead of an answer.
            fresh: it gave no good step since it was made: the next one would fail in the same way.

        Returns:
            Whether it may be made anew; if not, :attr:`over` says why.
        """
        if self.stopping():
            return False
        found = " ".join(found.split()).rstrip(".")[:400]
        begin = f"environment {number} ({self.name!r}) failed in {where}: found {found}, wanted an answer to"
        now = self._clock()
        while self._times and now - self._times[0] >= HOUR:
            self._times.popleft()
        if fresh or len(self._times) >= self.restarts:
            left = "it has not made one good step since it was made" if fresh else "no restart is left"
            self.over = (
                f"{begin} every step and reset; {left} (env.restarts={self.restarts} an hour): correct the "
                "environment, then go on with the run"
            )
            return False
        self._times.append(now)
        text = f"{begin} every step; it is made anew ({len(self._times)} of {self.restarts} an hour)"
        self.faults.append(Fault(False, f"{text} and its episode closed as truncated"))
        return True

    def not_finite(self, number: int, where: str, keys: list[str]) -> None:
        """Note NaN or infinity under some keys."""
        text = (
            f"environment {number} ({self.name!r}) showed NaN or infinity in {where}: found it under "
            f"{', '.join(map(repr, keys))}, wanted finite numbers; the record is not kept and the episode "
            "closed as truncated"
        )
        self.faults.append(Fault(True, text))

    def never_finite(self, number: int, keys: list[str]) -> None:
        """End: a world begins with NaN or infinity, again and again."""
        self.over = (
            f"environment {number} ({self.name!r}) begins with NaN or infinity: found it under "
            f"{', '.join(map(repr, keys))} after {RESETS} resets, wanted finite numbers; correct it"
        )

    def drain(self) -> list[Fault]:
        """What happened since the last call."""
        faults, self.faults = self.faults, []
        return faults

    @property
    def cut(self) -> bool:
        """Whether an interrupt ended a call of this process: no environment is called any more."""
        return self._cut

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around every call of an environment of this process."""
        self._calls += 1
        if main := threading.current_thread() is threading.main_thread():
            self.busy = self._calls
        try:
            yield
        except SystemExit as error:  # of a simulator that gives up
            raise EnvironmentCrashError(f"SystemExit: {error}") from error
        except KeyboardInterrupt:
            if not self.stopping():
                raise
            self._cut = True
            raise _Cut from None
        finally:
            if main:
                self.busy = None


def _never() -> bool:
    return False


class _Cut(Exception):
    """A call was ended by an interrupt that the trainer knows of."""


def find_guard(env: Any) -> Guard | None:
    """The guard of a batch of environments, below its transforms; None without."""
    while env is not None:
        if isinstance(guard := vars(env).get("guard"), Guard):
            return guard
        env = env.base_env if isinstance(env, TransformedEnv) else None
    return None


class Guarded(EnvBase):
    """An environment of this process that is made anew when it fails.

    Args:
        create: makes it; takes nothing.
        number: which of the batch.
        guard: of the batch.

    Attributes:
        episode: that the next reset begins, where the guard numbers them.

    Raises:
        ConfigError: it has a batch of its own.

    >>> from wmkit.envs.counting import CountingEnv
    >>> Guarded(CountingEnv, 0, Guard("counting")).rollout(9)["next", "reward"].flatten().tolist()
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """

    def __init__(self, create: Callable[[], EnvBase], number: int, guard: Guard) -> None:
        env = _limited(create(), guard)
        expected = Expected(env, guard.name)
        super().__init__(device=env.device, batch_size=env.batch_size)
        self.observation_spec = env.full_observation_spec.clone()
        self.full_action_spec = env.full_action_spec.clone()
        self.full_reward_spec = env.full_reward_spec.clone()
        self.full_done_spec = env.full_done_spec.clone()
        if len(env.full_state_spec.keys()):
            self.full_state_spec = env.full_state_spec.clone()
        self._create, self.number, self._watch = create, number, guard
        self.episode = 0
        self._expected = expected
        self.__dict__["_env"] = env  # not a module of this one's
        self._last: TensorDictBase | None = None
        self._broken, self._fresh, self._shut = False, True, False
        self._seeded: int | None = None
        self._steps = self._age = 0  # since it was made, and in this episode

    def __getattr__(self, name: str) -> Any:
        """What only the environment inside has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_env" not in self.__dict__ or name.startswith("__"):
                raise
            return getattr(self.__dict__["_env"], name)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        guard = self._watch
        if self._broken or guard.cut:
            return self._expected.stand_in(self._known())
        self._steps += 1
        self._age += 1
        try:
            with guard.calling():
                out = self._env._step(tensordict)
            bad = self._expected.check(out, step=True)
        except Exception as error:
            self._broken = True
            if not isinstance(error, _Cut):
                guard.failed(self.number, self._where(), told(error), fresh=self._fresh)
            return self._expected.stand_in(self._known())
        if bad:
            guard.not_finite(self.number, self._where(), bad)
            return self._expected.stand_in(self._known())
        self._last, self._fresh = out, False
        return out

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        guard = self._watch
        self._age = 0
        for _ in range(RESETS):
            out = None
            while out is None:
                if guard.cut or guard.over is not None or (self._broken and not self._renew()):
                    return self._begun(tensordict)
                try:
                    with guard.calling():
                        if guard.numbered and self.enters:
                            self._env.enter(self.episode)
                            self.episode += 1
                        out = self._env._reset(tensordict, **kwargs)
                    bad = self._expected.check(out, step=False)
                except Exception as error:
                    self._broken, out = True, None
                    if not isinstance(error, _Cut):
                        guard.failed(self.number, "reset", told(error), fresh=self._fresh)
            if not bad:
                self._last = out
                return out
            guard.not_finite(self.number, "reset", bad)
        guard.never_finite(self.number, bad)
        return self._begun(tensordict)

    def _renew(self) -> bool:
        """Make it anew; whether that went well."""
        guard = self._watch
        with suppress(Exception):
            self._env.close()
        try:
            with guard.calling():
                self.__dict__["_env"] = _limited(self._create(), guard)
                if self._seeded is not None:
                    if not (guard.numbered and self.enters):  # else the next episode is another one anyway
                        self._seeded += NEW_STREAM
                    self._env.set_seed(self._seeded)
        except Exception as error:
            if not isinstance(error, _Cut):
                guard.failed(self.number, "being made anew", told(error), fresh=True)
            return False
        self._broken, self._fresh, self._steps = False, True, 0
        return True

    def _known(self) -> TensorDictBase:
        if self._last is None:
            found = self._watch.over or f"environment {self.number} has not begun: wanted a reset first"
            raise EnvironmentCrashError(found)
        return self._last

    def _begun(self, tensordict: TensorDictBase | None) -> TensorDictBase:
        """The last observation once more, for a reset that cannot be; nothing is kept that comes after it."""
        known = self._known()
        out = TensorDict({key: known.get(key).clone() for key, _, _ in self._expected.observations}, [])
        for key, shape, _ in self._expected.done:
            out.set(key, torch.zeros(shape, dtype=torch.bool))
        self._broken = True
        return out

    @property
    def enters(self) -> bool:
        """Whether the environment can begin any of its episodes."""
        return callable(getattr(self._env, "enter", None))

    @property
    def broken(self) -> bool:
        """Whether it has failed and was not made anew."""
        return self._broken

    def begin(self, episode: int) -> TensorDictBase:
        """Reset to the beginning of an episode; what it shows, ``[]``."""
        self.episode = episode
        return self._reset()

    def take(self, action: torch.Tensor) -> TensorDictBase:
        """One step; what it shows, with ``reward``."""
        return self._step(TensorDict({"action": action}, []))

    def _where(self) -> str:
        return f"step {self._steps} ({self._age} of its episode)"

    def set_seed(self, seed: int | None = None, static_seed: bool = False) -> int | None:
        """As the environment's; one that fails at it is made anew by the next reset."""
        self._seeded = seed
        try:
            with self._watch.calling():
                return self._env.set_seed(seed, static_seed)
        except Exception as error:
            self._broken = True
            if not isinstance(error, _Cut):
                self._watch.failed(self.number, "being seeded", told(error), fresh=self._fresh)
        return seed if seed is None or static_seed else seed_generator(seed)

    def _set_seed(self, seed: int | None) -> None:
        self.set_seed(seed)

    def close(self, **kwargs: Any) -> None:
        """As the environment's."""
        if not self._shut:  # an environment's own is_closed is true of most that were never closed
            self._shut = True
            with self._watch.calling():
                self._env.close()
        super().close(**kwargs)


def _limited(env: EnvBase, guard: Guard) -> EnvBase:
    """Some simulators are processes of their own, and can be waited for no longer than a time."""
    if hasattr(type(env), "wait_at_most"):
        env.wait_at_most(guard.timeout)
    return env


def told(error: BaseException) -> str:
    """Original type and text."""
    try:
        text = str(error)
    except Exception:  # a stranger's own
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
