"""Weights of the official DreamerV3 (danijar/dreamerv3 e3f0224, in JAX) for a system of ours, and back.

The original keeps its numbers as one flat mapping from names to arrays. What stands here under
another name is the same number in another layout:

===========  ===============================================  ==============================
layout       there                                            here
===========  ===============================================  ==============================
``dense``    ``[in, out]``                                    ``[out, in]``
``feature``  ``[in, out]``, rows of the belief, of the state  ``[out, in]``, state first
``conv``     ``[height, width, in, out]``                     ``[out, in, height, width]``
``blocks``   ``[blocks, in, out]``                            the same
``norm``     ``scale``                                        ``weight``
``number``   ``[]``                                           ``[1]``
===========  ===============================================  ==============================

Everything else agrees already: gates in each block are reset, candidate, update; a grid is
flattened row by row with its channels innermost; vectors come before images in an embedding, the
belief before both; keys stand in alphabetical order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from wmkit.errors import CheckpointError
from wmkit.systems.convert.strict import SAME, TRANSPOSED, Slot, Turn, export, load
from wmkit.systems.system import System

_MODEL, _RSSM, _GRU = "world_model.", "world_model.dynamics.", "world_model.dynamics.backbone."
_ENCODER, _DECODER = "world_model.encoder.", "world_model.decoder."

# Layer there, layer here, layout of its weight. A star is a number or a key; the first row that fits counts.
LAYERS: list[tuple[str, str, str]] = [
    ("enc/mlp*", _ENCODER + "vector.*.linear", "dense"),
    ("enc/mlp*norm", _ENCODER + "vector.*.norm", "norm"),
    ("enc/cnn*", _ENCODER + "image.stages.*.conv", "conv"),
    ("enc/cnn*norm", _ENCODER + "image.stages.*.norm", "norm"),
    ("dyn/dynin0", _GRU + "belief_in.linear", "dense"),
    ("dyn/dynin0norm", _GRU + "belief_in.norm", "norm"),
    ("dyn/dynin1", _RSSM + "input.state.linear", "dense"),
    ("dyn/dynin1norm", _RSSM + "input.state.norm", "norm"),
    ("dyn/dynin2", _RSSM + "input.action.linear", "dense"),
    ("dyn/dynin2norm", _RSSM + "input.action.norm", "norm"),
    ("dyn/dynhid0", _GRU + "hidden", "blocks"),
    ("dyn/dynhid0norm", _GRU + "norm", "norm"),
    ("dyn/dyngru", _GRU + "gates", "blocks"),
    ("dyn/obs0", _RSSM + "posterior_in.linear", "dense"),
    ("dyn/obs0norm", _RSSM + "posterior_in.norm", "norm"),
    ("dyn/obslogit", _RSSM + "posterior_out.0", "dense"),
    ("dyn/prior*", _RSSM + "prior.*.linear", "dense"),
    ("dyn/prior*norm", _RSSM + "prior.*.norm", "norm"),
    ("dyn/priorlogit", _RSSM + "prior.2", "dense"),
    (
        "dec/mlp/linear*",
        _DECODER + "vector.*.linear",
        "dense",
    ),  # of all trunks this one reads the state first
    ("dec/mlp/norm*", _DECODER + "vector.*.norm", "norm"),
    ("dec/vec/*/pred", _DECODER + "vector_out.*", "dense"),  # "logits" where the key holds classes
    ("dec/sp0", _DECODER + "image.grid.belief", "blocks"),
    ("dec/sp1", _DECODER + "image.grid.state_in.linear", "dense"),
    ("dec/sp1norm", _DECODER + "image.grid.state_in.norm", "norm"),
    ("dec/sp2", _DECODER + "image.grid.state_out", "dense"),
    ("dec/spnorm", _DECODER + "image.grid.norm", "norm"),
    ("dec/conv2", _DECODER + "image.stages.0.conv", "conv"),  # counted from the finest
    ("dec/conv2norm", _DECODER + "image.stages.0.norm", "norm"),
    ("dec/conv1", _DECODER + "image.stages.1.conv", "conv"),
    ("dec/conv1norm", _DECODER + "image.stages.1.norm", "norm"),
    ("dec/conv0", _DECODER + "image.stages.2.conv", "conv"),
    ("dec/conv0norm", _DECODER + "image.stages.2.norm", "norm"),
    ("dec/imgout", _DECODER + "image.out", "conv"),
    ("rew/head/logits", _MODEL + "heads.reward.out", "dense"),
    ("con/head/logit", _MODEL + "heads.continuation.out", "dense"),
    ("pol/head/action/logits", "actor.out", "dense"),
    ("pol/head/action/mean", "actor.mean", "dense"),
    ("pol/head/action/stddev", "actor.std", "dense"),
    ("val/head/logits", "critic.out", "dense"),
    ("slowval/head/logits", "schedule.slow_critic.out", "dense"),
]
for _theirs, _ours in {
    "rew": _MODEL + "heads.reward",
    "con": _MODEL + "heads.continuation",
    "pol": "actor",
    "val": "critic",
    "slowval": "schedule.slow_critic",
}.items():
    LAYERS += [
        (_theirs + "/mlp/linear0", _ours + ".trunk.0.linear", "feature"),
        (_theirs + "/mlp/linear*", _ours + ".trunk.*.linear", "dense"),
        (_theirs + "/mlp/norm*", _ours + ".trunk.*.norm", "norm"),
    ]
NUMBERS = {
    "retnorm/lo/value": "controller.return_norm.low",
    "retnorm/hi/value": "controller.return_norm.high",
}
COUNT = "slowval_count/value"  # updates of the slow critic, which follows at every one: nothing depends on it

CODE = "the JAX DreamerV3"
ADVICE = (
    "build it with the size and for the environment that they were trained with, and leave the optimiser's "
    "out"
)
TURNS = {
    "dense": TRANSPOSED,
    "conv": Turn(lambda x: x.permute(3, 2, 0, 1), lambda x: x.permute(2, 3, 1, 0)),
    "blocks": SAME,
    "norm": SAME,
}
NUMBER = Turn(lambda x: x.view(1), lambda x: x.view(()))


def load_dreamerv3_jax(system: System, parameters: Mapping[str, Any]) -> None:
    """Load the official DreamerV3's weights into a system, strictly.

    World model, actor, critic, slow critic and range of returns are all there afterwards, and every
    network computes what the original's does. The original's discrete policy has no share of
    uniform, so the actor's ``unimix`` becomes zero. The optimiser starts afresh.

    Args:
        system: built from ``dreamer_v3`` of the same size for the same environment.
        parameters: the original's flat mapping from names to arrays, without its optimiser
            (``opt/...``): NumPy or JAX arrays or tensors of any precision, on any device.

    Raises:
        CheckpointError: ``parameters`` is no mapping from names to arrays, a name is missing, unknown or of
            another shape, an array holds anything but finite real numbers, or the system is another one
            or reads its observations in another order. The system is left as it was.

    >>> from torchrl.data import Bounded, Composite, Unbounded
    >>> from wmkit.systems import build
    >>> spec = Composite(position=Unbounded((8,)), velocity=Unbounded((9,)))
    >>> spaces = {"observation_spec": spec, "action_spec": Bounded(-1, 1, (6,))}
    >>> teacher, pupil = (build("dreamer_v3", overrides=["size=1m"], **spaces) for _ in range(2))
    >>> weights = dreamerv3_jax_parameters(teacher)
    >>> load_dreamerv3_jax(pupil, weights)
    >>> bool((pupil.critic.trunk[0].linear.weight == teacher.critic.trunk[0].linear.weight).all())
    True
    >>> del weights["enc/mlp0/bias"]
    >>> load_dreamerv3_jax(pupil, weights)
    Traceback (most recent call last):
    wmkit.errors.CheckpointError: weights of the JAX DreamerV3 do not fit system dreamer_v3: missing \
