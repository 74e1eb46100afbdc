"""From recorded episodes to the records of a replay, in order, each episode whole or not at all.

    data set ──▶ Fitted ──▶ records (arrival-aligned, see wmkit.data.layout) ──▶ ReplayStreams

Episode i goes to stream i modulo S in one :meth:`~wmkit.data.ReplayStreams.extend`. So a process that was
killed in the middle left whole episodes, and :func:`write_records` goes on after the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, OneHot, TensorSpec, Unbounded

from wmkit.data.recorded.contract import Column, refused
from wmkit.data.recorded.fit import Fitted
from wmkit.data.repair import CHUNK
from wmkit.data.streams import ReplayStreams

WIDE = 1e30  # beyond such a bound there is none


@dataclass
class ActionCode:
    """How recorded actions become those of replay.

    Attributes:
        width: of one action there.
        discrete: one-hot of choices, or numbers in [-1, 1].
        encoded: they are that already.
        low: of the recorded numbers, ``[A]``, what becomes -1.
        high: what becomes 1.
    """

    width: int
    discrete: bool
    encoded: bool = False
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def encode(self, actions: np.ndarray) -> Tensor:
        """float32 ``[m, A]`` of recorded ``[m, ...]``."""
        flat = as_tensor(actions).reshape(len(actions), -1)
        if self.encoded:
            return flat.float()
        if self.discrete:
            return F.one_hot(flat[:, 0].long(), self.width).float()
        low, high = torch.from_numpy(self.low), torch.from_numpy(self.high)
        return (2.0 * (flat.double() - low) / (high - low) - 1.0).float()

    def spec(self) -> TensorSpec:
        """What a policy has to choose."""
        if self.discrete:
            return OneHot(self.width, dtype=torch.int64)
        if self.encoded or self.low is None or self.high is None:
            return Bounded(-1.0, 1.0, (self.width,))
        return Bounded(torch.from_numpy(self.low).float(), torch.from_numpy(self.high).float(), (self.width,))


def read_actions(fitted: Fitted, num_actions: int | None = None, env: TensorSpec | None = None) -> ActionCode:
    """Look through all actions of a data set.

    Args:
        fitted: the data set.
        num_actions: how many choices whole numbers are; None takes what the data set or the environment
            says, or the largest number and one more.
        env: action of the environment that it is for.

    Raises:
        DataError: NaN, no numbers, numbers that are no choice, or not what the environment takes.
    """
    column, path = fitted.action, fitted.path
    width = int(np.prod(column.shape, dtype=np.int64)) if column.shape else 1
    lows, highs, one_hot, whole = [], [], column.encoded, True
    for index in range(len(fitted)):
        values = fitted.actions(index).reshape(-1, width)
        if not len(values):
            continue
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = int((~np.isfinite(values)).any(1).argmax())
            raise refused(
                path,
                f"key 'action' of episode {index}",
                f"{values[row][~np.isfinite(values[row])][0]} in row {row}",
                "finite numbers, save in its last row",
                "mend that row, or leave the episode out",
            )
        lows.append(values.min(0))
        highs.append(values.max(0))
        one_hot = one_hot and bool((values.sum(1) == 1).all() and ((values == 0) | (values == 1)).all())
        whole = whole and bool((values == np.floor(values)).all())
    low, high = np.min(lows, 0).astype(np.float64), np.max(highs, 0).astype(np.float64)
    wants = None if env is None else isinstance(env, OneHot)
    said = column.classes or num_actions or (int(env.space.n) if wants and env is not None else None)
    if column.encoded:
        code = ActionCode(width, bool(one_hot) and width > 1, encoded=True)
    elif column.classes is not None or column.dtype.kind in "iub" or (wants and whole and width == 1):
        if width != 1:
            raise refused(
                path, "key 'action'", str(column), "one choice or numbers", "join them to one choice"
            )
        classes = said or int(high[0]) + 1
        if low[0] < 0 or high[0] >= classes:
            found = f"choices from {low[0]:g} to {high[0]:g}"
            raise refused(path, "key 'action'", found, f"0 to {classes - 1}", "correct data.num_actions")
        code = ActionCode(classes, True)
    else:
        least, most = _bounds(column, width, low, high, env)
        code = ActionCode(width, False, low=least, high=most)
    if env is not None and (wants != code.discrete or int(env.shape[-1]) != code.width):
        found = f"{'one of' if code.discrete else 'numbers,'} {code.width}"
        wanted = f"{'one of' if wants else 'numbers,'} {int(env.shape[-1])}, as the environment takes"
        raise refused(path, "key 'action'", found, wanted, "name the environment it was recorded in")
    return code


def _bounds(
    column: Column, width: int, low: np.ndarray, high: np.ndarray, env: TensorSpec | None
) -> tuple[np.ndarray, np.ndarray]:
    """What becomes -1 and 1: the environment's bounds, the data set's, or its smallest and largest."""
    if env is not None and isinstance(env, Bounded):
        return env.space.low.double().numpy().reshape(-1), env.space.high.double().numpy().reshape(-1)
    if column.low is not None and column.high is not None:
        least, most = (
            np.broadcast_to(b, column.shape or (1,)).reshape(-1) for b in (column.low, column.high)
        )
        if (np.abs(least) < WIDE).all() and (np.abs(most) < WIDE).all() and (least < most).all():
            return least.astype(np.float64), most.astype(np.float64)
    same = high <= low
    return np.where(same, low - 1, low), np.where(same, high + 1, high)


def specs(fitted: Fitted) -> Composite:
    """What an environment would show that was recorded so."""
    return Composite({key: spec_of(column) for key, column in fitted.observations.items()})


def spec_of(column: Column) -> TensorSpec:
    """What an environment would show of one key."""
    if column.classes is not None:
        return OneHot(column.classes, dtype=torch.int64)
    if column.dtype == np.uint8 and len(column.shape) == 3:
        return Bounded(0, 255, column.shape, dtype=torch.uint8)
    if column.dtype.kind == "b":
        return Binary(shape=column.shape, dtype=torch.bool)
    if column.dtype.kind == "f":
        return Bounded(0.0, 1.0, column.shape) if len(column.shape) == 3 else Unbounded(column.shape)
    return Unbounded(column.shape, dtype=torch.int64)


def check_fits(fitted: Fitted, shown: Mapping[str, TensorSpec], env: str) -> None:
    """Whether a data set has what an environment shows, as it shows it.

    Raises:
        DataError: names the first key that differs.
    """
    for key, spec in shown.items():
        column = fitted.observations[key]
        own = spec_of(column)
        kinds = (own.dtype.is_floating_point, spec.dtype.is_floating_point)
        bytes_alone = (
            torch.uint8 in (own.dtype, spec.dtype) and own.dtype != spec.dtype and len(own.shape) == 3
        )
        if tuple(own.shape) != tuple(spec.shape) or kinds[0] != kinds[1] or bytes_alone:
            advice = (
                "set data.image_size"
                if len(own.shape) == len(spec.shape) == 3
                else "name its own environment"
            )
            raise refused(
                fitted.path,
                f"key {key!r}",
                f"{str(own.dtype)[6:]} {list(own.shape)}",
                f"{str(spec.dtype)[6:]} {list(spec.shape)}, as env {env!r} shows it",
                advice,
            )


def records_of(fitted: Fitted, index: int, code: ActionCode, shown: Mapping[str, TensorSpec]) -> TensorDict:
    """The records ``[n]`` of one episode, in the sequence layout.

    Args:
        fitted: the data set.
        index: of the episode.
        code: of its actions.
        shown: observations that are kept, and their dtypes.

    Raises:
        DataError: NaN, or floats of a picture outside of [0, 1].
    """
    episode = fitted.episode(index, list(shown))
    n = len(episode)
    records = TensorDict({}, batch_size=[n])
    for key, spec in shown.items():
        column, value = (
            fitted.observations[key],
            as_tensor(episode.observations[key]),
        )
        if column.classes is not None:
            if bool(((value < 0) | (value >= column.classes)).any()):
                found = f"{int(value.min())} to {int(value.max())}"
                what = f"key {key!r} of episode {index}"
                raise refused(fitted.path, what, found, f"choices from 0 to {column.classes - 1}", "mend it")
            value = F.one_hot(value.reshape(n).long(), column.classes)
        elif len(column.shape) == 3 and value.is_floating_point() and bool(((value < 0) | (value > 1)).any()):
            found = f"{float(value.min()):g} to {float(value.max()):g}"
            raise refused(
                fitted.path, f"picture {key!r} of episode {index}", found, "0 to 1", "divide by 255"
            )
        records.set(key, value.reshape(n, *spec.shape).to(spec.dtype))
    no = torch.zeros(n, 1, dtype=torch.bool)
    actions = torch.zeros(n, code.width)
    actions[1:] = code.encode(episode.actions)
    rewards = torch.zeros(n, 1)
    if episode.rewards is not None:
        rewards[1:, 0] = as_tensor(episode.rewards).float()
    records.update({"previous_action": actions, "reward": rewards, "is_init": no.clone()})
    records.update({"terminated": no.clone(), "done": no.clone()})
    records["is_init"][0] = records["done"][-1] = True
    records["terminated"][-1] = episode.terminated
    return records


def write_records(
    fitted: Fitted,
    streams: ReplayStreams,
    code: ActionCode,
    shown: Mapping[str, TensorSpec],
    defaults: Mapping[str, Tensor],
    advance: Callable[[int], Any] = lambda count: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Write every episode that is not in the streams yet.

    Args:
        fitted: the data set.
        streams: replay; its first records are those of this data set.
        code: of actions.
        shown: see :func:`records_of`.
        defaults: what every record has beside them, such as latents; without batch dimensions.
        advance: told how many episodes are in.
        stop: asked before each of them.

    Returns:
        Whether all are in.
    """
    done = sum(
        int(streams.get(streams.ids(s), keys=["is_init"])["is_init"].sum()) if len(streams.ids(s)) else 0
        for s in range(streams.num_streams)
    )
    advance(done)
    for index in range(done, len(fitted)):
        if stop():
            return False
        records = records_of(fitted, index, code, shown)
        for key, value in defaults.items():
            records.set(key, value.expand(len(records), *value.shape).clone())
        streams.extend(records, index % streams.num_streams)
        advance(1)
    return True


