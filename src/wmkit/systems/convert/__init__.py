"""Weights of the original codes: one file for each code that says what it calls its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from wmkit.errors import CheckpointError
from wmkit.systems.convert import iris, ls_imagine, storm, transdreamer, twm
from wmkit.systems.convert.dreamerv3_jax import dreamerv3_jax_parameters, load_dreamerv3_jax
from wmkit.systems.convert.strict import as_float32, export, load
from wmkit.systems.system import System

__all__ = ["dreamerv3_jax_parameters", "load_dreamerv3_jax", "load_released", "released_parameters"]

_CODES: dict[str, Any] = {
    **{"iris": iris, "ls_imagine": ls_imagine, "storm": storm, "transdreamer": transdreamer, "twm": twm}
}


def load_released(system: System, weights: Mapping[str, Any]) -> None:
    """Load the weights of a system's original code, strictly: every network then computes what it does there.

    ================  ====================================================================================
    system            ``weights``
    ================  ====================================================================================
    ``dreamer_v3``    the JAX agent's parameters (:func:`load_dreamerv3_jax`)
    ``iris``          the state dict of ``Agent``; its perceptual loss may be left out
    ``ls_imagine``    ``agent_state_dict`` of ``latest.pt``; build with ``compat=released``
    ``storm``         the state dicts of world model and agent in one; ``wm.`` and ``ag.`` may stand before
    ``transdreamer``  the state dict of its model; the slow value may be left out
    ``twm``           the state dict of ``Agent``
    ================  ====================================================================================

    Every parameter of the system is filled, and every array is read or known to be of no use (a copy, a table
    that is computed, a normaliser that nothing reads). Means and variances of batch norms are read where they
    are given. The optimisers start afresh.

    Args:
        system: built from the page of that name, with the size and for the environment of the weights.
        weights: a flat mapping from the original's names to arrays in its layouts: NumPy or JAX arrays or
            tensors of any precision, on any device.

    Raises:
        CheckpointError: a system whose original has no weights here, a name that is missing, unknown or of
            another shape, an array that holds anything but finite real numbers, or copies that differ. The
            system is left as it was.

    >>> from torchrl.data import Composite, OneHot, UnboundedDiscrete
    >>> import wmkit
    >>> spec = Composite(pixels=UnboundedDiscrete((1, 64, 64), dtype=torch.uint8))
    >>> teacher, pupil = (
    ...     wmkit.build("twm", observation_spec=spec, action_spec=OneHot(3), overrides=["size=twm/micro"])
    ...     for _ in range(2))
    >>> weights = released_parameters(teacher)
    >>> weights["ac.actor_model.linear1.weight"].shape
    (64, 64)
    >>> load_released(pupil, weights)
    >>> torch.equal(pupil.actor.out.weight, teacher.actor.out.weight)
    True
    """
    if system.name == "dreamer_v3":
        return load_dreamerv3_jax(system, weights)
    code = _code(system)
    slots = code.slots(system)
    plain = getattr(code, "plain", None)
    if plain is not None and isinstance(weights, Mapping):
        weights = _without_copies(weights, plain, code.CODE)
    complete = getattr(code, "complete", None)
    if complete is not None and isinstance(weights, Mapping):
        weights = complete(weights)
    pattern, unused = getattr(code, "UNUSED", None), {}
    if pattern is not None and isinstance(weights, Mapping):
        unused = {name: None for name in weights if isinstance(name, str) and pattern.fullmatch(name)}
    load(system, weights, slots, code=code.CODE, advice=code.ADVICE, unused=unused)


def released_parameters(system: System) -> dict[str, Any]:
    """What :func:`load_released` takes: a system's weights under the original's names, in its layouts.

    Args:
        system: of a page whose original's names are known.

    Returns:
        New NumPy arrays, names in alphabetical order; of copies, one.

    Raises:
        CheckpointError: a system without such an original, or with other parts.
    """
    if system.name == "dreamer_v3":
        return dreamerv3_jax_parameters(system)
    return export(_code(system).slots(system))


def _code(system: System) -> Any:
    if system.name not in _CODES:
        known = ", ".join(sorted([*_CODES, "dreamer_v3"]))
        raise CheckpointError(
            f"system {system.name} has no original whose weights are known: wanted one of {known}; build one"
        )
    return _CODES[system.name]


def _without_copies(weights: Mapping[str, Any], plain: Any, code: str) -> dict[str, Any]:
    """Weights under one name each; copies must agree."""
    kept: dict[str, Any] = {}
    first: dict[str, str] = {}
    for name, value in weights.items():
        key = plain(name) if isinstance(name, str) else name
        if key in kept and kept[key] is not value:
            one, other = as_float32(first[key], kept[key], code), as_float32(name, value, code)
            if not torch.equal(one, other):
                raise CheckpointError(
                    f"weights of {code} have two values for {key}: found {first[key]!r} and {name!r} "
                    "that differ, wanted copies; check which code wrote the file"
                )
            continue
        kept[key], first[key] = value, name
    return kept
