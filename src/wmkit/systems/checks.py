"""Validate batches and, at build time, everything about them that is already known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase

from wmkit.errors import ConfigError, SpecError
from wmkit.systems.spaces import Spaces

_FLAGS = ("is_init", "terminated")


def check_window(length: int, objectives: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` unless ``length`` records are enough for everything that reads a window.

    A part states the shortest window it accepts in ``shortest``.
    """
    read = {f"objectives.{name}": objective for name, objective in objectives.items()} | dict(parts)
    wanted = {name: getattr(part, "shortest", 1) for name, part in read.items()}
    name = max(wanted, key=lambda part: wanted[part])
    if length < wanted[name]:
        raise ConfigError(
            f"batch.length is {length}: wanted {wanted[name]} or more, as {name} needs; correct batch.length"
        )


def check_names(terms: Mapping[str, Sequence[str]], spaces: Spaces) -> None:
    """Refuse names of loss terms that are given twice.

    Args:
        terms: of each part that gives losses, by its place.
        spaces: whose observations give a term each where they are decoded.

    Raises:
        SpecError: an observation has the name of another term.
        ConfigError: two parts give terms of one name.
    """
    found = [(name, place) for place, names in terms.items() for name in names]
    for name, count in Counter(name for name, _ in found).items():
        if count == 1:
            continue
        places = ", ".join(dict.fromkeys(place for other, place in found if other == name))
        if name in spaces.shapes:
            others = sorted({other for other, _ in found if other not in spaces.shapes})
            raise SpecError(
                f"observation {name!r} has the name of a loss term of {places}: found it beside "
                f"{', '.join(others)}, wanted another one; rename it in the environment"
            )
        raise ConfigError(
            f"loss term {name!r} is given {count} times by {places}: wanted one of each name; leave one out"
        )


def check_batch(batch: TensorDictBase, spaces: Spaces) -> None:
    """Raise :class:`SpecError` unless ``batch`` is a ``[B, T]`` sequence of the system's records."""
    if batch.ndim != 2:
        raise SpecError(
            f"the batch has batch size {list(batch.batch_size)}: wanted [B, T]; reshape the sample to "
            "sequences first (batch.reshape(B, T))"
        )
    lead = tuple(batch.batch_size)
    wanted: dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]] = {
        key: (spaces.shapes[key], (torch.uint8, torch.float32)) for key in spaces.images
    }
    for key in spaces.vectors:
        usual = torch.int64 if key in spaces.classes else torch.float32
        wanted[key] = spaces.shapes[key], tuple(dict.fromkeys((usual, spaces.dtypes.get(key, usual))))
    one_hot = () if spaces.actions == "continuous" else (torch.int64, torch.bool)
    wanted |= {"previous_action": ((spaces.action_dim,), (torch.float32, *one_hot))}
    wanted |= {"reward": ((1,), (torch.float32,))}
    wanted |= {key: ((1,), (torch.bool,)) for key in _FLAGS}
    for key, (shape, dtypes) in wanted.items():
        value = batch.get(key, None)
        if value is None:
            raise SpecError(
                f"the batch has no {key!r}: found {', '.join(sorted(map(str, batch.keys())))}, wanted the "
                "sequence layout; convert collected data with wmkit.data.to_sequence"
            )
        if tuple(value.shape) != (*lead, *shape) or value.dtype not in dtypes:
            raise SpecError(
                f"batch key {key!r} is {list(value.shape)} of {value.dtype}: wanted {[*lead, *shape]} of "
                f"{' or '.join(map(str, dtypes))}; check the environment's transforms"
            )
