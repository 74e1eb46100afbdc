"""Weights of the original codes by their own names: what is taken, and what is refused in one sentence.

What the loaded networks compute is held in ``tests/oracles``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchrl.data import Composite, OneHot, Unbounded, UnboundedDiscrete

import wmkit
from support import published
from wmkit.errors import CheckpointError
from wmkit.systems import System, released_parameters
from wmkit.systems.convert import ls_imagine

PIXELS = {"pixels": UnboundedDiscrete((3, 64, 64), dtype=torch.uint8)}
VIEWS = PIXELS | {"affordance": UnboundedDiscrete((1, 64, 64), dtype=torch.uint8), "reward": Unbounded((1,))}
SMALL = (
    "size.deter=32",
    "size.hidden=24",
    "size.units=24",
    "size.groups=4",
    "size.classes=4",
    "size.depth=4",
)
BLOCKS = ("size.blocks=3", "size.heads=2", "size.layers=3")
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "ls_imagine": (VIEWS, ("compat=released", "size.layers=5", "size.patch=1")),
    "storm": (PIXELS, BLOCKS),
    "transdreamer": (PIXELS, ("size.width=16", "size.blocks=2", "size.heads=2", "size.head=4")),
    "twm": (PIXELS, (*BLOCKS, "batch.length=18")),
    "dreamer_v3": (PIXELS, ()),
}


def build(name: str, *overrides: str, actions: int = 12) -> System:
    spec, usual = CASES[name]
    return wmkit.build(
        name,
        observation_spec=Composite(spec),
        action_spec=OneHot(actions),
        overrides=[*SMALL, *usual, *overrides],
    )


def test_ls_imagines_names_and_shapes_are_those_of_the_published_file() -> None:
    shapes = published.ls_imagine()
    assert len([name for name in shapes if name.startswith("_wm.")]) == 159
    with torch.device("meta"):
        system = wmkit.build(
            "ls_imagine",
            observation_spec=Composite(VIEWS),
            action_spec=OneHot(12),
            overrides=["size=paper", "compat=released"],
        )
    assert shapes == {
        name: tuple(part.shape)
        for slot in ls_imagine.slots(system).values()
        for name, part in zip(slot.names, slot.theirs(slot.tensor), strict=True)
    }


@pytest.mark.parametrize("name", CASES)
def test_what_a_system_gives_another_takes(name: str) -> None:
    teacher, pupil = build(name), build(name)
    with torch.no_grad():
        for x in teacher.parameters():
            x.normal_()
    weights = released_parameters(teacher)
    wmkit.load_released(pupil, {key: torch.from_numpy(x).double() for key, x in weights.items()})
    for key, x in teacher.named_parameters():
        torch.testing.assert_close(dict(pupil.named_parameters())[key], x, rtol=0, atol=0)


def test_transdreamers_slow_value_begins_as_its_value_where_it_is_left_out() -> None:
    teacher, pupil = build("transdreamer"), build("transdreamer")
    weights = released_parameters(teacher)
    wmkit.load_released(pupil, {key: x for key, x in weights.items() if not key.startswith("slow_")})
    loaded = released_parameters(pupil)
    for key, x in loaded.items():
        assert (x == weights[key.removeprefix("slow_")]).all()


def refused(system: System, weights: Any, *said: str) -> None:
    with pytest.raises(CheckpointError) as error:
        wmkit.load_released(system, weights)
    assert "\n" not in str(error.value)
    for part in said:
        assert part in str(error.value)


@pytest.mark.parametrize("name", [name for name in CASES if name != "dreamer_v3"])  # see test_jax_weights
def test_what_does_not_fit_is_named_and_nothing_is_loaded(name: str) -> None:
    system = build(name)
    good = released_parameters(build(name))
    before = [x.clone() for x in system.parameters()]
    one, other = min(good), max(good)
    refused(system, {key: x for key, x in good.items() if key != one}, f"missing {one}")
    refused(system, good | {"mystery": np.zeros(1)}, "unknown mystery")
    shape = list(good[other].shape)
    refused(system, good | {other: good[other][None]}, f"{other} of shape {[1, *shape]} instead of {shape}")
    refused(system, good | {other: good[other] * np.nan}, other, "NaN")
    refused(system, list(good), "are a list")
    refused(build(name, actions=3), good, "instead of [3")
    assert all(torch.equal(x, y) for x, y in zip(before, system.parameters(), strict=True))


def test_systems_without_known_weights_are_refused() -> None:
    spec = Composite(PIXELS)
    small = [one for one in SMALL if "classes" not in one]
    system = wmkit.build("dreamer_v1", observation_spec=spec, action_spec=OneHot(3), overrides=small)
    refused(system, {}, "system dreamer_v1 has no original whose weights are known", "ls_imagine")
    small = ["size=tiny", "backbone=gru"]
    swapped = wmkit.build("storm", observation_spec=spec, action_spec=OneHot(3), overrides=small)
    refused(swapped, {}, "has a parameter 'world_model.dynamics.backbone", "that the released STORM has not")


def test_copies_in_a_released_file_must_agree() -> None:
    system = build("ls_imagine")
    weights = released_parameters(build("ls_imagine"))
    copies: dict[str, Any] = {}
    for name, x in weights.items():  # as they are saved of compiled modules, three times
        part, _, rest = name.partition(".")
        copies[f"{part}._orig_mod.{rest}"] = x
        for behaviour in ("_task_behavior", "_expl_behavior"):
            inner = f"_world_model.{rest}" if part == "_wm" else rest
            copies[f"{behaviour}._orig_mod.{inner}"] = x.copy()
    copies["_task_behavior._orig_mod.ema_vals"] = copies["_expl_behavior._orig_mod.ema_vals"] = np.zeros(2)
    assert len(copies) == 545
    wmkit.load_released(system, copies)
    assert torch.equal(
        system.world_model.dynamics.short.backbone.start, torch.from_numpy(weights["_wm.dynamics.W"][0])
    )
    copies["_expl_behavior._orig_mod._world_model.dynamics.W"] += 1
    refused(system, copies, "two values for _wm.dynamics.W")


def test_storms_two_files_and_statistics() -> None:
    teacher, pupil = build("storm"), build("storm")
    with torch.no_grad():
        for _, x in [one for one in teacher.named_buffers() if one[0].endswith("running_mean")]:
            x.normal_()
    weights = released_parameters(teacher)
    agent = ("actor", "critic", "slow_critic")
    wmkit.load_released(
        pupil, {("ag." if name.startswith(agent) else "wm.") + name: x for name, x in weights.items()}
    )
    assert all(
        torch.equal(x, y)
        for (_, x), (_, y) in zip(teacher.named_buffers(), pupil.named_buffers(), strict=True)
    )
    learnt = {name: x for name, x in weights.items() if "running" not in name and "num_batches" not in name}
    wmkit.load_released(build("storm"), learnt)
    mean = next(name for name in weights if name.endswith("running_mean"))
    refused(pupil, learnt | {mean: weights[mean]}, "missing encoder.backbone.1.running_var")
