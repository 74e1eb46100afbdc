"""Weights of the original codes: one file for each code that says what it calls its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import nn

from wmkit.affordance.published import fill as fill_published
from wmkit.errors import CheckpointError
from wmkit.nn.weights import as_float32, read_weights
from wmkit.systems.convert import iris, le_wm, ls_imagine, storm, td_mpc2, transdreamer, twm
from wmkit.systems.convert.dreamerv3_jax import dreamerv3_jax_parameters, load_dreamerv3_jax
from wmkit.systems.convert.latest import agent_of, load_ls_imagine
from wmkit.systems.convert.strict import export, load
from wmkit.systems.system import System

__all__ = [
    "dreamerv3_jax_parameters",
    "load_dreamerv3_jax",
    "load_ls_imagine",
    "load_released",
    "released_parameters",
]

_CODES: dict[str, Any] = {
    "iris": iris,
    "le_wm": le_wm,
    "ls_imagine": ls_imagine,
    "storm": storm,
    "td_mpc2": td_mpc2,
    "transdreamer": transdreamer,
    "twm": twm,
}


def load_released(system: System | nn.Module, weights: Mapping[str, Any] | str | PathLike) -> None:
    """Load the weights of a system's original code, strictly: every network then computes what it does there.

    ================  ====================================================================================
    system            ``weights``
    ================  ====================================================================================
    ``dreamer_v3``    the JAX agent's parameters (:func:`load_dreamerv3_jax`)
    ``iris``          the state dict of ``Agent``; its perceptual loss may be left out
    ``le_wm``         the state dict of its model
    ``ls_imagine``    ``latest.pt``, or its ``agent_state_dict``; build with ``size=paper``
    ``storm``         the state dicts of world model and agent in one; ``wm.`` and ``ag.`` may stand before
    ``td_mpc2``       the model's state dict, of a single task and of numbers; under its older names too
    ``transdreamer``  the state dict of its model; the slow value may be left out
    ``twm``           the state dict of ``Agent``
    a ``MineCLIP``    ``mineclip_attn.pth``, or its ``state_dict``
    a ``SwinUNet``    ``swin_unet_checkpoint.pth``, of ``fusion="constant_query"``
    ================  ====================================================================================

    Every parameter of the system is filled, and every array is read or known to be of no use (a copy, a table
    that is computed, a normaliser that nothing reads). Means and variances of batch norms are read where they
    are given. The optimisers start afresh.

    Args:
        system: built from the page of that name, with the size and for the environment of the weights; or one
            of the two models of LS-Imagine's affordance.
        weights: a flat mapping from the original's names to arrays in its layouts: NumPy or JAX arrays or
            tensors of any precision, on any device; or the path of a file of such tensors, in which nothing
            is executed.

    Raises:
        MissingWeightsError: there is no such file.
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
    found: Any = weights
    if isinstance(found, (str, PathLike)):
        found = read_weights(found, "weights file", "correct the path, or download the file again")
    if not isinstance(system, System):
        return fill_published(system, found)
    found = agent_of(found)
    if system.name == "dreamer_v3":
        return load_dreamerv3_jax(system, found)
    code = _code(system)
    slots = code.slots(system)
    plain = getattr(code, "plain", None)
    if plain is not None and isinstance(found, Mapping):
        found = _without_copies(found, plain, code.CODE)
    complete = getattr(code, "complete", None)
    if complete is not None and isinstance(found, Mapping):
        found = complete(found)
    pattern, unused = getattr(code, "UNUSED", None), {}
    if pattern is not None and isinstance(found, Mapping):
        unused = {name: None for name in found if isinstance(name, str) and pattern.fullmatch(name)}
    complaint = getattr(code, "complaint", lambda troubles: "")
    load(system, found, slots, code=code.CODE, advice=code.ADVICE, unused=unused, complaint=complaint)


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
