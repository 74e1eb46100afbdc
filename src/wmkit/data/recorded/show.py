"""What a data set holds, in lines and as a strip of frames: ``wmkit data info``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from wmkit.data.recorded.contract import Column
from wmkit.data.recorded.find import open_recorded
from wmkit.data.recorded.fit import Fitted
from wmkit.data.recorded.settings import DataSettings

FRAMES = 12


def describe(path: str) -> Iterator[tuple[str, str]]:
    """Names and findings: format, keys with shapes and dtypes, lengths of episodes.

    Args:
        path: of the data set, or its id.

    Raises:
        DataError: it cannot be read.
    """
    source = open_recorded(path)
    yield "data set", source.path
    yield "format", source.kind
    lengths = source.lengths
    yield (
        "episodes",
        f"{len(lengths):,}, of {min(lengths):,} to {max(lengths):,} records, median {median(lengths):g}",
    )
    yield "records", f"{sum(lengths):,}"
    for key, column in source.observations.items():
        yield key, _words(column)
    yield "action", _words(source.action)
    yield "reward", "yes" if source.rewards else "none: learned from as 0"
    first = source.episode(0)
    yield "first episode", "ends truly" if first.terminated else "ends by a limit of time, or is cut"


def _words(column: Column) -> str:
    found = f"{column.dtype} {list(column.shape)}"
    if column.classes is not None:
        return f"{found}, one of {column.classes}"
    if column.low is not None and column.high is not None and np.isfinite([column.low, column.high]).all():
        return f"{found}, from {column.low.min():g} to {column.high.max():g}"
    return f"{found}, as replay holds them" if column.encoded else found


def write_strip(path: str, where: Path) -> bool:
    """A picture of evenly spaced frames of the first episode, a row for each picture key.

    Returns:
        Whether there was any.
    """
    fitted = Fitted(open_recorded(path), DataSettings(path))
    keys = [key for key, c in fitted.observations.items() if len(c.shape) == 3 and c.dtype == np.uint8]
    if not keys:
        return False
    seen = fitted.episode(0, keys).observations
    rows = []
    for key in keys:
        at = np.linspace(0, len(seen[key]) - 1, FRAMES).round().astype(int)
        frames = np.moveaxis(seen[key][at], 1, -1)[..., :3]  # [F, H, W, C]
        rows.append(np.concatenate(list(np.broadcast_to(frames, (*frames.shape[:3], 3))), 1))
    width = max(row.shape[1] for row in rows)
    whole = [np.pad(row, ((0, 2), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    where.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(whole)).save(where)
    return True
