"""Weights of another code for a system of ours, strictly: every name and shape is accounted for.

What a code calls its numbers is a table of :class:`Row`: a pattern of our names and a template of theirs.
From it come :class:`Slot`: one tensor of ours, the names it has there, and the way between the layouts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wmkit.errors import CheckpointError
from wmkit.nn.weights import as_float32, compare, said, shape_of

STATISTICS = re.compile(r".+\.(running_mean|running_var|num_batches_tracked)")  # of batch norm


class Turn(NamedTuple):
    """From their layout to ours, and back."""

    to_ours: Callable[[Tensor], Tensor]
    to_theirs: Callable[[Tensor], Tensor]


SAME = Turn(lambda x: x, lambda x: x)
TRANSPOSED = Turn(lambda x: x.transpose(0, -1), lambda x: x.transpose(0, -1))
NEGATED = Turn(torch.neg, torch.neg)
FIRST_ROW = Turn(lambda x: x.squeeze(0), lambda x: x.unsqueeze(0))
"""A vector here, a matrix of one row there."""


class Row(NamedTuple):
    r"""The original's names of parameters of one kind.

    Attributes:
        ours: pattern of our whole name.
        theirs: templates of their names; ``{0}``, ``{1}`` are the pattern's groups, ``{n}`` the number of the
            layer. More than one: our tensor is theirs one below the other.
        number: of the k-th layer (from 0) that fits the row, in the order in which a system registers them.
        turn: between the layouts.
    """

    ours: str
    theirs: tuple[str, ...]
    number: Callable[[int], int] = lambda k: k
    turn: Turn = SAME


class Slot(NamedTuple):
    """One tensor of ours and what it is there."""

    tensor: Tensor
    names: tuple[str, ...]
    turn: Turn = SAME

    def ours(self, theirs: list[Tensor]) -> Tensor:
        """In our layout."""
        return self.turn.to_ours(torch.cat(theirs) if len(theirs) > 1 else theirs[0])

    def theirs(self, ours: Tensor) -> list[Tensor]:
        """A tensor like ours in their layout, one for each name."""
        x = self.turn.to_theirs(ours)
        return list(x.chunk(len(self.names))) if len(self.names) > 1 else [x]


def trace(system: nn.Module, rows: Iterable[Row], code: str, advice: str) -> dict[str, Slot]:
    """The source of every parameter of a system and of every statistic of a batch norm.

    Args:
        system: a :class:`~wmkit.systems.System`.
        rows: the first that fits counts.
        code: whose weights they are, for messages.
        advice: how to build a system that fits, for messages.

    Returns:
        Slots by our names.

    Raises:
        CheckpointError: a parameter that no row knows.
    """
    known = [(re.compile(row.ours), row) for row in rows]
    counts: dict[str, int] = {}  # layers so far, by row
    numbers: dict[str, int] = {}  # place of each layer among those
    tensors: dict[str, Tensor] = dict(system.named_parameters())
    tensors |= {name: x for name, x in system.named_buffers() if STATISTICS.fullmatch(name)}
    slots: dict[str, Slot] = {}
    for name, tensor in tensors.items():
        found = ((pattern.fullmatch(name), row) for pattern, row in known)
        match, row = next((one for one in found if one[0]), (None, None))
        if match is None or row is None:
            raise CheckpointError(
                f"system {getattr(system, 'name', '')} has a parameter {name!r} that {code} has not: wanted "
                f"a system with the same parts; {advice}"
            )
        layer = name.rpartition(".")[0]
        if layer not in numbers:
            numbers[layer] = counts[row.ours] = counts.get(row.ours, -1) + 1
        n = row.number(numbers[layer])
        slots[name] = Slot(tensor, tuple(one.format(*match.groups(), n=n) for one in row.theirs), row.turn)
    return slots


def load(
    system: nn.Module,
    weights: Mapping[str, Any],
    slots: Mapping[str, Slot],
    *,
    code: str,
    advice: str,
    unused: Mapping[str, tuple[int, ...] | None] | None = None,
    complaint: Callable[[Mapping[str, list[str]]], str] = lambda troubles: "",
) -> None:
    """Fill every slot, or say in one sentence why not and leave the system as it was.

    Statistics of batch norms are filled where they are given: all of them or none.

    Args:
        system: named in messages.
        weights: their names to arrays: NumPy or JAX arrays or tensors of any precision, on any device.
        slots: by any name, see :func:`trace`.
        code: whose weights they are.
        advice: what to do when they do not fit.
        unused: names beyond those of the slots that are known and not read: with a shape, they must be there.
        complaint: what to add to ``advice``, given the names that are missing, unknown or of another shape.

    Raises:
        CheckpointError: ``weights`` is no mapping from names to arrays, a name is missing, unknown or of
            another shape, or an array holds anything but finite real numbers.
    """
    if not isinstance(weights, Mapping):
        raise CheckpointError(
            f"weights of {code} are a {type(weights).__name__}: wanted a mapping from names to arrays; pass "
            "the agent's parameters without its optimiser's"
        )
    for name in weights:
        if not isinstance(name, str):
            raise CheckpointError(
                f"weights of {code} have the key {name!r} of type {type(name).__name__}: wanted names as the "
                "original has them; pass the flat mapping that it saves"
            )
    chosen = _without_absent_statistics(slots, weights)
    wanted: dict[str, tuple[int, ...]] = {}
    for slot in chosen.values():
        parts = slot.theirs(slot.tensor.to("meta"))
        wanted |= {name: tuple(part.shape) for name, part in zip(slot.names, parts, strict=True)}
    spare = {name for name, shape in (unused or {}).items() if shape is None}
    wanted |= {name: shape for name, shape in (unused or {}).items() if shape is not None}
    found = {name: shape_of(name, value, code) for name, value in weights.items() if name not in spare}
    troubles = compare(wanted, found)
    if text := said(troubles):
        raise CheckpointError(
            f"weights of {code} do not fit system {getattr(system, 'name', '')}: {text}, wanted "
            f"exactly the names and shapes of its size and spaces; {advice}{complaint(troubles)}"
        )
    arrays = {
        key: [as_float32(name, weights[name], code) for name in slot.names] for key, slot in chosen.items()
    }
    with torch.no_grad():
        for key, slot in chosen.items():
            slot.tensor.copy_(slot.ours(arrays[key]))


def export(slots: Mapping[str, Slot]) -> dict[str, np.ndarray]:
    """What :func:`load` takes, from a system that has it: new arrays, names in alphabetical order."""
    arrays = {}
    for slot in slots.values():
        for name, part in zip(slot.names, slot.theirs(slot.tensor.detach().cpu()), strict=True):
            arrays[name] = part.clone(memory_format=torch.contiguous_format).numpy()
    return dict(sorted(arrays.items()))


def _without_absent_statistics(slots: Mapping[str, Slot], weights: Mapping[str, Any]) -> dict[str, Slot]:
    """The slots to fill: means and variances together or not at all, a count of batches if there is one."""

    def moments(name: str) -> bool:
        return name.endswith(("running_mean", "running_var"))

    given = any(moments(name) for name in weights)
    chosen = {}
    for name, slot in slots.items():
        if moments(slot.names[0]) and not given:
            continue
        if slot.names[0].endswith("num_batches_tracked") and slot.names[0] not in weights:
            continue
        chosen[name] = slot
    return chosen
