"""Which zoomed views were reached, when, and what was earned on the way.

LS-Imagine, arXiv:2410.03618, section 3.4, and its released code. A record t whose zoomed
view promises the score s' waits until the first later record k whose real score beats s'. Then

    Delta_t = k - t
    G_t     = sum_{i=0}^{Delta-2} gamma^i (r_{t+1+i} + intrinsic_{t+1+i}) / sum_{i=0}^{Delta-2} gamma^i

a *normalised* discounted mean over the Delta - 1 records in between, without the arrival; 0 if there
are none. Rewards are arrival-aligned: r_k was received on arriving at record k.

    record      t         t+1       ...      k-1        k
    score       s_t       <= s'              <= s'      > s'
    reward                [---------- G ----------]     learnt as the reward after the jump

Where the released code and the definition disagree, the definition is the default:

==============================  =============================  ==================================
case                            default                        released (``compat``)
==============================  =============================  ==================================
s_t itself beats s'             waits: Delta >= 1              Delta = 0 (``allow_zero``)
s' not beaten in max_steps      censored: never resolved       Delta = max_steps counts as reached
                                                               (``label_timeouts``)
episode ends                    dropped, unresolved            the same, unless ``prolong``
==============================  =============================  ==================================

A view that promises more than the task ever shows (the goal filling the frame) is never beaten
before the episode is won. The released code prolongs won episodes until it is; without
prolongation ``success_reaches`` lets the winning record reach every pair that still waits.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from wmkit.errors import CheckpointError, ConfigError, SpecError

COLUMNS = ("score", ("zoomed", "score"), "is_zoomed", "reward", "intrinsic_reward", "is_init", "done")


@dataclass(frozen=True)
class Resolved:
    """Pairs whose target was reached, in order of resolution; unpacks as its three columns.

    Attributes:
        index: int64 ``[n]``, the records where the jumps leave (their ``jump_resolved`` becomes true).
        steps: float32 ``[n]``, Delta.
        jump_return: float32 ``[n]``, the normalised G.
    """

    index: Tensor
    steps: Tensor
    jump_return: Tensor

    @classmethod
    def of(cls, rows: list[tuple[int, int, float]]) -> Resolved:
        """From rows ``(index, steps, jump_return)``."""
        index, steps, value = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(
            torch.tensor(index, dtype=torch.int64),
            torch.tensor(steps, dtype=torch.float32),
            torch.tensor(value, dtype=torch.float32),
        )

    def __len__(self) -> int:
        """Number of pairs."""
        return self.index.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """The three columns."""
        return iter((self.index, self.steps, self.jump_return))


@dataclass
class _Stream:
    """The running episode of one environment."""

    waiting: dict[int, float] = field(default_factory=dict)  # index -> s'
    heap: list[tuple[float, int]] = field(default_factory=list)  # lowest promise first; some resolved
    queue: deque[int] = field(default_factory=deque)  # oldest first; some resolved
    fresh: list[int] = field(default_factory=list)  # pushed, not yet compared with any score
    values: list[float] = field(default_factory=list)  # reward + intrinsic of records first, first + 1, ...
    first: int = 0


class PendingPairs:
    """Zoomed views that were promised and not yet reached, for E environment streams.

    Per record k of a stream: :meth:`push` if the record is zoomed and not the last, then
    :meth:`step`. :meth:`process` does both for a chunk of records. A step costs O(resolved * log
    pending), whatever the number of pairs waiting: pairs lie in a heap by s' and in a queue by age.

    Args:
        streams: E.
        max_steps: age at which a pair is given up.
        gamma: discount inside G.
        allow_zero: let a pair be reached by its own record.
        label_timeouts: report given-up pairs as reached with Delta = max_steps.
        success_reaches: let a record with success reach every pair that still waits.
        prolong: keep pairs waiting after ``done``; for a trainer that keeps stepping an ended episode
            while :meth:`has_pending` (not after a death, which leaves them unresolved). Pairs are then
            dropped at the next ``is_init``.

    Raises:
        ConfigError: a number is out of range.

    >>> pairs = PendingPairs(1, max_steps=100)
    >>> pairs.push(0, 0, score=0.5)
    >>> for k, (reward, intrinsic) in enumerate([(0, 0), (0.1, 0.01), (0, 0), (0.2, 0), (1, 0)]):
    ...     reached = pairs.step(0, k, score=0.9 if k == 4 else 0.1, reward=reward, intrinsic=intrinsic)
    >>> reached.index.item(), reached.steps.item(), round(reached.jump_return.item(), 7)
    (0, 4.0, 0.1032434)
    """

    def __init__(
        self,
        streams: int = 1,
        *,
        max_steps: int = 1000,
        gamma: float = 0.997,
        allow_zero: bool = False,
        label_timeouts: bool = False,
        success_reaches: bool = False,
        prolong: bool = False,
    ) -> None:
        if streams < 1 or max_steps < 1 or not 0.0 < gamma <= 1.0:
            raise ConfigError(
                f"PendingPairs got streams={streams}, max_steps={max_steps}, gamma={gamma}: wanted at least "
                "one stream and one step, and 0 < gamma <= 1; change them"
            )
        self.max_steps, self.gamma = max_steps, gamma
        self.allow_zero, self.label_timeouts = allow_zero, label_timeouts
        self.success_reaches, self.prolong = success_reaches, prolong
        self.pushed = self.reached = self.timed_out = self.abandoned = 0
        self._streams = [_Stream() for _ in range(streams)]
        self._discount = gamma ** np.arange(max_steps + 1, dtype=np.float64)
        self._norm = np.cumsum(self._discount)

    @classmethod
    def compat(cls, streams: int = 1, **options: Any) -> PendingPairs:
        """The released behaviour: own records and time-outs count, episodes are prolonged."""
        return cls(streams, **({"allow_zero": True, "label_timeouts": True, "prolong": True} | options))

    def __len__(self) -> int:
        """Pairs waiting, over all streams."""
        return sum(len(s.waiting) for s in self._streams)

    @property
    def streams(self) -> int:
        """E."""
        return len(self._streams)

    @property
    def columns(self) -> tuple[Any, ...]:
        """Keys that :meth:`process` reads."""
        return (*COLUMNS, "success") if self.success_reaches else COLUMNS

    def waiting(self, stream: int) -> list[int]:
        """Records of the stream whose pair still waits."""
        return list(self._streams[stream].waiting)

    def has_pending(self, stream: int) -> bool:
        """Whether any pair of the stream still waits: what episode prolongation asks."""
        return bool(self._streams[stream].waiting)

    def counts(self) -> dict[str, int]:
        """Since the start: pairs pushed, reached, timed out, abandoned at episode ends, and waiting now."""
        keys = ("pushed", "reached", "timed_out", "abandoned")
        return {key: getattr(self, key) for key in keys} | {"waiting": len(self)}

    def push(self, stream: int, index: int, score: float) -> None:
        """A zoomed view at record ``index`` promises ``score``; call before :meth:`step` of that record."""
        s = self._streams[stream]
        expected = s.first + len(s.values)
        if s.values and index != expected:
            raise SpecError(
                f"PendingPairs stream {stream} was pushed record {index}: found that, wanted {expected}, the "
                "one after the last step; push before step, and call end_episode when the index jumps"
            )
        if index not in s.waiting:
            self.pushed += 1
            s.fresh.append(index)
        s.waiting[index] = score

    def step(
        self,
        stream: int,
        index: int,
        score: float,
        reward: float,
        intrinsic: float = 0.0,
        *,
        success: bool = False,
    ) -> Resolved:
        """Arrive at record ``index``; returns the pairs it resolves."""
        return Resolved.of(self._arrive(stream, index, score, reward + intrinsic, success))

    def end_episode(self, stream: int) -> int:
        """Forget the stream's episode; pairs still waiting stay unresolved. Returns their number."""
        lost = len(self._streams[stream].waiting)
        self.abandoned += lost
        self._streams[stream] = _Stream()
        return lost

    def process(self, records: TensorDictBase, stream: int, first_index: int) -> Resolved:
        """Push and step n consecutive arrival-aligned records; returns every pair they resolve.

        Args:
            records: ``[n]`` with ``score``, ``("zoomed", "score")``, ``is_zoomed``, ``reward``,
                ``intrinsic_reward``, ``is_init`` and ``done``, each ``[n, 1]``. ``is_init`` starts an
                episode, ``done`` ends it (with ``prolong`` only the next ``is_init`` does). With
                ``success_reaches`` also ``success``.
            stream: which environment.
            first_index: index of the first record; the others count on.

        Raises:
            SpecError: a key is missing, or the index does not follow the stream's last record.
        """
        columns = []
        for key in self.columns:
            value = records.get(key, None)
            if value is None:
                raise SpecError(
                    f"PendingPairs.process reads {key!r}: found {', '.join(map(str, records.keys(True)))}, "
                    "wanted arrival-aligned records; apply AffordanceTransform and to_sequence first"
                )
            columns.append(value.reshape(-1).tolist())
        rows: list[tuple[int, int, float]] = []
        for index, (score, promise, zoomed, reward, intrinsic, first, done, *success) in enumerate(
            zip(*columns, strict=True), first_index
        ):
            if first:
                self.end_episode(stream)
            if zoomed and not done:
                self.push(stream, index, promise)
            rows += self._arrive(stream, index, score, reward + intrinsic, any(success))
            if done and not self.prolong:
                self.end_episode(stream)
        return Resolved.of(rows)

    # ---- one record --------------------------------------------------------------------------

    def _arrive(
        self, stream: int, index: int, score: float, value: float, success: bool
    ) -> list[tuple[int, int, float]]:
        s = self._streams[stream]
        if not s.values:
            s.first = index
        elif index != s.first + len(s.values):
            raise SpecError(
                f"PendingPairs stream {stream} was stepped to record {index}: found that, wanted "
                f"{s.first + len(s.values)}, the one after the last; call end_episode when the index jumps"
            )
        s.values.append(value)
        if self.allow_zero:
            self._admit(s)
        found: list[int] = []
        if success and self.success_reaches:
            score = math.inf
        while s.heap and s.heap[0][0] < score:
            promise, t = heapq.heappop(s.heap)
            if s.waiting.get(t) == promise:
                del s.waiting[t]
                found.append(t)
        self.reached += len(found)
        while s.queue and (s.queue[0] not in s.waiting or index - s.queue[0] >= self.max_steps):
            t = s.queue.popleft()
            if s.waiting.pop(t, None) is not None:
                self.timed_out += 1
                if self.label_timeouts:
                    found.append(t)
        if not self.allow_zero:
            self._admit(s)
        rows = [(t, index - t, self._mean(s, t, index)) for t in sorted(found)]
        self._trim(s)
        return rows

    def _admit(self, s: _Stream) -> None:
        """Let pairs that were just pushed take part in comparisons."""
        for t in s.fresh:
            heapq.heappush(s.heap, (s.waiting[t], t))
            s.queue.append(t)
        s.fresh.clear()

    def _mean(self, s: _Stream, t: int, k: int) -> float:
        """G of a jump from record t to record k."""
        between = s.values[t + 1 - s.first : k - s.first]
        if not between:
            return 0.0
        return float(np.dot(self._discount[: len(between)], between) / self._norm[len(between) - 1])

    def _trim(self, s: _Stream) -> None:
        """Forget rewards that no waiting pair will read, now and then."""
        if len(s.values) > 4 * self.max_steps:
            keep = len(s.values) - self.max_steps - 1
            s.values, s.first = s.values[keep:], s.first + keep

    # ---- checkpoints -------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists: fits JSON and ``torch.save``."""
        streams = [
            {
                "waiting": [[t, score] for t, score in s.waiting.items()],
                "fresh": list(s.fresh),
                "first": s.first,
                "values": list(s.values),
            }
            for s in self._streams
        ]
        counts = {key: getattr(self, key) for key in ("pushed", "reached", "timed_out", "abandoned")}
        return {"streams": streams, "counts": counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            CheckpointError: another number of streams.
        """
        if len(state["streams"]) != self.streams:
            raise CheckpointError(
                f"the checkpoint of PendingPairs has {len(state['streams'])} streams: wanted {self.streams}; "
                "resume with the number of environments it was saved with"
            )
        for key, value in state["counts"].items():
            setattr(self, key, value)
        self._streams = []
        for saved in state["streams"]:
            s = _Stream(first=saved["first"], values=list(saved["values"]), fresh=list(saved["fresh"]))
            s.waiting = {int(t): score for t, score in saved["waiting"]}
            settled = [t for t in s.waiting if t not in s.fresh]
            s.heap = [(s.waiting[t], t) for t in settled]
            heapq.heapify(s.heap)
            s.queue = deque(settled)
            self._streams.append(s)
