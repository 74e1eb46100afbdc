"""Recorded data: data sets of other tools, and of wmkit's own runs, to learn from without an environment.

contract.py       what every format is read as; errors
settings.py       the ``data`` block of a run
find.py           which format a path or an id is of
tree.py           layouts of arrays in groups: HDF5 and Zarr
hdf5.py           HDF5 files and folders of them
zarr_folder.py    Zarr folders
minari_sets.py    Minari's data sets, from the disk
minari_writer.py  the same, written
lerobot.py        LeRobot's folders: Parquet and videos
replay.py         a wmkit run's own replay
pictures.py       JPEG, PNG, videos; resizing
fit.py            keys, names, sizes, frame skip and blocks of actions
convert.py        episodes to records in a replay, statistics
"""

from __future__ import annotations

from wmkit.data.recorded.contract import Column, Episode, Source
from wmkit.data.recorded.find import open_recorded
from wmkit.data.recorded.fit import Fitted
from wmkit.data.recorded.settings import DataSettings

__all__ = ["Column", "DataSettings", "Episode", "Fitted", "Source", "open_recorded"]
