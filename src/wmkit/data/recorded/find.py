"""Which format a path or an id is of."""

from __future__ import annotations

from pathlib import Path

from wmkit.data.recorded.contract import Source
from wmkit.data.recorded.hdf5 import ENDINGS, files_of, open_hdf5
from wmkit.data.recorded.lerobot import LeRobotSource, is_lerobot
from wmkit.data.recorded.minari_sets import find_minari, local_folder, open_minari
from wmkit.data.recorded.replay import ReplaySource, find_replay
from wmkit.data.recorded.zarr_folder import is_zarr, open_zarr
from wmkit.errors import DataError

WANTED = (
    f"a wmkit run, a file or folder of HDF5 ({', '.join(ENDINGS)}), a Zarr folder, a data set of Minari's or "
    "a LeRobot folder"
)


def open_recorded(path: str | Path) -> Source:
    """The data set at a path, or of an id among those that Minari has downloaded.

    Args:
        path: of a folder or file; or an id, such as ``D4RL/pen/human-v2``.

    Raises:
        DataError: nothing lies there, of no known format, or torn.
        ConfigError: a package that its format needs is not installed.
        CheckpointError: it is a run's replay and damaged.

    >>> open_recorded("nowhere/at-all-v0")
    Traceback (most recent call last):
    wmkit.errors.DataError: data set 'nowhere/at-all-v0' is not there: found nothing of that path or id, ...
    """
    where = Path(path)
    try:
        there = where.exists()
        if (
            not there
            and (local_folder() / where).is_dir()
            and not where.is_absolute()
            and ".." not in where.parts
        ):
            where, there = local_folder() / where, True
    except (OSError, ValueError) as error:
        raise DataError(
            f"data set {str(path)[:60]!r} cannot be looked for: found {error}, wanted {WANTED}; correct data"
        ) from error
    if not there:
        raise DataError(
            f"data set {str(path)!r} is not there: found nothing of that path or id, wanted {WANTED}; "
            f"correct data, or fetch it (minari download {path})"
        )
    if (replay := find_replay(where)) is not None:
        return ReplaySource(replay)
    if (minari := find_minari(where)) is not None:
        return open_minari(minari)
    if is_lerobot(where):
        return LeRobotSource(where)
    if is_zarr(where):
        return open_zarr(where)
    if files_of(where):
        return open_hdf5(where)
    found = (
        "a file" if where.is_file() else "a folder of " + (", ".join(sorted(_names(where))[:5]) or "nothing")
    )
    raise DataError(
        f"data set {str(path)!r} is of no known format: found {found}, wanted {WANTED}; convert it"
    )


def _names(folder: Path) -> list[str]:
    try:
        return [one.name for one in folder.iterdir()]
    except OSError:
        return []
