"""Reading files that somebody else may have written: JSON, and what is asked of a value in it.

Whoever reads says in one sentence which file and key, what was found, what was wanted, and what to do.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from wmkit.errors import CheckpointError

LARGEST = 2**62  # of a count: twice of it is an int64 still


def need(fits: bool, thing: str, found: Any, wanted: str, advice: str) -> None:
    """Refuse a value.

    Args:
        fits: whether it is as wanted.
        thing: file and key.
        found: the value, shortened where it is long.
        wanted: in words.
        advice: what to do.

    Raises:
        CheckpointError: it is not as wanted.

    >>> need(False, "schema.json: 'capacity'", -1, "a whole number", "restore the file")
    Traceback (most recent call last):
    wmkit.errors.CheckpointError: schema.json: 'capacity' does not fit: found -1, wanted a whole number; ...
    """
    if not fits:
        raise CheckpointError(f"{thing} does not fit: found {brief(found)}, wanted {wanted}; {advice}")


def parse_json(text: str | bytes) -> Any:
    """JSON as the standard has it: without NaN and infinity.

    Raises:
        ValueError: it is none, or nested too deeply.
    """

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path, advice: str) -> Any:
    """The contents of a JSON file.

    Raises:
        CheckpointError: it cannot be read, or holds no JSON.
    """
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else brief(str(error))
        raise CheckpointError(
            f"{str(path)!r} cannot be read: found {why}, wanted the JSON that wmkit writes; {advice}"
        ) from error


def is_count(value: Any, least: int = 0, most: int = LARGEST) -> bool:
    """Whether a value is a whole number in a range.

    >>> is_count(3), is_count(True), is_count(3.0), is_count(-1)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def brief(value: Any) -> str:
    """A value in a few words on one line."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # a number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
