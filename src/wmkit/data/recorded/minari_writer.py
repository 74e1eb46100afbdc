"""Episodes written as a data set of Minari's, in its HDF5 form, which Minari and wmkit both read.

    FOLDER/data/main_data.hdf5    episode_0/observations, actions, rewards, terminations, truncations, infos
    FOLDER/data/metadata.json     spaces, counts, where it came from

The folder appears when all is written; until then it has a dot before its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wmkit.data.recorded.contract import Episode, library
from wmkit.data.recorded.minari_sets import MAIN, METADATA
from wmkit.errors import ConfigError

VERSION = "0.5.0"  # of Minari, whose layout this is


@dataclass(frozen=True)
class Space:
    """One array of a space: numbers between bounds, or one of ``classes`` choices."""

    shape: tuple[int, ...]
    dtype: str
    low: Any = None
    high: Any = None
    classes: int | None = None

    def json(self) -> dict[str, Any]:
        """As Minari's metadata say it."""
        if self.classes is not None:
            return {"type": "Discrete", "dtype": "int64", "start": 0, "n": self.classes}
        low, high = (np.broadcast_to(np.asarray(b), self.shape).tolist() for b in (self.low, self.high))
        return {"type": "Box", "dtype": self.dtype, "shape": list(self.shape), "low": low, "high": high}


@dataclass
class Recording:
    """An episode and what is kept beside it.

    Attributes:
        episode: with ``n`` observations and ``n - 1`` actions and rewards.
        truncated: whether a limit of time ended it.
        seed: of its world.
        infos: ``[n, ...]`` by key, of which nothing is learned.
    """

    episode: Episode
    truncated: bool
    seed: int | None = None
    infos: Mapping[str, np.ndarray] = field(default_factory=dict)


class MinariWriter:
    """Writes one data set, episode by episode.

    Args:
        folder: that it becomes.
        observations: spaces by key.
        action: its space.
        about: what else ``metadata.json`` says.

    Raises:
        ConfigError: the folder is there already, or h5py is not installed.
    """

    def __init__(
        self, folder: Path, observations: Mapping[str, Space], action: Space, about: Mapping[str, Any]
    ) -> None:
        if os.path.lexists(folder):
            raise ConfigError(
                f"{str(folder)!r} is taken: found it there, wanted a new folder; choose another --out"
            )
        self._h5py = library("h5py", "data sets of Minari's")
        self.folder, self._hidden = folder, folder.with_name(f".{folder.name}.{os.getpid()}")
        self.episodes = self.steps = 0
        whole = {"type": "Dict", "subspaces": {key: space.json() for key, space in observations.items()}}
        self._said = {
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "minari_version": VERSION,
            "dataset_id": f"wmkit/{folder.name}-v0",
            "observation_space": json.dumps(whole),
            "action_space": json.dumps(action.json()),
            **about,
        }
        (self._hidden / "data").mkdir(parents=True)
        self._file = self._h5py.File(self._hidden / "data" / MAIN, "w", track_order=True)

    def write(self, recording: Recording) -> None:
        """Append an episode."""
        group, episode = self._file.create_group(f"episode_{self.episodes}"), recording.episode
        steps = len(episode.actions)
        group.attrs["id"], group.attrs["total_steps"] = self.episodes, steps
        if recording.seed is not None:
            group.attrs["seed"] = recording.seed
        ends = np.zeros(steps, bool)
        late = ends.copy()
        ends[-1], late[-1] = episode.terminated, recording.truncated
        rewards = np.zeros(steps, np.float32) if episode.rewards is None else episode.rewards
        arrays = {"actions": episode.actions, "rewards": rewards, "terminations": ends, "truncations": late}
        arrays |= {f"observations/{key}": value for key, value in episode.observations.items()}
        arrays |= {f"infos/{key}": value for key, value in recording.infos.items()}
        for name, value in arrays.items():
            small = value.ndim < 3
            more = (
                {}
                if small
                else {"chunks": (1, *value.shape[1:]), "compression": "gzip", "compression_opts": 1}
            )
            group.create_dataset(name, data=value, **more)
        self.episodes += 1
        self.steps += steps

    def close(self) -> None:
        """Make the data set appear; one without episodes leaves nothing."""
        self._file.close()
        if not self.episodes:
            self.withdraw()
            return
        said = self._said | {"total_episodes": self.episodes, "total_steps": self.steps}
        (self._hidden / "data" / METADATA).write_text(json.dumps(said), encoding="utf-8")
        self._hidden.rename(self.folder)

    def withdraw(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        for path in ((self._hidden / "data" / MAIN), (self._hidden / "data"), self._hidden):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
