"""Spans and returns of jumps on TorchRL's own replay buffers (LS-Imagine, arXiv:2410.03618, section 3.4).

How long a jump takes is known only when a later record reaches what its zoomed view promised; by then the
record may lie in the buffer. So every record is numbered as it goes in, and what was found out about a number
is looked up as it comes out. The buffer itself is never written to: any storage and any sampler will do.

    extend   records  --PendingPairs-->  number -> Delta, G     (a table, 32 bytes a record)
    sample   number   --table-->         jump_steps, jump_return, jump_resolved
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import Transform

from wmkit.data.layout import arrivals
from wmkit.data.pending_pairs import PendingPairs
from wmkit.errors import SpecError
from wmkit.plug import as_keys

LABELS = ("jump_steps", "jump_return", "jump_resolved")
ARRIVING = ("reward", "done")  # what a transition holds at its end alone


class JumpResolver(Transform):
    """Give every sampled record the span and the return of its jump, once they are known.

    Append it to a replay buffer and extend that with what an environment with an
    :class:`~wmkit.affordance.AffordanceTransform` gives, in order of time: arrival-aligned records, or
    a collector's transitions (whose roots are then labelled). Streams are told apart by the key
    ``stream`` where there is one; otherwise each row of a batch ``[E, T]`` is a stream. The labels
    equal those of :class:`~wmkit.data.StreamWriter`.

        reads    score, (zoomed, score), reward, intrinsic_reward float [1]; is_zoomed, is_init, done bool [1]
        writes   jump_steps float32 [1]        Delta; ``max_steps`` while it is unknown
                 jump_return float32 [1]       normalised G; 0 while it is unknown
                 jump_resolved bool [1]        whether the jump's target was reached
                 jump_index int64 [1]          the record's number, as it goes in

    Args:
        capacity: records that the buffer holds.
        pairs: the rule; one stream of :class:`~wmkit.data.PendingPairs` with its defaults if not given.
        in_keys: what is read, in the order of the first line above (score, promised score, is_zoomed,
            reward, intrinsic_reward, is_init, done; ``success`` as well where the rule reads it).
        out_keys: what is written as records come out.
        stream_key: number of a record's stream, integer ``[]`` or ``[1]``; need not exist.
        index_key: where a record keeps its number.

    Raises:
        ConfigError: another number of keys.
        SpecError: a key is missing, or there are more streams than ``pairs`` has.

    >>> from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
    >>> sampler = SliceSampler(slice_len=4, traj_key="stream", init_key=None, truncated_key=None)
    >>> buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100), sampler=sampler, batch_size=4)
    >>> buffer.append_transform(JumpResolver(100))  # doctest: +ELLIPSIS
    TensorDictReplayBuffer(...)
    >>> score, flags = torch.tensor([[0.1], [0.1], [0.1], [0.9]]), torch.zeros(4, 1, dtype=torch.bool)
    >>> records = TensorDict({
    ...     "score": score, "zoomed": {"score": torch.full((4, 1), 0.5)}, "is_zoomed": score < 0.2,
    ...     "reward": torch.ones(4, 1), "intrinsic_reward": torch.zeros(4, 1),
    ...     "is_init": flags, "done": flags, "stream": torch.zeros(4, dtype=torch.int64)}, [4])
    >>> for part in records.split(2):  # the targets of the first two are reached by the last
    ...     index = buffer.extend(part)
    >>> buffer.sample()["jump_steps"].flatten()
    tensor([   3.,    2.,    1., 1000.])
    """

    owner: Tensor
    steps: Tensor
    value: Tensor

    def __init__(
        self,
        capacity: int,
        pairs: PendingPairs | None = None,
        *,
        in_keys: Iterable[Any] | None = None,
        out_keys: Iterable[Any] = LABELS,
        stream_key: Any = "stream",
        index_key: Any = "jump_index",
    ) -> None:
        pairs = PendingPairs() if pairs is None else pairs
        names = pairs.columns
        super().__init__(
            in_keys=as_keys(names if in_keys is None else in_keys, len(names), "in_keys"),
            out_keys=as_keys(out_keys, len(LABELS), "out_keys"),
        )
        self.pairs = pairs
        self.stream_key, self.index_key = as_keys([stream_key, index_key])
        size = 2 * capacity  # a transition may be the only one of its episode: two records
        self.register_buffer("owner", torch.full((size,), -1))
        self.register_buffer("steps", torch.zeros(size))
        self.register_buffer("value", torch.zeros(size))
        self.count = 0  # records so far, of all streams
        self._next = [0] * pairs.streams  # position of each stream's next record
        self._last = [-1] * pairs.streams  # number of its last
        self._open: list[dict[int, int]] = [{} for _ in self._next]  # position -> number, while a pair waits

    # ---- as records come out -----------------------------------------------------------------

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Label sampled records ``[*B]``."""
        number = tensordict.get(self.index_key, None)
        if number is None:
            raise SpecError(
                f"JumpResolver reads {self.index_key!r}: found none in a sample, wanted the number that a "
                "record gets as it goes in; append the transform before the buffer is extended"
            )
        device, number = number.device, number.to(self.owner.device)
        slot = number % len(self.owner)
        resolved = self.owner[slot] == number  # [*B, 1]
        steps = torch.where(resolved, self.steps[slot], float(self.pairs.max_steps))
        value = torch.where(resolved, self.value[slot], 0.0)
        for key, label in zip(self.out_keys, (steps, value, resolved), strict=True):
            tensordict.set(key, label.to(device))
        return tensordict

    # ---- as records go in --------------------------------------------------------------------

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        number = torch.full((tensordict.numel(),), -1)
        for stream, rows in self._streams(tensordict):
            number[rows] = self._push(tensordict, stream, rows)
        device = tensordict.get(self.in_keys[0]).device
        return tensordict.set(self.index_key, number.view(*tensordict.batch_size, 1).to(device))

    def _streams(self, tensordict: TensorDictBase) -> Iterator[tuple[int, Tensor]]:
        """Streams, and where their records lie in the flattened batch, in order of time."""
        batch = tensordict.batch_size
        stream = tensordict.get(self.stream_key, None)
        if stream is not None:
            stream = stream.reshape(-1).cpu()
        else:
            stream = torch.arange(batch[:-1].numel()).repeat_interleave(batch[-1] if batch else 1)
        for one in stream.unique().tolist():
            if not 0 <= one < self.pairs.streams:
                raise SpecError(
                    f"JumpResolver got records of stream {one}: found {self.pairs.streams} streams in its "
                    f"pairs, wanted {one + 1} or more; give it PendingPairs({one + 1})"
                )
            yield one, (stream == one).nonzero()[:, 0]

    def _push(self, tensordict: TensorDictBase, stream: int, rows: Tensor) -> Tensor:
        """Take in records, or transitions, of one stream; returns their numbers ``[n]``."""
        if "next" in tensordict.keys():
            is_init = self._column(tensordict, "is_init", rows).bool()
            starts, arrive_at = arrivals(is_init, self._next[stream] > 0)
            records = self._from_transitions(tensordict, rows, starts, arrive_at)
            root = arrive_at - 1  # -1 is the stream's last record
        else:
            records = {name: self._column(tensordict, name, rows) for name in self.pairs.columns}
            root = torch.arange(len(rows))
        numbers = self._resolve(records, stream)
        numbers = torch.cat((numbers, torch.tensor([self._last[stream]])))[root]
        self._last[stream] = self.count - 1
        return numbers

    def _from_transitions(
        self, tensordict: TensorDictBase, rows: Tensor, starts: Tensor, arrive_at: Tensor
    ) -> dict[str, Tensor]:
        """Columns of records ``[n]``, as :func:`~wmkit.data.to_sequence` lays them out."""
        first, records = starts.nonzero()[:, 0], {}
        for name in self.pairs.columns:
            side = tensordict if name == "is_init" else tensordict.get("next")
            value = self._column(side, name, rows)
            column = value.new_zeros(int(arrive_at[-1]) + 1)
            if name != "is_init":
                column[arrive_at] = value
            if name not in ARRIVING:
                column[arrive_at[first] - 1] = self._column(tensordict, name, rows[first])
            records[name] = column
        return records

    def _column(self, tensordict: TensorDictBase, name: str, rows: Tensor) -> Tensor:
        """One key's values ``[n]`` on the CPU."""
        key = self.in_keys[self.pairs.columns.index(name)]
        value = tensordict.get(key, None)
        if value is None:
            raise SpecError(
                f"JumpResolver reads {key!r}: found {', '.join(map(str, tensordict.keys(True)))}, wanted "
                "what AffordanceTransform and InitTracker add; append both to the environment"
            )
        return value.reshape(-1).cpu()[rows]

    def _resolve(self, records: dict[Any, Tensor], stream: int) -> Tensor:
        """Number the records of one stream, and note what their arrival resolves; returns the numbers."""
        first, count = self._next[stream], len(records["score"])
        numbers = torch.arange(self.count, self.count + count)
        self._next[stream], self.count = first + count, self.count + count
        columns = {key: value.unsqueeze(-1) for key, value in records.items()}
        found = self.pairs.process(TensorDict(columns, [count]), stream, first)
        number_of = self._open[stream]
        number_of |= {first + k: int(numbers[k]) for k in records["is_zoomed"].nonzero()[:, 0].tolist()}
        owner = torch.tensor([number_of[t] for t in found.index.tolist()], dtype=torch.int64)
        held = owner >= self.count - len(self.owner)  # those before these have left the buffer
        slot = owner[held] % len(self.owner)
        self.owner[slot] = owner[held].to(self.owner)
        self.steps[slot], self.value[slot] = (
            found.steps[held].to(self.steps),
            found.jump_return[held].to(self.value),
        )
        self._open[stream] = {t: number_of[t] for t in self.pairs.waiting(stream)}
        return numbers

    # ---- checkpoints -------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """State kept beside the table: waiting pairs and where each stream stands."""
        waiting = [list(one.items()) for one in self._open]
        state = {"count": self.count, "next": self._next, "last": self._last, "open": waiting}
        return {**state, "pairs": self.pairs.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`get_extra_state` gave."""
        self.pairs.load_state_dict(state["pairs"])
        self.count, self._next, self._last = state["count"], list(state["next"]), list(state["last"])
        self._open = [dict(map(tuple, one)) for one in state["open"]]
