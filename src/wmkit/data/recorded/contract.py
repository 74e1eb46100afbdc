"""What every format of recorded data is read as: episodes of equal keys.

A :class:`Source` says which keys it has and how long its episodes are, and hands out one episode at a time::

    observations   o0  o1  o2  ...  o(n-1)        n of every key
    actions        a0  a1  a2  ...                n - 1, or n where nobody wrote what the last one led to
    rewards        r1  r2  r3  ...                as many as actions: what action t was paid

Nothing in a data set is executed and no path that it names is followed. What does not fit is a
:class:`~wmkit.errors.DataError`: file, key, what was found, what was wanted, what to do.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from wmkit.data.files import brief
from wmkit.errors import ConfigError, DataError, WmkitError

LARGEST_EPISODE = 2**33  # bytes of one key that are read at once
NUMBERS = "biuf"  # kinds of NumPy's dtypes that are read


@dataclass(frozen=True)
class Column:
    """One key of a data set.

    Attributes:
        key: of an observation, or ``action``.
        shape: of one step.
        dtype: as it is stored.
        classes: how many values it has, where the data set says that these are choices.
        low: smallest values, where the data set says so; they broadcast to ``shape``.
        high: largest values.
        encoded: of actions, one-hot or in [-1, 1] already, as replay holds them.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    classes: int | None = None
    low: np.ndarray | None = field(default=None, compare=False)
    high: np.ndarray | None = field(default=None, compare=False)
    encoded: bool = False

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    def named(self, key: str) -> Column:
        """The same under another key."""
        return replace(self, key=key)


@dataclass
class Episode:
    """One episode, see above.

    Attributes:
        observations: ``[n, ...]`` by key.
        actions: ``[n - 1, ...]`` or ``[n, ...]``.
        rewards: as many; None where the data set has none.
        terminated: whether it came to a true end, not to a limit of time.
    """

    observations: dict[str, np.ndarray]
    actions: np.ndarray
    rewards: np.ndarray | None
    terminated: bool

    def __len__(self) -> int:
        return len(next(iter(self.observations.values())))


class Source(Protocol):
    """The contract of a format's reader.

    Attributes:
        path: of the data set, for messages.
        kind: of the format, in words.
        observations: keys of an observation.
        action: of one step.
        rewards: whether there are any.
        lengths: observations of each episode.
    """

    path: str
    kind: str
    observations: dict[str, Column]
    action: Column
    rewards: bool
    lengths: list[int]

    def episode(self, index: int, keys: Sequence[str] | None = None) -> Episode:
        """One episode, with some of its observations or all."""

    def actions(self, index: int) -> np.ndarray:
        """The actions of one episode alone."""


def refused(path: str, key: str, found: Any, wanted: str, advice: str) -> DataError:
    """The error for what does not fit.

    Args:
        path: of the file or data set.
        key: in it, in words.
        found: in words, or a value.
        wanted: in words.
        advice: what to do.

    >>> print(refused("runs/a.h5", "key 'actions' of episode 3", "4 rows", "7 or 8", "drop that episode"))
    data set 'runs/a.h5', key 'actions' of episode 3: found 4 rows, wanted 7 or 8; drop that episode
    """
    text = found if isinstance(found, str) else brief(found)
    return DataError(f"data set {path!r}, {key}: found {text}, wanted {wanted}; {advice}")


@contextmanager
def reading(path: str, what: str) -> Iterator[None]:
    """Turn what a format's library raises about a broken file into one sentence.

    Raises:
        DataError: anything but wmkit's own errors and an interrupt.
    """
    try:
        yield
    except WmkitError:
        raise
    except MemoryError as error:
        raise refused(path, what, "more than this memory holds", "a smaller one", "split it") from error
    except Exception as error:  # a torn file makes libraries raise anything
        words = " ".join(str(error).split())[:160] or "no words"
        found = f"{type(error).__name__}: {words}"
        raise refused(
            path, what, found, "a whole file of its format", "restore it, or copy it anew"
        ) from error


def library(module: str, what: str) -> Any:
    """A package of the extra ``data``.

    Raises:
        ConfigError: it is not installed.

    >>> library("a_package_that_is_not_there", "HDF5 files")
    Traceback (most recent call last):
    wmkit.errors.ConfigError: HDF5 files cannot be read: found no module 'a_package_that_is_not_there', ...
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = getattr(error, "name", None) or module
        raise ConfigError(
            f"{what} cannot be read: found no module {missing!r}, wanted the extra 'data'; "
            'pip install "wmkit[data]"'
        ) from error
