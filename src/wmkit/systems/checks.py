"""What a batch must look like before an update touches it, and what is known of that before there is one."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase

from wmkit.errors import ConfigError, SpecError
from wmkit.objectives import check_weights
from wmkit.systems.spaces import Spaces

_FLAGS = ("is_init", "terminated")


def check_window(length: int, world_model_loss: Any, behaviour: Any, schedule: Any) -> None:
    """Raise :class:`ConfigError` unless ``length`` records are enough for everything that reads a window.

    A loss that cannot do with a single one says so as ``shortest``. Starts of dreams are drawn from the
    window without the records ahead.
    """
    wanted = {"world_model_loss": getattr(world_model_loss, "shortest", 1)}
    wanted["schedule.replay_critic"] = getattr(getattr(schedule, "replay_critic", None), "shortest", 1)
    starts = getattr(behaviour, "starts", None)
    wanted["behaviour.starts"] = getattr(starts, "shortest", 1) + getattr(world_model_loss, "ahead", 0)
    name = max(wanted, key=lambda part: wanted[part])
    if length < wanted[name]:
        raise ConfigError(
            f"batch.length is {length}: wanted {wanted[name]} or more, as {name} needs; correct batch.length"
        )


def check_weighed(world_model: Any, loss: Any) -> None:
    """Raise :class:`ConfigError` unless ``loss`` has one weight per term, where its terms are known."""
    terms = loss.terms(world_model) if hasattr(loss, "terms") else None
    if terms is not None:
        check_weights(dict.fromkeys(terms), loss.weights)


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
