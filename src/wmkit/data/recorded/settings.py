"""The ``data`` block of a run: which data set, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from wmkit.arguments import check_arguments, check_range
from wmkit.errors import ConfigError


@dataclass(frozen=True)
class DataSettings:
    """What ``data.NAME=...`` can say.

    Attributes:
        path: a wmkit run, an HDF5 file or folder, a Zarr folder, one of Minari's or its id, one of LeRobot's.
        keys: observations that are learned from; None takes those that the environment shows, or all.
        rename: from keys of the data set to others.
        image_size: side to which images are resized; None leaves them.
        frame_skip: recorded steps that are one step of the model; rewards are added up.
        actions: of the actions inside such a step, the ``first``, or all of them as one ``block``.
        num_actions: how many choices whole numbers as actions are; None finds out.
        episodes: how many are read; None reads all.
        windows: ``within`` one episode, or ``across`` their borders, where every system begins anew.
        updates: from records alone; None is what ``training.steps`` of an environment would pay for.
        live: go on in the environment afterwards, for ``training.steps``.

    >>> DataSettings.read({"path": "runs/one", "frame_skip": 5, "actions": "block"}).frame_skip
    5
    >>> DataSettings.read({"path": "runs/one", "frame_skip": 0})
    Traceback (most recent call last):
    wmkit.errors.ConfigError: data.frame_skip is 0: wanted 1 or more...
    """

    path: str
    keys: Sequence[str] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    image_size: int | None = None
    frame_skip: int = 1
    actions: Literal["first", "block"] = "first"
    num_actions: int | None = None
    episodes: int | None = None
    windows: Literal["within", "across"] = "within"
    updates: int | None = None
    live: bool = False

    @classmethod
    def read(cls, block: Mapping[str, Any]) -> DataSettings:
        """The block as typed values.

        Raises:
            ConfigError: a key that is not here, or a value of another type or out of range.
        """
        if not isinstance(block, Mapping):
            raise ConfigError(f"data is {block!r}: wanted a mapping with path; write data=PATH")
        check_arguments(cls, block, "data")
        if not block.get("path"):
            raise ConfigError(
                f"data.path is {block.get('path')!r}: wanted a folder, a file or an id of Minari's; write "
                "data=PATH"
            )
        settings = cls(**block)
        for name in ("image_size", "frame_skip", "num_actions", "episodes", "updates"):
            if (value := getattr(settings, name)) is not None:
                check_range(f"data.{name}", value, 1)
        return settings

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Every key of the block."""
        return tuple(one.name for one in fields(cls))
