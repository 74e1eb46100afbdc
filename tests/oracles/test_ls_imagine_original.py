"""LS-Imagine beside its own code (qiwang067/LS-Imagine b6a9e4c), small, with the original's weights.

Every step of the window is resolved into a jump (``capacity=1``) and every imagined state may jump
(``gate.prob=1``), as the recorded numbers were made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Composite, OneHot, Unbounded, UnboundedDiscrete

from support.originals import Recorded, learned, likeliest_actions, likeliest_states, loaded, near, weighed
from wmkit.objectives import Scene
from wmkit.systems import System

WINDOWS, LENGTH, ACTIONS, UNIMIX = 2, 6, 12, 0.01
STATES = WINDOWS * LENGTH


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded("ls_imagine")


@pytest.fixture(scope="module")
def system(recorded: Recorded) -> Iterator[System]:
    sizes = {"groups": 8, "classes": 8, "deter": 48, "hidden": 24, "units": 24, "depth": 4}
    spec = Composite(
        pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8),
        affordance=UnboundedDiscrete((1, 64, 64), dtype=torch.uint8),
        reward=Unbounded((1,)),
    )
    with pytest.MonkeyPatch.context() as patch:
        system = loaded(
            "ls_imagine",
            recorded,
            spec,
            OneHot(ACTIONS),
            "size=paper",
            *(f"size.{name}={size}" for name, size in sizes.items()),
            *(f"batch.size={WINDOWS}", f"batch.length={LENGTH}"),
            *("objectives.branches.capacity=1.0", "controller.hooks.gate.prob=1.0"),
        )
        likeliest_states(system.world_model.dynamics.short, recorded("noise:state"), UNIMIX)
        likeliest_actions(patch, recorded("noise:action"))
        yield system


@pytest.fixture(scope="module")
def scene(system: System, recorded: Recorded) -> Scene:
    def image(name: str) -> Tensor:  # channels last there, none in a map
        x = recorded(f"in:{name}")
        return x.permute(0, 1, 4, 2, 3).contiguous() if x.ndim == 5 else x.unsqueeze(2)

    def number(name: str) -> Tensor:
        return recorded(f"in:{name}").unsqueeze(-1)

    lead = [WINDOWS, LENGTH]
    numbers = {
        "reward": "reward",
        "is_init": "is_first",
        "terminated": "is_terminal",
        "done": "is_terminal",
        "jump": "jump",
        "intrinsic_reward": "intrinsic",
        "is_zoomed": "is_zoomed",
        "jump_resolved": "is_calculated",
        "jump_steps": "jumping_steps",
        "jump_return": "accumulated_reward",
    }
    zoomed = {
        "pixels": image("zoomed_image"),
        "affordance": image("heatmap_on_zoomed"),
        "reward": number("reward"),
        "intrinsic_reward": number("intrinsic_on_zoomed"),
    }
    records = TensorDict({ours: number(theirs) for ours, theirs in numbers.items()}, lead)
    records.update({"pixels": image("image"), "affordance": image("heatmap")})
    records.set("previous_action", recorded("in:action")).set("zoomed", TensorDict(zoomed, lead))
    return system.scene(records)


@pytest.fixture(scope="module")
def losses(system: System, scene: Scene) -> dict[str, Tensor]:
    """Of the world model; leaves in the scene where jumps lead to."""
    return weighed(system, scene)


@pytest.fixture(scope="module")
def rows(system: System, recorded: Recorded, scene: Scene, losses: dict[str, Tensor]) -> Tensor:
    """Our start of each recorded one: every state, then those jumps that the original keeps, in its order."""
    starts, theirs = system.controller.starts(scene), recorded("out:zoomed_deter").flatten(0, 1)
    ours = starts.latent.belief.masked_fill(~starts.mask, torch.inf)[STATES:]
    jumps = [int((ours - one).abs().sum(-1).argmin()) for one in theirs]
    return torch.cat([torch.arange(STATES), STATES + torch.tensor(jumps)])


def test_the_world_model(system: System, recorded: Recorded, scene: Scene, losses: dict[str, Tensor]) -> None:
    near(recorded("out:encoder"), system.world_model.encoder.encode(scene.batch))
    near(recorded("out:deter"), scene.observed.latent.belief)
    near(recorded("out:post_logit"), scene.observed.posterior_logits)
    near(recorded("out:prior_logit"), scene.observed.prior_logits)
    near(recorded("out:loss_model"), sum(losses.values()))


def test_the_posteriors_of_jumps(system: System, recorded: Recorded, scene: Scene, rows: Tensor) -> None:
    assert len(set(rows.tolist())) == len(rows) > STATES
    near(recorded("out:zoomed_deter"), system.controller.starts(scene).latent.belief[rows[STATES:]])


@pytest.fixture(scope="module")
def made(system: System, scene: Scene) -> dict[str, Any]:
    return learned(system, scene)


def test_imagination_with_jumps(recorded: Recorded, made: dict[str, Any], rows: Tensor) -> None:
    found = made["found"]

    def theirs(name: str) -> Tensor:
        return recorded(f"out:{name}")[:, : len(rows)]  # a second roll-out of some follows

    def ours(x: Tensor) -> Tensor:
        return x[:, rows]

    near(theirs("imagined_feature"), ours(torch.cat([found.latent.state, found.latent.belief], -1)))
    near(theirs("imagined_jump")[:-1], ours(found.options))
    near(theirs("imagined_action")[:-1], ours(found.actions))
    near(theirs("returns"), ours(made["targets"].critic))
    assert ours(found.options).any()


def test_second_roll_outs_begin_anywhere_in_the_first(
    recorded: Recorded, made: dict[str, Any], rows: Tensor
) -> None:
    found, theirs = made["found"], recorded("out:imagined_feature")[:, len(rows) :]
    second = rows + found.valid.shape[0] // 2
    second = second[found.valid[second].squeeze(-1)]
    ours = torch.cat([found.latent.state, found.latent.belief], -1)[:, second]
    assert theirs.shape == ours.shape  # from the same starts
    order = torch.cdist(theirs[0], ours[0]).argmin(-1)  # theirs are sorted by where they branch off
    assert len(set(order.tolist())) == len(order) > 0
    near(theirs, ours[:, order])
    near(recorded("out:returns")[:, len(rows) :], made["targets"].critic[:, second[order]])
