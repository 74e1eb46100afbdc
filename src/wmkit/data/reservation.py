"""The place of a whole replay on its disk, set aside ring by ring before it is written.

A stream has a ring of records, and all streams together one for each sparse group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wmkit.data.storage import Column, Room


class Reservation:
    """Rings and how far each has its place.

    Args:
        dense: columns of the streams, one ring of ``capacity`` rows after another.
        capacity: records of each stream.
        begin: position of the oldest record of each stream.
        sparse: columns of each group that is stored; empty for the others, in the order of ``used``.
        sizes: entries of each group.
        used: entries that were ever written to each group.

    >>> Reservation([], 8, [0, 0], {}, {}, []).ensure(stream=0, end=3)
    """

    def __init__(
        self,
        dense: Sequence[Column],
        capacity: int,
        begin: Sequence[int],
        sparse: Mapping[str, Sequence[Column]],
        sizes: Mapping[str, int],
        used: Sequence[int],
    ) -> None:
        self._streams = [
            Room(dense, stream * capacity, capacity, first) for stream, first in enumerate(begin)
        ]
        self._groups = [
            Room(columns, 0, sizes[name], max(0, count - sizes[name])) if columns else None
            for (name, columns), count in zip(sparse.items(), used, strict=True)
        ]

    def ensure(self, stream: int, end: int, used: Sequence[int] = ()) -> None:
        """Set aside the place of a stream's records before ``end``, and of as many entries of each group.

        Raises:
            CheckpointError: the disk has no more; nothing that was written is lost.
        """
        self._streams[stream].ensure(end)
        for room, count in zip(self._groups, used, strict=False):
            if room is not None:
                room.ensure(count)
