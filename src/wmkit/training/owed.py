"""Lines of episodes whose last records are on their way to replay: each is written once, whenever a run dies.

An episode's line belongs to the record that ends it. Were it written before or after the record, a process
killed in between would leave one without the other. So it is promised first::

    .episodes.owed   the lines, and how many steps each one's stream will have when its record is there
    replay           the records
    episodes.jsonl   the lines
    .episodes.owed   goes

A run that is taken up again keeps the promises whose records arrived, and forgets the others.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from wmkit.data.files import is_count, need, read_json

NAME, LINES, ADVICE = ".episodes.owed", "episodes.jsonl", "delete it; the last episodes then lack their lines"


class Owed(NamedTuple):
    """One line, the stream of its record, and that stream's steps when the record is there."""

    stream: int
    steps: int
    line: Mapping[str, Any]


class Log(Protocol):
    """What is used of a :class:`~wmkit.training.run.RunDirectory`."""

    path: Path

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Append one line."""

    def mended(self, name: str) -> int:
        """Cut a half-written last line off; the size then."""


@contextmanager
def owing(run: Log, lines: Sequence[Owed]) -> Iterator[None]:
    """Promise lines, run the block that writes their records, and write them."""
    if not lines:
        yield
        return
    promise = {"after": run.mended(LINES), "lines": [owed._asdict() for owed in lines]}
    temporary = run.path / f"{NAME}.tmp"
    temporary.write_text(json.dumps(promise), encoding="utf-8")
    temporary.replace(run.path / NAME)
    yield
    for owed in lines:
        run.append(LINES, owed.line)
    (run.path / NAME).unlink()


def settle(run: Log, steps: Sequence[int]) -> None:
    """Keep what a killed process had promised.

    Args:
        run: taken up again.
        steps: of each stream of its replay.

    Raises:
        CheckpointError: the promise cannot be read.
    """
    path = run.path / NAME
    if not path.exists():
        return
    promise = read_json(path, ADVICE)
    fits = (
        isinstance(promise, dict)
        and is_count(promise.get("after"))
        and isinstance(promise.get("lines"), list)
    )
    need(fits and all(map(_is_owed, promise["lines"])), repr(str(path)), promise, "lines of episodes", ADVICE)
    lines = run.path / LINES
    written = Counter(lines.read_bytes()[promise["after"] :].splitlines() if lines.is_file() else ())
    for owed in promise["lines"]:
        text = json.dumps(owed["line"]).encode()
        if written[text]:
            written[text] -= 1
        elif owed["stream"] < len(steps) and steps[owed["stream"]] >= owed["steps"]:
            run.append(LINES, owed["line"])
    path.unlink()


def _is_owed(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.keys() != set(Owed._fields):
        return False
    return is_count(entry["stream"]) and is_count(entry["steps"]) and isinstance(entry["line"], dict)
