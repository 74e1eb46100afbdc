"""LS-Imagine's ``latest.pt``: the agent, its normaliser, and the moments of its optimisers.

The file holds ``agent_state_dict``, up to three copies of every tensor (:mod:`.ls_imagine` has the names),
and ``optims_state_dict``, three states of Adam whose tensors are numbered in the order of the agent's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from wmkit.errors import CheckpointError
from wmkit.nn.weights import as_float32, read_weights, shape_of
from wmkit.systems.convert import ls_imagine
from wmkit.systems.convert.strict import Slot
from wmkit.systems.system import System

WHAT = "LS-Imagine checkpoint"
ADVICE = "use latest.pt of the paper's page, or of its code"
OPTIMISERS = {  # learners: how their optimiser's place ends, and the names of what it trains
    "world_model": ("_model_opt._opt", "_wm."),
    "actor": ("_actor_opt._opt", "_task_behavior.actor."),
    "critic": ("_value_opt._opt", "_task_behavior.value."),
}
MOMENTS = ("exp_avg", "exp_avg_sq")


def load_ls_imagine(
    system: System, path: str | PathLike | Mapping[str, Any], *, optimizers: bool = False
) -> None:
    """Load the published LS-Imagine agent, strictly, or raise and leave the system as it was.

    World model, actor, critic and slow critic are filled; the percentiles of returns too, where the system
    normalises by them (the released code computes them and does not use them). Copies must agree.

    Args:
        system: built from ``ls_imagine`` with ``size=paper`` and 12 actions, on observations whose first
            image is the affordance map.
        path: of ``latest.pt``, or what lies in it.
        optimizers: take Adam's moments and step counts as well; learning rates stay the page's.

    Raises:
        MissingWeightsError: there is no such file.
        CheckpointError: the file cannot be read, a name is missing, unknown or of another shape, copies
            differ, or ``optimizers`` are asked for and not there.
    """
    from wmkit.systems.convert import load_released

    found = path if isinstance(path, Mapping) else read_weights(path, WHAT, ADVICE)
    agent = agent_of(found)
    slots = ls_imagine.slots(system)
    states = _states(system, slots, found, agent) if optimizers else {}
    percentiles = _percentiles(agent)
    load_released(system, agent)
    norm: Any = getattr(system.controller, "return_norm", None)
    if percentiles is not None and hasattr(norm, "low") and hasattr(norm, "high"):
        with torch.no_grad():
            norm.low.fill_(percentiles[0])
            norm.high.fill_(percentiles[1])
    for name, state in states.items():
        system.schedule.learners[name].load_state_dict(state)


def agent_of(found: Any) -> Any:
    """``agent_state_dict`` of a whole file; anything else as it is."""
    inner = found.get("agent_state_dict") if isinstance(found, Mapping) else None
    return found if inner is None else inner


def _percentiles(agent: Any) -> Tensor | None:
    names = agent if isinstance(agent, Mapping) else ()
    name = next((one for one in names if isinstance(one, str) and one.endswith(".ema_vals")), None)
    if name is None:
        return None
    values = as_float32(name, agent[name], ls_imagine.CODE)
    if values.shape != (2,) or values[0] > values[1]:
        raise CheckpointError(
            f"{name} of {ls_imagine.CODE} is {values.tolist()!r}: wanted two percentiles, the lower first; "
            f"{ADVICE}"
        )
    return values


def _states(system: System, slots: Mapping[str, Slot], found: Any, agent: Any) -> dict[str, dict[str, Any]]:
    """For each learner what its optimiser's ``load_state_dict`` takes, checked."""
    saved = found.get("optims_state_dict") if isinstance(found, Mapping) else None
    if not isinstance(saved, Mapping) or not isinstance(agent, Mapping):
        raise CheckpointError(
            f"{WHAT} has no moments of its optimisers: found no optims_state_dict, wanted one; load it with "
            "optimizers=False"
        )
    plain = [name.replace("_orig_mod.", "") for name in agent if isinstance(name, str)]
    if any(name not in plain for slot in slots.values() for name in slot.names):
        return {}  # which is said of the agent itself
    ours = {id(parameter): name for name, parameter in system.named_parameters()}
    states = {}
    for learner, (ending, prefix) in OPTIMISERS.items():
        state = next((x for key, x in saved.items() if str(key).endswith(ending)), None)
        numbers = state.get("state") if isinstance(state, Mapping) else None
        names = [name for name in plain if name.startswith(prefix)]
        if learner not in system.schedule.learners or not isinstance(numbers, Mapping):
            raise CheckpointError(
                f"{WHAT} has no moments for learner {learner!r}: found no state of Adam at {ending}, wanted "
                "one; load it with optimizers=False"
            )
        entries = {}
        for i, parameter in enumerate(system.schedule.learners[learner].parameters):
            slot = slots[ours[id(parameter)]]
            entries[i] = _entry(slot, numbers.get(names.index(slot.names[0])), slot.names[0])
        optimizer = system.schedule.learners[learner].optimizer
        states[learner] = {"state": entries, "param_groups": optimizer.state_dict()["param_groups"]}
    return states


def _entry(slot: Slot, found: Any, name: str) -> dict[str, Tensor]:
    """Adam's state of one tensor, in our layout."""
    wanted = tuple(slot.theirs(slot.tensor.to("meta"))[0].shape)
    if not isinstance(found, Mapping) or not {"step", *MOMENTS} <= found.keys():
        raise CheckpointError(
            f"{WHAT} has no moments for {name}: wanted step, exp_avg and exp_avg_sq of every tensor; load it "
            "with optimizers=False"
        )
    entry = {"step": as_float32("step", torch.as_tensor(found["step"]), name).reshape(())}
    for moment in MOMENTS:
        if (shape := shape_of(moment, found[moment], name)) != wanted:
            raise CheckpointError(
                f"{moment} of {name} is of shape {list(shape)} instead of {list(wanted)}: wanted moments in "
                "the order of the agent's tensors; load it with optimizers=False"
            )
        entry[moment] = slot.ours([as_float32(moment, found[moment], name)]).clone()
    return entry
