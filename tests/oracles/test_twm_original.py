"""TWM beside its own code (jrobine/twm e6a8e59), small, without dropout, with its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Composite, OneHot, UnboundedDiscrete

from support.originals import Recorded, likeliest_actions, likeliest_states, loaded, near
from wmkit.dynamics import DreamStart, dream
from wmkit.systems import System

HORIZON, ACTIONS, CLASSES = 15, 6, 8
# term there, ours, its weight: they are recorded weighed
TERMS = {
    "z_pred_loss": ("state", 1.0),
    "reward_loss": ("reward", 10.0),
    "discount_loss": ("continuation", 50.0),
    "enc_prior_loss": ("consistency", 0.01),
    "z_entropy_loss": ("entropy", 5.0),
}


# -- what is called inside ---------------------------------------------------------------------------------


class Window(NamedTuple):
    """What the world model makes of the recorded window: leaves ``[B, T, ...]``, then ``[B, T-1, ...]``."""

    posterior: Tensor  # log-probabilities
    belief: Tensor
    prior: Tensor
    reward: Tensor
    discount: Tensor
    decoded: Tensor  # of the first window's first four states


def observed(system: System, batch: dict[str, Tensor]) -> Window:
    model = system.world_model
    with torch.no_grad():
        seen = model.observe(batch)
        belief = seen.latent.belief[:, 1:]
        reward, discount = model.outcome(belief)
        decoded = model.decoder(seen.latent.state[:1, :4])["pixels"].mean
    posterior, prior = seen.posterior_logits.log_softmax(-1), seen.prior_logits[:, 1:].log_softmax(-1)
    return Window(posterior, belief, prior, reward, discount, decoded)


def losses(system: System, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    system.world_model_loss.latents.threshold = 0.99999  # the recorded entropy lies above the page's hinge
    return system.world_model_loss(system.world_model, batch).metrics


def dreamt(system: System, recorded: Recorded) -> Any:
    """Fifteen steps from one record before the start, that restart from the recorded states."""
    rows = len(recorded("in:start_z"))
    arrived = recorded("in:start_r")[:, 0]
    start = DreamStart(
        classes=recorded("in:start_z").unflatten(-1, (CLASSES, CLASSES)).argmax(-1),
        reward=torch.stack([torch.zeros(rows), arrived], 1)[..., None],
        is_init=torch.zeros(rows, 2, dtype=torch.bool),
        action=F.one_hot(recorded("in:start_a"), ACTIONS).float(),
        mask=torch.ones(rows, dtype=torch.bool),
    )
    replacements = recorded("in:replacement")
    return dream(
        system.world_model,
        system.actor,
        start,
        HORIZON,
        threshold=0.1,
        replacements=replacements,
        learn=True,
    )


def criticised(system: System, dream: Any) -> tuple[Tensor, Tensor]:
    """The critic's loss on a dream, and what it is to predict."""
    features = system.world_model.dynamics.view(dream.states, dream.beliefs, dream.classes)
    transitions = system.behaviour.transitions(dream)
    online, _, target = system.behaviour._values(system.critic, features, transitions)
    return (dream.weights.squeeze(-1) * online.loss(target)).mean(), target


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
        )
        likeliest_states(system.world_model.dynamics, recorded("noise:state"), 0.0)
        likeliest_actions(patch, recorded("noise:action"))
        yield system.eval()


@pytest.fixture(scope="module")
def batch(system: System, recorded: Recorded) -> dict[str, Tensor]:
    never = torch.zeros_like(recorded("in:done"))
    records = {name: recorded(f"in:{name}") for name in ("previous_action", "reward", "terminated", "done")}
    records |= {"pixels": recorded("in:frames"), "is_init": never}
    filled = system.fill(TensorDict(records, list(never.shape[:2])))
    return {key: value[:, system.context :] for key, value in filled.items()}


def test_the_world_model(system: System, recorded: Recorded, batch: dict[str, Tensor]) -> None:
    window = observed(system, batch)
    near(recorded("out:posterior_log_probs"), window.posterior)
    near(recorded("out:belief"), window.belief)
    near(recorded("out:prior_log_probs"), window.prior)
    near(recorded("out:reward"), window.reward)
    near(recorded("out:discount"), window.discount)
    near(recorded("out:decoder_first"), window.decoded)


def test_its_losses(system: System, recorded: Recorded, batch: dict[str, Tensor]) -> None:
    terms = losses(system, batch)
    for theirs, (ours, weight) in TERMS.items():
        near(recorded(f"out:loss_{theirs}"), weight * terms[f"loss_{ours}"])


def test_a_dream_that_restarts(system: System, recorded: Recorded) -> None:
    dream = dreamt(system, recorded)
    near(recorded("out:dream_states"), dream.states)
    near(recorded("out:dream_beliefs"), dream.beliefs)
    near(recorded("out:dream_actions"), dream.actions.argmax(-1))
    near(recorded("out:dream_rewards"), dream.rewards)
    ends = recorded("out:dream_ends")
    near(recorded("out:dream_discounts") * ~ends, dream.discounts)  # ours is zero where a dream ends
    near(ends, dream.restarts)
    near(recorded("out:dream_weights"), dream.weights)
    assert ends.any()
    critic_loss, target = criticised(system, dream)
    near(recorded("out:dream_returns"), target)
    near(recorded("out:loss_critic"), critic_loss)
