"""TWM beside its own code (jrobine/twm e6a8e59), small, without dropout, with its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Composite, OneHot, UnboundedDiscrete

from support.originals import (
    Recorded,
    learned,
    likeliest_actions,
    likeliest_states,
    loaded,
    near,
    rows_first,
    weighed,
)
from wmkit.dynamics import Latent
from wmkit.objectives import Scene, Start
from wmkit.systems import System

ACTIONS, CLASSES, FRAMES = 6, 8, 4
TERMS = {
    "z_pred_loss": "state",
    "reward_loss": "reward",
    "discount_loss": "continuation",
    "enc_prior_loss": "consistency",
    "z_entropy_loss": "entropy",
}
# The recorded entropies lie above the page's floors, which are to be felt here.
FELT = ("objectives.entropy.threshold=0.99999", "controller.entropy_term.threshold=0.99999")


# -- what is called inside ---------------------------------------------------------------------------------


class Window(NamedTuple):
    """What the world model makes of the recorded window: leaves ``[B, T, ...]``, then ``[B, T-1, ...]``."""

    posterior: Tensor  # log-probabilities
    belief: Tensor
    prior: Tensor
    reward: Tensor
    discount: Tensor
    decoded: Tensor  # of the first window's first four states


def observed(scene: Scene) -> Window:
    model, seen = scene.world_model, scene.observed
    after = seen.latent.map(lambda x: x[:, 1:])
    first = model.read(model.decoder, seen.latent.map(lambda x: x[:1, :4]))
    return Window(
        seen.posterior_logits.log_softmax(-1),
        after.belief,
        seen.prior_logits[:, 1:].log_softmax(-1),
        model.predict("reward", after).mean,
        model.continuation(after),
        model.decoder.predict(first)["pixels"].mean,
    )


def start(system: System, recorded: Recorded) -> Start:
    """The recorded starts, one record before each in memory, and where to begin anew."""
    dynamics = system.world_model.dynamics

    def latent(state: Tensor) -> Latent:
        nothing = state.new_zeros(*state.shape[:-1], dynamics.belief_dim)
        return Latent(state, nothing, None, dynamics.latent.classes_of(state))

    arrived, action = recorded("in:start_r"), F.one_hot(recorded("in:start_a"), ACTIONS).float()
    record = {
        "previous_action": torch.cat([torch.zeros_like(action), action], 1),
        "reward": torch.stack([torch.zeros_like(arrived), arrived.atanh()], 1),  # a token holds its tanh
        "is_init": torch.zeros(len(action), 2, dtype=torch.bool),
    }
    with torch.no_grad():
        begun = dynamics.remember(latent(recorded("in:start_z")), record)
    mask = torch.ones(len(action), 1, dtype=torch.bool)
    others = F.one_hot(recorded("in:replacement"), CLASSES).flatten(1).float()
    return Start(begun, mask, mask.float(), latent(others))


# -- the checks --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded("twm")


@pytest.fixture(scope="module")
def system(recorded: Recorded) -> Iterator[System]:
    sizes = {"deter": 32, "hidden": 512, "units": 16, "layers": 2, "depth": 4, "blocks": 2, "groups": 8}
    with pytest.MonkeyPatch.context() as patch:
        system = loaded(
            "twm",
            recorded,
            Composite(pixels=UnboundedDiscrete((1, 64, 64), dtype=torch.uint8)),
            OneHot(ACTIONS),
            "size=paper",
            *(f"size.{name}={size}" for name, size in sizes.items()),
            f"size.classes={CLASSES}",
            *("batch.size=3", "batch.length=18", "training.pretrain=0"),
            *FELT,
        )
        likeliest_states(system.world_model.dynamics, recorded("noise:state"), 0.0)
        likeliest_actions(patch, recorded("noise:action"))
        yield system.eval()


@pytest.fixture(scope="module")
def scene(system: System, recorded: Recorded) -> Scene:
    records = {name: recorded(f"in:{name}") for name in ("previous_action", "reward", "terminated", "done")}
    records |= {"pixels": recorded("in:frames"), "is_init": torch.zeros_like(records["done"])}
    return system.scene(TensorDict(records, list(records["done"].shape[:2])))


def test_the_world_model(recorded: Recorded, scene: Scene) -> None:
    window = observed(scene)
    near(recorded("out:posterior_log_probs"), window.posterior)
    near(recorded("out:belief"), window.belief)
    near(recorded("out:prior_log_probs"), window.prior)
    near(recorded("out:reward"), window.reward)
    near(recorded("out:discount"), window.discount)
    near(recorded("out:decoder_first"), window.decoded)


def test_its_losses(system: System, recorded: Recorded, scene: Scene) -> None:
    losses = weighed(system, scene)
    for theirs, ours in TERMS.items():
        near(recorded(f"out:loss_{theirs}"), losses[ours])
    constant = FRAMES * 64 * 64 * 0.5 * math.log(2 * math.pi)  # of a normal's density, left out here
    near(recorded("out:loss_dec_loss"), losses["pixels"] + constant)


def test_behaviour_in_dreams_that_begin_anew(system: System, recorded: Recorded, scene: Scene) -> None:
    system.controller.starts = lambda scene: start(system, recorded)
    made = learned(system, scene)
    found, targets, ends = made["found"], made["targets"], recorded("out:dream_ends")
    near(recorded("out:dream_states"), rows_first(found.latent.state))
    near(recorded("out:dream_beliefs"), rows_first(found.latent.belief))
    near(recorded("out:dream_actions"), rows_first(found.actions).argmax(-1))
    near(recorded("out:dream_rewards"), rows_first(targets.reward))
    # ours is zero where a dream ends
    near(recorded("out:dream_discounts") * ~ends, targets.transitions["next", "continuation"])
    near(ends, rows_first(found.restarts))
    near(recorded("out:dream_weights"), rows_first(targets.critic_weight))
    near(recorded("out:dream_returns"), rows_first(targets.critic))
    near(recorded("out:loss_critic"), made["critic"])
    near(recorded("out:loss_actor_hinge_open"), made["actor"])
    assert ends.any()
