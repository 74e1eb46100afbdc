"""A data set as a run reads it: chosen keys, renamed, pictures turned and resized, steps skipped.

With ``frame_skip`` k one step of the model is k recorded ones; ``block`` joins their actions::

    recorded    o0 a0 o1 a1 o2 a2 o3 a3 o4            k = 2
    model       o0  (a0 a1)  o2  (a2 a3)  o4          rewards of the steps in between are added up

What does not fill the last block is left out; where the episode came to a true end it is kept, and actions
that were never taken are zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wmkit.data.recorded.contract import Column, Episode, Source, refused
from wmkit.data.recorded.pictures import resized
from wmkit.data.recorded.settings import DataSettings
from wmkit.errors import ConfigError


class Fitted:
    """A source after the ``data`` block, behind the same contract; every episode has one action less than
    observations.

    Args:
        source: as it lies there.
        settings: of the run.
        keys: observations that are read, by their new names; None reads all.

    Raises:
        DataError: a key is not there.
        ConfigError: a name is given twice.
    """

    def __init__(self, source: Source, settings: DataSettings, keys: Sequence[str] | None = None) -> None:
        self.path, self.kind, self.rewards = source.path, source.kind, source.rewards
        self._source, self._settings = source, settings
        names = {settings.rename.get(key, key): key for key in source.observations}
        if len(names) < len(source.observations) or (
            unknown := sorted({*settings.rename} - {*source.observations})
        ):
            found = ", ".join(unknown) if len(names) == len(source.observations) else "two keys of one name"
            raise ConfigError(
                f"data.rename does not fit: found {found}, wanted other names for some of "
                f"{', '.join(source.observations)}; correct data.rename"
            )
        chosen = keys if settings.keys is None else settings.keys
        chosen = list(names) if chosen is None else list(chosen)
        if missing := [key for key in chosen if key not in names]:
            raise refused(
                source.path,
                f"key {missing[0]!r}",
                f"only {', '.join(names)}",
                "it",
                "say which it is by data.rename={OLD: NEW}, or what is learned from by data.keys=[KEY]",
            )
        self._names = {key: names[key] for key in chosen}
        self._turned = {key: _is_turned(source.observations[name].shape) for key, name in self._names.items()}
        self._bytes = {key for key, name in self._names.items() if self._is_of_bytes(name)}
        self.observations = {key: self._column(key, name) for key, name in self._names.items()}
        self.action = self._action(source.action)
        self.count = min(settings.episodes or len(source.lengths), len(source.lengths))
        skip = settings.frame_skip
        self.lengths = [-(-length // skip) + 1 for length in source.lengths[: self.count]]  # at most

    def _is_of_bytes(self, name: str) -> bool:
        """Whether a picture's floats count from 0 to 255, as its first one shows."""
        column = self._source.observations[name]
        if column.dtype.kind != "f" or len(column.shape) != 3:
            return False
        first = self._source.episode(0, [name]).observations[name][0]
        return bool(first.max() > 1 and first.min() >= 0 and first.max() <= 255)

    def _column(self, key: str, name: str) -> Column:
        column, size = self._source.observations[name].named(key), self._settings.image_size
        if key in self._bytes:
            column = replace(column, dtype=np.dtype(np.uint8))
        shape = column.shape
        if len(shape) == 3:
            height, width, channels = shape if self._turned[key] else (*shape[1:], shape[0])
            if size is not None and column.dtype == np.uint8:
                height = width = size
            return replace(column, shape=(channels, height, width))
        return replace(column, shape=shape or (1,)) if column.classes is None else column

    def _action(self, action: Column) -> Column:
        settings = self._settings
        if settings.actions == "first" or settings.frame_skip == 1:
            return action
        if action.classes is not None or action.dtype.kind != "f":
            raise refused(
                self.path,
                "key 'action'",
                f"choices ({action})",
                "numbers, to join them in blocks",
                "set data.actions=first",
            )
        width, times = int(np.prod(action.shape)), settings.frame_skip

        def repeated(bound: np.ndarray | None) -> np.ndarray | None:
            return None if bound is None else np.tile(np.broadcast_to(bound, action.shape).reshape(-1), times)

        return replace(action, shape=(width * times,), low=repeated(action.low), high=repeated(action.high))

    def __len__(self) -> int:
        return self.count

    def actions(self, index: int) -> np.ndarray:
        """The actions of one episode as the model sees them, the last partial block apart."""
        actions, full = self._source.actions(index), self._source.lengths[index] - 1
        return self._blocks(actions[:full], False)

    def episode(self, index: int, keys: Sequence[str] | None = None) -> Episode:
        """One episode.

        Raises:
            DataError: NaN, infinity, or as many actions as there cannot be.
        """
        chosen = {key: name for key, name in self._names.items() if keys is None or key in keys}
        found = self._source.episode(index, list(chosen.values()))
        n, m = len(found), len(found.actions)
        actions, rewards, seen = found.actions, found.rewards, found.observations
        if rewards is not None and len(rewards) == n and np.isnan(rewards[0]):  # written on arrival
            rewards = np.append(rewards[1:], rewards[-1:] * 0)[:m]
        if m == n and actions.dtype.kind == "f" and np.isnan(actions[-1]).any():  # none was taken there
            actions, m = actions[:-1], m - 1
            rewards = None if rewards is None else rewards[:m]
        if m == n and found.terminated:  # nobody wrote what was seen at the end
            seen = {name: np.concatenate([value, value[-1:]]) for name, value in seen.items()}
        elif m == n:  # what the last action led to is not known
            actions, rewards = actions[:-1], None if rewards is None else rewards[:-1]
        elif m != n - 1:
            raise refused(
                self.path,
                f"episode {index}",
                f"{m} actions and {n} observations",
                f"{n - 1} or {n}",
                "mend it",
            )
        self._check_finite(index, seen, actions, rewards)
        skip, steps = self._settings.frame_skip, len(actions)
        blocks = -(-steps // skip) if found.terminated else steps // skip
        at = np.minimum(np.arange(blocks + 1) * skip, steps)
        summed = None
        if rewards is not None:
            padded = np.zeros(blocks * skip, np.float64)
            padded[: min(steps, blocks * skip)] = rewards[: blocks * skip]
            summed = padded.reshape(blocks, skip).sum(1)
        return Episode(
            {
                key: self._picture(key, seen[name][at] if skip > 1 else seen[name])
                for key, name in chosen.items()
            },
            self._blocks(actions, found.terminated),
            summed,
            found.terminated,
        )

    def _blocks(self, actions: np.ndarray, rest: bool) -> np.ndarray:
        skip = self._settings.frame_skip
        if skip == 1:
            return actions
        blocks = -(-len(actions) // skip) if rest else len(actions) // skip
        if self._settings.actions == "first":
            return actions[::skip][:blocks]
        whole = np.zeros((blocks * skip, *actions.shape[1:]), actions.dtype)
        whole[: min(len(actions), len(whole))] = actions[: len(whole)]
        return whole.reshape(blocks, -1)

    def _picture(self, key: str, value: np.ndarray) -> np.ndarray:
        if value.ndim != 4:
            return value.reshape(len(value), *self.observations[key].shape)
        size = self._settings.image_size
        if key in self._bytes:
            if value.min() < 0 or value.max() > 255:
                found = f"{value.min():g} to {value.max():g}"
                raise refused(self.path, f"picture {key!r}", found, "0 to 255, as in its first", "mend it")
            value = np.rint(value).astype(np.uint8)
        if not self._turned[key]:
            value = np.moveaxis(value, 1, -1)
        if size is not None and value.dtype == np.uint8:
            value = resized(value, size)
        return np.ascontiguousarray(np.moveaxis(value, -1, 1))

    def _check_finite(
        self, index: int, seen: dict[str, np.ndarray], actions: np.ndarray, rewards: np.ndarray | None
    ) -> None:
        rest = {"action": actions} | ({} if rewards is None else {"reward": rewards})
        for name, value in (seen | rest).items():
            if value.dtype.kind != "f":
                continue
            wrong = ~np.isfinite(value).reshape(len(value), -1).all(1)
            if wrong.any():
                row = int(wrong.argmax())
                found = f"{value[row].reshape(-1)[~np.isfinite(value[row].reshape(-1))][0]} in row {row}"
                raise refused(
                    self.path,
                    f"key {name!r} of episode {index}",
                    found,
                    "finite numbers",
                    "mend that row, or leave the episode out",
                )


def _is_turned(shape: Sequence[int]) -> bool:
    """Whether a picture has its channels last.

    >>> _is_turned((64, 64, 3)), _is_turned((3, 64, 64)), _is_turned((4,))
    (True, False, False)
    """
    return len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4)
