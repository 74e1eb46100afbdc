"""Validate batches and, at build time, everything about them that is already known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase

from wmkit.arguments import check_range
from wmkit.errors import ConfigError, SpecError
from wmkit.systems.spaces import Spaces

_FLAGS = ("is_init", "terminated")

# Least and most of a number by the last word of its place, or by the place; what stands nowhere, by LIMIT.
LIMIT = 1e15
LIMITS: dict[str, tuple[float, float]] = {
    **{f"batch.{name}": (1, 65_536) for name in ("size", "length")},
    **{name: (1, 65_536) for name in ("units", "hidden", "deter", "depth", "width", "groups", "classes")},
    **{
        name: (1, 65_536)
        for name in ("feed_forward", "patch", "heads", "head", "num_envs", "evaluate_episodes")
    },
    **{name: (0, 1000) for name in ("layers", "prior_layers", "posterior_layers")},
    **{name: (1, 1_000_000) for name in ("frames", "collect_length", "check_every", "success_window")},
    **{name: (0, 10**12) for name in ("steps", "prefill", "pretrain", "log_every", "evaluate_every")},
    **{"checkpoint_every": (0, 10**12), "final_episodes": (0, 10**6), "train_ratio": (0, 1e6)},
    **{"training.replay.capacity": (2, 10**9), "batch.context": (0, 65_536), "size.blocks": (1, 1000)},
    **{"size.layers": (1, 1000)},  # of encoder and decoder too, which need one
    **{"horizon": (1, 10_000), "threads": (1, 4096), "lr": (0, 1e3), "clip": (0, 1e9), "discount": (0, 1)},
    **{"weight": (0, 1e9), "entropy": (0, 1e6), "free_nats": (0, 1e6), "unimix": (0, 1), "fraction": (0, 1)},
    **{name: (0, 10**9) for name in ("max_steps", "scorer_steps", "fit_updates", "iterations", "save_every")},
}
BLOCKS: dict[str, tuple[float, float]] = {"weights": (0, 1e9), "learning_rate": (0, 1e3), "size": (0, 10**6)}
"""The same of all numbers in a block."""


def check_numbers(node: Any, origin: Callable[[str], str] = str, path: str = "") -> None:
    """Every number of a page between the least and the most that it may be; see :data:`LIMITS`.

    Args:
        node: plain values.
        origin: from a path to the key that its value comes from.
        path: where it stands.

    Raises:
        ConfigError: a number is outside, or not finite.

    >>> check_numbers({"heads": {"weights": {"reward": -1.0}}})
    Traceback (most recent call last):
    wmkit.errors.ConfigError: heads.weights.reward is -1.0: wanted 0 or more and at most 1e+09; correct ...
    """
    if isinstance(node, Mapping):
        for key, value in node.items():
            check_numbers(value, origin, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            check_numbers(value, origin, f"{path}[{i}]")
    elif isinstance(node, (int, float)) and not isinstance(node, bool):
        *blocks, last = path.split(".")
        limits = LIMITS.get(path) or LIMITS.get(last) or BLOCKS.get(blocks[-1] if blocks else "")
        least, most = limits or (-LIMIT, LIMIT)
        check_range(origin(path), node, least, most)


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
