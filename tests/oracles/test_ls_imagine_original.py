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

import wmkit.objectives.actor_critic
from support.originals import Recorded, kept, likeliest_actions, likeliest_states, loaded, near
from wmkit.systems import System

WINDOWS, LENGTH, ACTIONS, UNIMIX = 2, 6, 12, 0.01
STATES = WINDOWS * LENGTH


# -- what is called inside ---------------------------------------------------------------------------------


def filled(system: System, records: TensorDict) -> dict[str, Any]:
    return dict(system.fill(records))


def scored(system: System, batch: dict[str, Any]) -> Any:
    """What the world model's loss gives: the loss, what was observed, and where behaviour may start."""
    return system.world_model_loss(system.world_model, batch)


def imagined(system: System, output: Any) -> tuple[Any, Tensor]:
    """The roll-out that behaviour learns from, leaves ``[N, H, ...]``, and its returns ``[N, H, 1]``."""
    dreams: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        kept(patch, wmkit.objectives.actor_critic, "imagine", lambda out, *_, **__: dreams.append(out))
        system.schedule.behave(system, output)
    dream = dreams[0]
    transitions = system.behaviour.transitions(system.world_model, dream)
    after = dream.features.map(lambda x: x[:, 1:])
    transitions.set(("next", "state_value"), system.critic(after).mean.detach())
    return dream, system.behaviour.estimator.value_estimate(transitions)


# -- the checks --------------------------------------------------------------------------------------------


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
            *("world_model_loss.long_branch.capacity=1.0", "behaviour.gate.prob=1.0"),
        )
        likeliest_states(system.world_model.dynamics.short, recorded("noise:state"), UNIMIX)
        likeliest_actions(patch, recorded("noise:action"))
        yield system


@pytest.fixture(scope="module")
def batch(system: System, recorded: Recorded) -> dict[str, Any]:
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
    return filled(system, records)


@pytest.fixture(scope="module")
def output(system: System, batch: dict[str, Any]) -> Any:
    return scored(system, batch)


@pytest.fixture(scope="module")
def rows(recorded: Recorded, output: Any) -> Tensor:
    """Our start of each recorded one: every state, then those jumps that the original keeps, in its order."""
    theirs = recorded("out:zoomed_deter").flatten(0, 1)
    ours = output.starts.belief[STATES:].masked_fill(~output.start_mask[STATES:].view(-1, 1), torch.inf)
    jumps = [int((ours - one).abs().sum(-1).argmin()) for one in theirs]
    return torch.cat([torch.arange(STATES), STATES + torch.tensor(jumps)])


def test_the_world_model(system: System, recorded: Recorded, batch: dict[str, Any], output: Any) -> None:
    near(recorded("out:encoder"), system.world_model.encoder(batch))
    near(recorded("out:deter"), output.observed.latent.belief)
    near(recorded("out:post_logit"), output.observed.posterior_logits)
    near(recorded("out:prior_logit"), output.observed.prior_logits)
    near(recorded("out:loss_model"), output.loss)


def test_the_posteriors_of_jumps(recorded: Recorded, output: Any, rows: Tensor) -> None:
    assert len(set(rows.tolist())) == len(rows) > STATES
    near(recorded("out:zoomed_deter"), output.starts.belief[rows[STATES:]])


def test_imagination_with_jumps(system: System, recorded: Recorded, output: Any, rows: Tensor) -> None:
    dream, returns = imagined(system, output)

    def theirs(name: str) -> Tensor:
        return recorded(f"out:{name}")[:, : len(rows)].transpose(0, 1)  # steps come first there

    near(theirs("imagined_feature"), torch.cat([dream.states, dream.beliefs], -1)[rows])
    near(theirs("imagined_jump")[:, :-1], dream.jumps[rows])
    near(theirs("imagined_action")[:, :-1], dream.actions[rows])
    near(theirs("returns"), returns[rows])
    assert dream.jumps[rows].any()
