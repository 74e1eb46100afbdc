"""What today's DreamerV3 sees and takes: classes, vectors of any rank, missing values, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    TensorSpec,
    Unbounded,
)

import wmkit
from wmkit.errors import SpecError
from wmkit.functional import symlog
from wmkit.nn import Categorical as Classes
from wmkit.systems import System

SMALL = [
    "preset=paper",
    *("size.deter=16", "size.groups=4", "size.classes=4", "size.hidden=8", "size.units=8", "size.depth=2"),
    *("batch.size=3", "batch.length=5"),
]
RANKS = Composite(speed=Unbounded(()), grid=Unbounded((2, 3)), velocity=Unbounded((3,)))


def build(spec: Composite, actions: TensorSpec, *overrides: str, name: str = "dreamer_v3") -> System:
    return wmkit.build(name, observation_spec=spec, action_spec=actions, overrides=[*SMALL, *overrides])


def test_classes_are_read_as_one_hot_and_predicted_by_cross_entropy() -> None:
    inventory = MultiCategorical([5, 5])
    spec = Composite(inventory=inventory, held=Categorical(7), lit=Binary(2), velocity=Unbounded((3,)))
    system = build(spec, OneHot(3))
    assert system.spaces.classes == {"held": 7, "inventory": 5, "lit": 2}
    assert system.world_model.encoder.vector[0].linear.in_features == 7 + 2 * 5 + 2 * 2 + 3
    predictions = system.world_model.decoder.predict(torch.zeros(4, 32))
    kinds = {key: isinstance(prediction, Classes) for key, prediction in predictions.items()}
    assert kinds == {"held": True, "inventory": True, "lit": True, "velocity": False}
    batch = system.example_batch()
    assert (batch["held"].shape, batch["held"].dtype) == (batch.batch_size, torch.int64)
    assert batch["inventory"].shape == (*batch.batch_size, 2) and batch["inventory"].max() == 4
    assert system.update(batch)["loss_joint"].isfinite()
    with pytest.raises(SpecError, match=r"'inventory'"):
        system.update(batch.clone().set("inventory", batch["inventory"].float()))


def test_vectors_of_any_rank_up_to_two_are_read_and_what_is_not_the_agents_is_not() -> None:
    others = {
        "log/mass": Unbounded((3,)),
        "reward": Unbounded((1,)),
        "is_first": Binary(1),
    }
    system = build(Composite(others | dict(RANKS.items())), OneHot(3))
    assert system.spaces.vectors == ("grid", "speed", "velocity")
    assert system.world_model.encoder.vector[0].linear.in_features == 6 + 1 + 3
    batch = system.example_batch()
    assert batch["speed"].shape == batch.batch_size and batch["grid"].shape == (*batch.batch_size, 2, 3)
    predictions = system.world_model.decoder.predict(torch.zeros(4, 32))
    for key, shape in {"speed": (4,), "grid": (4, 2, 3), "velocity": (4, 3)}.items():
        assert predictions[key].mean.shape == shape
        target = torch.full(shape, math.e - 1)  # one in symlog units; a decoder of zeros says zero
        torch.testing.assert_close(predictions[key].loss(target), torch.full((4,), 1.0 * target[0].numel()))
    assert system.update(batch)["loss_joint"].isfinite()
    for name in ("dreamer_v2", "twm"):
        other = wmkit.build(name, observation_spec=RANKS, action_spec=OneHot(3), overrides=["size=tiny"])
        losses = other.update(other.example_batch())
        assert all(losses[f"loss_{key}"].isfinite() for key in RANKS.keys())


def test_missing_observations_are_zeros_and_cost_nothing() -> None:
    spec = Composite(velocity=Unbounded((3,)), speed=Unbounded(()), held=Categorical(7))
    system = build(spec, OneHot(3))
    batch = system.example_batch()
    encoder, decoder = system.world_model.encoder, system.world_model.decoder
    blank = {"velocity": batch["velocity"].clone(), "speed": torch.zeros(3, 6), "held": batch["held"].clone()}
    blank["velocity"][..., 1] = 0.0
    gone = {key: value.clone() for key, value in blank.items()}
    gone["velocity"][..., 1] = gone["speed"][:] = -torch.inf
    assert torch.equal(encoder.encode(gone), encoder.encode(blank))
    gone["held"][:] = -1
    features = torch.randn(3, 6, 32)
    prediction = decoder.predict(features)
    for key in ("speed", "held"):
        assert not prediction[key].loss(gone[key]).any()
    kept = (prediction["velocity"].mean - symlog(gone["velocity"]))[..., ::2]
    torch.testing.assert_close(prediction["velocity"].loss(gone["velocity"]), kept.square().sum(-1))
    assert system.update(batch.update(gone))["loss_joint"].isfinite()
    assert all(parameter.isfinite().all() for parameter in system.parameters())


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (Unbounded((2, 3, 4, 5)), r"shape \[2, 3, 4, 5\]: wanted at most two dimensions; flatten it"),
        (Bounded(0, 255, (64, 64), dtype=torch.uint8), r"an image without channels: found shape \[64, 64\]"),
    ],
)
def test_vectors_of_no_known_kind_are_refused(spec: TensorSpec, found: str) -> None:
    with pytest.raises(SpecError, match=found):
        build(Composite(key=spec, observation=Unbounded((3,))), OneHot(3))


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (MultiOneHot([2, 3]), "2 choices of 2, 3 values, wanted one action; join"),
        (MultiCategorical([2, 3]), "2 choices of 2, 3 values, wanted one action; join"),
        (Composite(turn=OneHot(2), move=OneHot(3)), "keys turn, move, wanted one action; join"),
    ],
)
def test_actions_of_several_parts_are_refused(spec: TensorSpec, found: str) -> None:
    with pytest.raises(SpecError, match=found):
        build(Composite(observation=Unbounded((3,))), spec)


def test_one_hot_and_wide_numbers_are_numbers() -> None:
    spec = Composite(place=OneHot(16, dtype=torch.int64), speed=Unbounded((2,), dtype=torch.float64))
    system = build(spec, OneHot(4))
    assert not system.spaces.classes
    batch = system.example_batch()
    for place in (batch["place"], batch["place"].round().long()):
        shown = batch.clone().set("place", place).set("speed", batch["speed"].double())
        assert system.update(shown)["loss_joint"].isfinite()