enc/mlp0/bias, wanted exactly the names and shapes of its size and spaces; build it with the size and for \
the environment that they were trained with, and leave the optimiser's out
    """
    unused = {COUNT: ()}
    load(system, parameters, slots(system), code=CODE, advice=ADVICE, unused=unused, complaint=_about_vectors)
    actor: Any = system.actor
    if hasattr(actor, "unimix"):
        actor.unimix = 0.0


def dreamerv3_jax_parameters(system: System) -> dict[str, np.ndarray]:
    """What :func:`load_dreamerv3_jax` takes: a system's weights under the official names, in its layouts.

    Args:
        system: built from ``dreamer_v3``.

    Returns:
        New float32 arrays, names in alphabetical order.

    Raises:
        CheckpointError: the system is another one or reads its observations in another order.
    """
    return dict(sorted((export(slots(system)) | {COUNT: np.zeros((), np.int32)}).items()))


def slots(system: System) -> dict[str, Slot]:
    """Every number of a system that the original keeps too, by its names.

    Raises:
        CheckpointError: the system is another one or reads its observations in another order.
    """
    if system.name != "dreamer_v3":
        raise CheckpointError(
            f"system {system.name} is not {CODE} of these weights: wanted a system built from dreamer_v3; "
            "build one"
        )
    state_dim = system.world_model.dynamics.state_dim
    turns = TURNS | {
        "feature": Turn(lambda x: x.t().roll(state_dim, 1), lambda x: x.roll(-state_dim, 1).t()),
    }
    rows = [(theirs, _pattern(ours), layout) for theirs, ours, layout in LAYERS]
    found: dict[str, Slot] = {}
    for name, parameter in system.named_parameters():
        layer, _, leaf = name.rpartition(".")
        fits = ((theirs, pattern.fullmatch(layer), layout) for theirs, pattern, layout in rows)
        theirs, match, layout = next((row for row in fits if row[1]), ("", None, ""))
        if match is None:
            raise CheckpointError(
                f"system {system.name} has a parameter {name!r} that {CODE} has not: wanted a system built "
                "from dreamer_v3; build one, without overrides that add or change parts"
            )
        key = match[1] if match.groups() else ""
        theirs = theirs.replace("*", key)
        if theirs.startswith("dec/vec/") and key in system.spaces.classes:
            theirs = f"dec/vec/{key}/logits"
        leaf = leaf if leaf == "bias" else "scale" if layout == "norm" else "kernel"
        turn = SAME if leaf == "bias" else turns[layout]
        found[f"{theirs}/{leaf}"] = Slot(parameter, (f"{theirs}/{leaf}",), turn)
    _check_order(system)
    buffers = dict(system.named_buffers())
    for theirs, ours in NUMBERS.items():
        if ours in buffers:
            found[theirs] = Slot(buffers[ours], (theirs,), NUMBER)
    return found


def _pattern(ours: str) -> re.Pattern[str]:
    return re.compile(re.escape(ours).replace(r"\*", "([^.]+)"))


def _check_order(system: System) -> None:
    """Raise unless the same columns mean the same observations: shapes alone would not tell."""
    encoder: Any = system.world_model.encoder
    for what, wrong, wanted, remedy in (
        (
            f"vectors in the order {', '.join(encoder.vectors)}",
            list(encoder.vectors) != sorted(encoder.vectors),
            "them in alphabetical order",
            "set observations.vectors=auto",
        ),
        (
            "images before vectors",
            encoder.images and encoder.vectors and not encoder.vectors_first,
            "vectors first",
            "leave encoder.vectors_first true",
        ),
        (
            f"images {', '.join(encoder.images)}",
            len(encoder.images) > 1,
            "one, as the original's order of several is its environment's",
            "set observations.images to that one",
        ),
    ):
        if wrong:
            raise CheckpointError(
                f"system {system.name} does not read observations as the JAX DreamerV3 does: found {what}, "
                f"wanted {wanted}; {remedy}"
            )


def _about_vectors(troubles: Mapping[str, list[str]]) -> str:
    """Advice where only the names of vectors differ."""
    if not all(
        any(name.startswith("dec/vec/") for name in troubles[what]) for what in ("missing", "unknown")
    ):
        return ""
    return (
        "; its vectors must stand under the same names: dmc_proprio keeps them apart, as the original does, "
        "with joined=False (env.options.joined=false)"
    )