def as_tensor(values: np.ndarray) -> Tensor:
    """The same numbers, in this machine's order of bytes."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")))


def statistics(streams: ReplayStreams) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation of every number that is no picture, over all records of a replay.

    Of ``previous_action`` over those that an action led to. A spread of zero is given as one.

    >>> streams = ReplayStreams(num_streams=1, capacity=10)
    >>> init = torch.tensor([[True], [False], [False]])
    >>> values = torch.tensor([[0.0], [1.0], [3.0]])
    >>> _ = streams.extend(TensorDict({"speed": values, "is_init": init, "done": ~init}, [3]), stream=0)
    >>> statistics(streams)["speed"]["mean"]
    [1.3333333333333333]
    """
    keys = [
        f.key[0]
        for f in streams.fields()
        if f.dtype.is_floating_point
        and len(f.key) == 1
        and len(f.shape) == 1
        and f.key[0] not in ("state", "belief")
    ]
    count, total, square = {k: 0 for k in keys}, dict[str, Tensor](), dict[str, Tensor]()
    for stream in range(streams.num_streams):
        for ids in streams.ids(stream).split(CHUNK):
            if not len(ids):
                continue
            records = streams.get(ids, keys=[*keys, "is_init"])
            for key in keys:
                value = records[key].double()
                if key == "previous_action":
                    value = value[~records["is_init"].view(-1)]
                count[key] += len(value)
                total[key] = total.get(key, torch.zeros(())) + value.sum(0)
                square[key] = square.get(key, torch.zeros(())) + value.square().sum(0)
    found = {}
    for key in keys:
        mean = total[key] / max(count[key], 1)
        std = (square[key] / max(count[key], 1) - mean.square()).clamp_min(0).sqrt()
        found[key] = {"mean": mean.tolist(), "std": torch.where(std > 1e-8, std, torch.ones(())).tolist()}
    return found
