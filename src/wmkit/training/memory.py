"""Replay and jump pairs of a run: what the collector brings goes in, batches come out.

    write    transitions [N, k] -> records -> streams; pairs that a record resolves are patched
    sample   windows [B, L] for one update
    patch    latents that an update computed, back to where the window came from

Every step is on disk when :meth:`ReplayMemory.write` returns; nothing waits for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from wmkit.data import ReplayStreams, StreamWriter
from wmkit.data.files import brief, is_count, is_number, need
from wmkit.data.layout import EXCLUDE, LATENTS
from wmkit.data.pending_pairs import PendingPairs
from wmkit.data.samplers import Sampler, Uniform
from wmkit.errors import CheckpointError, ConfigError
from wmkit.training.collect import that_came, with_ends

ADVICE = "move that checkpoint away to take the one before it"
NOT_KEPT = (
    *EXCLUDE,
    "arrival_reward",
    "recent_frames",
    "recent_steps",
    "actor_memory",
)  # large, or there under another name


class ReplayMemory:
    """Replay streams, their writer and the pending jump pairs.

    Args:
        folder: where the streams lie; None keeps them in memory.
        num_envs: environments N, one stream each.
        batch_shape: (B, L) that the system's update expects, context included.
        context: leading records whose stored latents the system uses; with 0 every window starts
            as an episode does (``is_init``), as in DreamerV3 of 2023 and LS-Imagine.
        capacity: records over all streams.
        options: further keyword arguments of :class:`~wmkit.data.ReplayStreams`.
        pairs: keyword arguments of :class:`~wmkit.data.pending_pairs.PendingPairs`; None for systems
            without jumps.
        keep_latents: store the ``state`` and ``belief`` that the policy writes.
        dream_windows: windows and records of each that :meth:`sample_dreams` gives.
        own_windows: the same of learners' own batches, by name.
        seed: of the sampling generator.

    Raises:
        ConfigError: a stream has no room for a window.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        num_envs: int,
        batch_shape: Sequence[int],
        context: int = 0,
        capacity: int = 100_000,
        options: Mapping[str, Any] | None = None,
        pairs: Mapping[str, Any] | None = None,
        keep_latents: bool = True,
        dream_windows: tuple[int, int] | None = None,
        own_windows: Mapping[str, tuple[int, int]] | None = None,
        seed: int = 0,
    ) -> None:
        self.batch, self.length = int(batch_shape[0]), int(batch_shape[1])
        self.context, self.dream_windows = context, dream_windows
        self.own_windows = dict(own_windows or {})
        self.streams = ReplayStreams(
            folder, num_streams=num_envs, capacity=capacity, seed=seed, **dict(options or {})
        )
        if self.streams.capacity < self.length:
            raise ConfigError(
                f"replay capacity is too small: found room for {self.streams.capacity} records of each of "
                f"{num_envs} environments, wanted {self.length}, a window of an update; raise "
                "training.replay.capacity"
            )
        self.pairs = PendingPairs(num_envs, **pairs) if pairs is not None else None
        latents, dropped = (LATENTS, ()) if keep_latents else ((), LATENTS)
        self.writer = StreamWriter(
            self.streams, defaults=self._defaults(), latents=latents, exclude=(*NOT_KEPT, *dropped)
        )
        self.uniform: Sampler = Uniform()
        self._spans: list[Tensor] = []
        self._window: TensorDictBase | None = None
        self._beside: dict[str, TensorDictBase] = {}

    def _defaults(self) -> dict[Any, Tensor]:
        if self.pairs is None:
            return {}
        return {
            "jump_steps": torch.full((1,), float(self.pairs.max_steps)),
            "jump_return": torch.zeros(1),
            "jump_resolved": torch.zeros(1, dtype=torch.bool),
        }

    @property
    def env_steps(self) -> int:
        """Environment steps ever written, those of earlier sessions included."""
        return self.streams.total_steps

    def write(self, transitions: TensorDictBase) -> None:
        """Append a collector's batch ``[N, k]`` and settle the jump pairs it reaches.

        Transitions that never came (:mod:`wmkit.envs.guarded`) are left out; the episode ends before them.
        """
        transitions = with_ends(transitions)
        parts = that_came(transitions)
        for written in (w for part, streams in parts for w in self.writer.write(part, streams)):
            if self.pairs is None:
                continue
            count = self.streams.num_streams
            reached = self.pairs.process(written.records, written.stream, int(written.index[0]) // count)
            if len(reached):
                values = TensorDict(
                    {
                        "jump_steps": reached.steps[:, None],
                        "jump_return": reached.jump_return[:, None],
                        "jump_resolved": torch.ones(len(reached), 1, dtype=torch.bool),
                    },
                    [len(reached)],
                )
                self.streams.patch(reached.index * count + written.stream, values)
                self._spans.append(reached.steps)

    def waiting(self) -> Tensor:
        """``[N]`` bool: environments some of whose jump pairs wait."""
        count = self.streams.num_streams
        return torch.tensor([self.pairs is not None and self.pairs.has_pending(e) for e in range(count)])

    def ready(self, windows: int = 1) -> bool:
        """Whether so many different windows can be drawn."""
        return self.streams.num_windows(self.length) >= windows

    def sample(self, uniform: bool = False) -> TensorDictBase:
        """Windows ``[B, L]``, in memory that the next call uses again.

        ``uniform`` ones leave no trace in the sampler: a pretraining visits nothing (TWM).
        """
        self._window = self.streams.sample(
            self.batch,
            self.length,
            force_init=self.context == 0,
            out=self._window,
            sampler=self.uniform if uniform else None,
        )
        return self._window

    def sample_dreams(self) -> tuple[TensorDictBase, ...]:
        """Windows that an update takes beside its batch, drawn uniformly: ``[N, c+1]`` for dreams alone where
        they do not start in the batch, then those of learners' own batches.
        """
        wanted = {} if self.dream_windows is None else {"": self.dream_windows}
        for name, shape in (wanted | self.own_windows).items():
            self._beside[name] = self.streams.sample(
                *shape, force_init=True, out=self._beside.get(name), sampler=self.uniform
            )
        return tuple(self._beside.values())

    def write_back(self, batch: TensorDictBase, latents: TensorDictBase) -> None:
        """Store latents ``[B, T]`` that an update computed; T counts from the window's end.

        A system without context never reads them: nothing is stored.
        """
        if not self.context:
            return
        index = batch["index"]
        length = latents["state" if "state" in latents.keys() else "belief"].shape[1]
        self.streams.patch(index[:, index.shape[1] - length :], latents)

    def go_on(self) -> None:
        """The next batch goes on with the episodes that replay ends in: the environments still do."""
        self.writer.go_on()

    def numbers(self, keep: bool = False) -> dict[str, float]:
        """For the log: records held, and what became of jump pairs since the last call without ``keep``."""
        numbers = {"replay/records": float(len(self.streams))}
        if self.pairs is not None:
            numbers |= {f"pairs/{name}": float(value) for name, value in self.pairs.counts().items()}
            if self._spans:
                numbers["pairs/span_mean"] = torch.cat(self._spans).mean().item()
                self._spans = self._spans if keep else []
        return numbers

    def state_dict(self) -> dict[str, Any]:
        """Sampling state and pending pairs; the records lie in the folder."""
        state: dict[str, Any] = {"streams": self.streams.state_dict()}
        if self.pairs is not None:
            state["pairs"] = self.pairs.state_dict()
            state["spans"] = torch.cat(self._spans) if self._spans else torch.zeros(0)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`; pairs of episodes that were cut short are dropped with the next record.

        Raises:
            CheckpointError: it is not such a state, or one of another number of environments.
        """
        streams, pairs = state.get("streams"), state.get("pairs")
        fits = isinstance(streams, dict) and _is_drawing(streams, self.streams.num_streams)
        need(fits, "'memory/streams' of a checkpoint", streams, "a sampler's state for this replay", ADVICE)
        if self.pairs is not None and pairs is not None:
            need(_are_pairs(pairs), "'memory/pairs' of a checkpoint", pairs, "jump pairs that wait", ADVICE)
        spans = state.get("spans", torch.zeros(0))
        fits = isinstance(spans, Tensor) and spans.ndim == 1
        need(fits, "'memory/spans' of a checkpoint", spans, "lengths of jumps", ADVICE)
        self._spans = [spans] if len(spans) else []
        try:
            self.streams.load_state_dict(dict(streams or {}))
            if self.pairs is not None and pairs is not None:
                self.pairs.load_state_dict(pairs)
        except (RuntimeError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"'memory' of a checkpoint does not fit: found {brief(str(error))}, wanted the state of this "
                f"run's sampler; {ADVICE}"
            ) from error


def _is_drawing(state: Mapping[str, Any], streams: int) -> bool:
    """Whether this is the state of a generator and of a sampler over so many streams."""
    sampler = state.get("sampler")
    if not isinstance(state.get("generator"), Tensor) or not isinstance(sampler, dict):
        return False
    for name in ("next", "seen", "visits"):  # one row per stream where there are some
        value = sampler.get(name)
        whole = isinstance(value, Tensor) and not value.is_floating_point() and value.ndim > 0
        if value is not None and not (whole and value.shape[0] == streams):
            return False
    queue, generators = sampler.get("queue", []), sampler.get("generator") or {}
    queued = isinstance(queue, list) and all(map(is_count, queue))
    return queued and isinstance(generators, dict) and all(isinstance(g, Tensor) for g in generators.values())


def _are_pairs(state: Any) -> bool:
    """Whether this is what :meth:`~wmkit.data.PendingPairs.state_dict` gives."""
    if not isinstance(state, dict) or state.keys() != {"streams", "counts"}:
        return False
    counts, streams = state["counts"], state["streams"]
    names = {"pushed", "reached", "timed_out", "abandoned"}
    if not isinstance(counts, dict) or counts.keys() != names or not all(map(is_count, counts.values())):
        return False
    return isinstance(streams, list) and all(map(_is_pair_stream, streams))


def _is_pair_stream(state: Any) -> bool:
    if not isinstance(state, dict) or not state.keys() >= {"waiting", "fresh", "first", "values"}:
        return False
    waiting, fresh, values = state["waiting"], state["fresh"], state["values"]
    if not all(isinstance(one, list) for one in (waiting, fresh, values)) or not is_count(state["first"]):
        return False
    pairs = (isinstance(one, (list, tuple)) and len(one) == 2 and is_count(one[0]) for one in waiting)
    known = all(pairs) and {t for t, _ in waiting} >= set(map(_plain, fresh))
    return known and all(isinstance(n, float) or is_number(n) for n in (*values, *(s for _, s in waiting)))


def _plain(value: Any) -> Any:
    return value if is_count(value) else None
