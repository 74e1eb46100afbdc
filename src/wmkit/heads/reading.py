"""The inputs of a head or an actor: keys of a TensorDict, side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from wmkit.nn import DenseNormAct, Feature
from wmkit.plug import as_keys

ARRIVAL = ("state", "belief")  # after the observation was seen
TRANSITION = ("state", "belief", ("next", "state"), ("next", "belief"))  # both ends of it


def in_keys_of(maker: Callable[..., Any]) -> list[NestedKey]:
    """The in-keys of the head that a maker will make; the width of its input follows from them.

    Args:
        maker: a class with ``default_in_keys``, or a :class:`functools.partial` of one. ``in_keys`` among
            the partial's keywords come first.

    >>> from functools import partial
    >>> from wmkit.heads import JumpSpanHead, RewardHead
    >>> in_keys_of(partial(RewardHead, in_keys=["belief"], units=8, layers=1))
    ['belief']
    >>> in_keys_of(JumpSpanHead)
    ['state', 'belief', ('next', 'state'), ('next', 'belief')]
    """
    if (keys := getattr(maker, "keywords", {}).get("in_keys")) is not None:
        return as_keys(keys)
    inner = getattr(maker, "func", None)
    return in_keys_of(inner) if inner is not None else as_keys(getattr(maker, "default_in_keys", ARRIVAL))


def read(tensordict: TensorDictBase, in_keys: list[NestedKey]) -> Tensor:
    """The entries ``[*B, D_i]`` side by side, ``[*B, sum of D_i]``.

    Raises:
        KeyError: one is missing.
    """
    found = [tensordict.get(key, None) for key in in_keys]
    missing = [key for key, value in zip(in_keys, found, strict=True) if value is None]
    if missing:
        there = ", ".join(map(str, tensordict.keys(True, True)))
        raise KeyError(
            f"{missing[0]!r} is missing: found {there}; rename in_keys, or run the part that writes it"
        )
    return found[0] if len(found) == 1 else torch.cat(found, -1)


def is_next(key: NestedKey) -> bool:
    """Whether a key belongs to the next record."""
    return isinstance(key, tuple) and key[0] == "next"


def takes_parts(trunk: nn.Module) -> bool:
    """Whether a trunk multiplies a :class:`~wmkit.nn.Feature` part by part."""
    return isinstance(trunk, nn.Sequential) and len(trunk) > 0 and isinstance(trunk[0], DenseNormAct)


def prepared(features: Tensor | Feature, in_parts: bool) -> Tensor | Feature:
    """Features as a trunk takes them: in parts, or as one tensor ``[*B, F]``."""
    return features if in_parts or isinstance(features, Tensor) else features.dense
