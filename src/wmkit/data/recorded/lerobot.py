"""LeRobot data sets of version 2 and 3, read from their folder: Parquet tables and videos.

version 2    data/chunk-000/episode_000007.parquet     videos/chunk-000/KEY/episode_000007.mp4
version 3    data/chunk-000/file-000.parquet           videos/KEY/chunk-000/file-000.mp4, of many episodes;
             meta/episodes/chunk-000/file-000.parquet says at which second of which file an episode begins

LeRobot's own package is not needed. Templates of paths in ``meta/info.json`` are not followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from wmkit.data.files import is_count, is_number, parse_json
from wmkit.data.recorded.contract import Column, Episode, library, reading, refused
from wmkit.data.recorded.pictures import Video, decode_all
from wmkit.data.recorded.tree import ENDS, REWARD, SIDE, known_as

INFO = "meta/info.json"
DTYPES = ("float32", "float64", "int64", "int32", "uint8", "bool")
COUNTED = "episode_index"


def is_lerobot(path: Path) -> bool:
    """Whether a folder is a data set of LeRobot's."""
    return (path / INFO).is_file()


class LeRobotSource:
    """Episodes of a LeRobot folder, behind the contract of :class:`~wmkit.data.recorded.contract.Source`.

    Args:
        path: of the folder.

    Raises:
        DataError: torn, of another version, or without actions.
        ConfigError: pyarrow is not installed; for videos, PyAV.
    """

    kind = "LeRobot"

    def __init__(self, path: Path) -> None:
        self.path, self._folder = str(path), path
        self._parquet = library("pyarrow.parquet", "LeRobot data sets")
        with reading(self.path, INFO):
            info = parse_json((path / INFO).read_bytes())
        features = info.get("features") if isinstance(info, dict) else None
        if not isinstance(features, dict) or not all(isinstance(one, dict) for one in features.values()):
            raise refused(self.path, f"'features' of {INFO}", features, "a mapping of keys", "restore it")
        version = str(info.get("codebase_version"))
        if not version.startswith(("v2.", "v3.")):
            raise refused(
                self.path, f"'codebase_version' of {INFO}", version, "v2.x or v3.x", "convert it by LeRobot"
            )
        self._packed = version.startswith("v3.")
        self._fps = info.get("fps")
        if not is_number(self._fps) or self._fps <= 0:
            raise refused(self.path, f"'fps' of {INFO}", self._fps, "frames a second", "restore it")
        self._names = {known_as(name): name for name in features if name not in SIDE}
        self._videos = {
            k for k, name in self._names.items() if features[name].get("dtype") in ("video", "image")
        }
        columns = {key: self._column(key, name, features[name]) for key, name in self._names.items()}
        self.observations = {key: column for key, column in sorted(columns.items()) if column is not None}
        if (
            "action" not in features
            or (action := self._column("action", "action", features["action"])) is None
        ):
            raise refused(self.path, f"'action' of {INFO}", features.get("action"), "numbers", "add actions")
        self.action = action
        self._reward = next((name for name in REWARD if name in features), None)
        self._end = next((name for name in ENDS if name in features), None)
        self.rewards = self._reward is not None
        self._table = lru_cache(2)(self._read_table)
        self._video = lru_cache(8)(Video)
        self._place = self._places()
        self.lengths = [stop - start for _, start, stop, _ in self._place]

    def _column(self, key: str, name: str, said: dict[str, Any]) -> Column | None:
        """What ``info.json`` says of a key; None of text."""
        shape, dtype = said.get("shape"), said.get("dtype")
        if dtype in ("video", "image"):
            if not isinstance(shape, list) or len(shape) != 3 or not all(is_count(n, 1) for n in shape):
                raise refused(self.path, f"'shape' of {name!r} in {INFO}", shape, "three sizes", "restore it")
            names = said.get("names")
            first = isinstance(names, list) and str(names[:1]).startswith(("['c", "['C"))
            if first or (shape[0] == 3 and shape[2] != 3):
                shape = [*shape[1:], shape[0]]
            return Column(key, (*shape[:2], 3), np.dtype(np.uint8))
        if dtype not in DTYPES:
            return None
        if not isinstance(shape, list) or not all(is_count(n, 1) for n in shape):
            raise refused(self.path, f"'shape' of {name!r} in {INFO}", shape, "a list of sizes", "restore it")
        return Column(key, tuple(shape), np.dtype(str(dtype)))

    # ------------------------------------------------------------------ where episodes lie

    def _places(self) -> list[tuple[Path, int, int, dict[str, Any]]]:
        """Table, first and last row of every episode, and its row of ``meta/episodes``."""
        said = self._told() if self._packed else {}
        found = []
        tables = sorted(self._folder.glob("data/chunk-*/*.parquet"))
        if not tables:
            raise refused(self.path, "the whole", "no data/chunk-*/*.parquet", "its tables", "copy it anew")
        for file in tables:
            with reading(str(file), f"key {COUNTED!r}"):
                column = self._parquet.read_table(file, columns=[COUNTED]).column(0)
                numbers = column.to_numpy().astype(np.int64)
            cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
            for start, stop in pairwise(cuts):
                if stop - start < 2:
                    what = f"episode {numbers[start] if stop else 'none'}"
                    raise refused(str(file), what, f"{stop - start} rows", "2 or more", "leave it out")
                number = int(numbers[start])
                found.append((file, start, stop, {COUNTED: number, **said.get(number, {})}))
        numbers_found = [place[3][COUNTED] for place in found]
        if len(set(numbers_found)) < len(found):
            raise refused(
                self.path, f"key {COUNTED!r}", "one in two places", "every episode once", "restore it"
            )
        return sorted(found, key=lambda place: place[3][COUNTED])

    def _told(self) -> dict[int, dict[str, Any]]:
        told: dict[int, dict[str, Any]] = {}
        for file in sorted(self._folder.glob("meta/episodes/chunk-*/*.parquet")):
            with reading(str(file), "the whole"):
                table = self._parquet.read_table(file)
                names = [n for n in table.column_names if n == COUNTED or n.startswith("videos/")]
                for row in table.select(names).to_pylist():
                    told[int(row[COUNTED])] = row
        return told

    def _read_table(self, file: Path) -> Any:
        with reading(str(file), "the whole"):
            return self._parquet.read_table(file)

    # ------------------------------------------------------------------ reading

    def episode(self, index: int, keys: Sequence[str] | None = None) -> Episode:
        """One episode, read now."""
        chosen = [key for key in self.observations if keys is None or key in keys]
        seen = {key: self._read(index, key) for key in chosen}
        rewards = (
            None if self._reward is None else self._numbers(index, self._reward, (), np.dtype(np.float32))
        )
        ended = self._end is not None and bool(self._numbers(index, self._end, (), np.dtype(bool))[-1])
        return Episode(seen, self.actions(index), rewards, ended)

    def actions(self, index: int) -> np.ndarray:
        """The actions of one episode."""
        return self._numbers(index, "action", self.action.shape, self.action.dtype)

    def _read(self, index: int, key: str) -> np.ndarray:
        name, column = self._names[key], self.observations[key]
        if key not in self._videos:
            return self._numbers(index, name, column.shape, column.dtype)
        file, start, stop, said = self._place[index]
        table = self._table(file)
        what = f"key {name!r} of episode {said[COUNTED]}"
        if name in table.column_names:
            with reading(str(file), what):
                cells = table.column(name).slice(start, stop - start).to_pylist()
                pictures = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
            if any(not isinstance(one, bytes) for one in pictures):
                raise refused(
                    str(file), what, "paths of other files", "pictures in the table", "convert it by LeRobot"
                )
            images = decode_all(pictures, str(file), what)
        else:
            video, first = self._where(name, said)
            images = self._video(video).read(first, stop - start)
        if images.shape[1:] != column.shape:
            raise refused(
                self.path, what, f"{list(images.shape[1:])}", f"{list(column.shape)} of {INFO}", "restore it"
            )
        return images

    def _where(self, name: str, said: dict[str, Any]) -> tuple[Path, int]:
        """The video of an episode and its first frame there."""
        number = said[COUNTED]
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise refused(self.path, f"key {name!r}", "a path", "a name", "restore it")
        if not self._packed:
            found = sorted(self._folder.glob(f"videos/chunk-*/{name}/episode_{number:06d}.mp4"))
            if not found:
                raise refused(
                    self.path, f"key {name!r} of episode {number}", "no video", "one", "copy it anew"
                )
            return found[0], 0
        chunk, file, begin = (
            said.get(f"videos/{name}/{one}") for one in ("chunk_index", "file_index", "from_timestamp")
        )
        if not is_count(chunk) or not is_count(file) or not is_number(begin):
            found_words = f"chunk {chunk}, file {file}, second {begin}"
            raise refused(
                self.path,
                f"videos/{name} of episode {number} in meta/episodes",
                found_words,
                "numbers",
                "restore it",
            )
        return self._folder / f"videos/{name}/chunk-{chunk:03d}/file-{file:03d}.mp4", round(begin * self._fps)

    def _numbers(self, index: int, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        file, start, stop, said = self._place[index]
        what = f"key {name!r} of episode {said[COUNTED]}"
        table = self._table(file)
        if name not in table.column_names:
            raise refused(str(file), what, f"the keys {', '.join(table.column_names)}", name, "restore it")
        with reading(str(file), what):
            column = table.column(name).slice(start, stop - start)
            if column.null_count:
                raise refused(
                    str(file), what, f"{column.null_count} rows without a value", "numbers", "leave it out"
                )
            chunk = column.combine_chunks()
            while hasattr(chunk, "flatten") and hasattr(chunk.type, "value_type"):
                chunk = chunk.flatten()
            values = np.asarray(chunk.to_numpy(zero_copy_only=False))
        wanted = (stop - start) * int(np.prod(shape, dtype=np.int64))
        if values.dtype.kind not in "biuf" or values.size != wanted:
            found = f"{values.size} values of {values.dtype}"
            raise refused(str(file), what, found, f"{wanted} of {dtype}, as {INFO} says", "restore it")
        return values.astype(dtype).reshape(stop - start, *shape)
