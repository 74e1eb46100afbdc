"""Watches losses without slowing the updates down.

Looking at a number on an accelerator makes the host wait for it. The guard keeps the
metrics of ``every`` updates on the device, looks at all of them at once, and, when they
are finite, now and then copies the training state to host memory: the last good state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from wmkit.errors import NonFiniteLossError


class FiniteGuard:
    """Collects the metrics of updates, averages them, and stops at NaN or infinity.

    Args:
        snapshot: returns the training state; called only after finite metrics, and so seldom that it
            takes at most ``share`` of the time.
        every: updates between two looks.
        share: upper bound of the part of the time spent on snapshots.

    >>> guard = FiniteGuard(lambda: {"weight": torch.ones(1)}, every=2)
    >>> guard.add({"loss/reward": torch.tensor(1.0)}); guard.add({"loss/reward": torch.tensor(3.0)})
    >>> guard.means()
    {'loss/reward': 2.0}
    >>> guard.add({"loss/reward": torch.tensor(float("nan"))}); guard.check()
    Traceback (most recent call last):
    wmkit.errors.NonFiniteLossError: loss term 'loss/reward' is not finite: found nan in update 3, ...
    """

    def __init__(self, snapshot: Callable[[], dict[str, Any]], every: int = 10, share: float = 0.02) -> None:
        self._snapshot, self.every, self.share = snapshot, max(int(every), 1), share
        self.updates = 0
        self.good: dict[str, Any] | None = None
        self._pending: list[dict[str, Tensor]] = []
        self._sums: dict[str, list[float]] = {}
        self._next_copy = 0.0

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take the metrics of one update: names to 0-d tensors."""
        self.updates += 1
        self._pending.append({name: value.detach() for name, value in metrics.items()})
        if len(self._pending) >= self.every:
            self.check()

    def check(self) -> None:
        """Look at everything added since the last look.

        Raises:
            NonFiniteLossError: names the term, its value and the update.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        names = list(dict.fromkeys(name for metrics in pending for name in metrics))
        missing = torch.zeros((), device=next(iter(pending[0].values())).device) if names else torch.zeros(())
        rows = torch.stack(
            [torch.stack([metrics.get(name, missing).float() for name in names]) for metrics in pending]
        ).cpu()  # [updates, names]; the one synchronisation
        for row, values in enumerate(rows.tolist()):
            for name, value in sorted(zip(names, values, strict=True), key=lambda entry: _rank(entry[0])):
                if value != value or value in (float("inf"), float("-inf")):
                    raise NonFiniteLossError(
                        f"loss term {name!r} is not finite: found {value} in update "
                        f"{self.updates - len(pending) + row + 1}, wanted a finite number; lower the "
                        "learning rate or look at the rewards, then resume from the last good state"
                    )
        for column, name in enumerate(names):
            self._sums.setdefault(name, []).extend(
                rows[row, column].item() for row, metrics in enumerate(pending) if name in metrics
            )
        self._copy()

    def means(self, keep: bool = False) -> dict[str, float]:
        """Check, return the mean of each metric since the last call, and, unless ``keep``, start anew."""
        self.check()
        sums = self._sums
        if not keep:
            self._sums = {}
        return {name: sum(values) / len(values) for name, values in sums.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """What was looked at since the last :meth:`means`, by metric, float64 ``[n]``."""
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Undo :meth:`state_dict`."""
        self._sums = {name: values.tolist() for name, values in state.items()}

    def _copy(self) -> None:
        now = time.monotonic()
        if now < self._next_copy:
            return
        self.good = to_host(self._snapshot())
        cost = time.monotonic() - now
        self._next_copy = time.monotonic() + cost / self.share


def scalars(metrics: Any) -> dict[str, Tensor]:
    """The 0-d tensors of a (possibly nested) TensorDict by slash-joined names; anything larger is left out.

    >>> from tensordict import TensorDict
    >>> scalars(TensorDict({"loss": {"reward": torch.tensor(1.0)}, "state": torch.ones(3)}))
    {'loss/reward': tensor(1.)}
    """
    found = {}
    for key, value in metrics.items(include_nested=True, leaves_only=True):
        if isinstance(value, Tensor) and value.ndim == 0:
            found[key if isinstance(key, str) else "/".join(key)] = value
    return found


def to_host(state: Any) -> Any:
    """A deep copy of nested containers with every tensor cloned to the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: to_host(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(to_host(value) for value in state)
    return state


def _rank(name: str) -> int:
    """Terms before totals and norms, so that the message names the cause rather than the sum."""
    last = name.rsplit("/", 1)[-1]
    return 0 if "loss" in name and "total" not in last and last != "loss" else 1
