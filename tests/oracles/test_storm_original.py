"""STORM beside its own code (weipu-zhang/STORM 1c50658), small, without dropout, with its weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
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
from wmkit.control import SampledStarts
from wmkit.functional import unimix_probs
from wmkit.objectives import Scene
from wmkit.systems import System

ACTIONS, UNIMIX, GAMMA = 6, 0.01, 0.985
TERMS = {
    "reconstruction": ("pixels", 1.0),
    "reward": ("reward", 1.0),
    "termination": ("continuation", 1.0),
    "dynamics_kl": ("kl_dynamics", 0.5),
    "representation_kl": ("kl_representation", 0.1),
}


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded("storm")


@pytest.fixture(scope="module")
def system(recorded: Recorded) -> Iterator[System]:
    sizes = {"deter": 32, "hidden": 32, "units": 16, "depth": 4, "heads": 4, "groups": 8, "classes": 8}
    with pytest.MonkeyPatch.context() as patch:
        system = loaded(
            "storm",
            recorded,
            Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8)),
            OneHot(ACTIONS),
            "size=paper",
            *(f"size.{name}={size}" for name, size in sizes.items()),
            *("batch.size=2", "batch.length=13"),
        )
        likeliest_states(system.world_model.dynamics, recorded("noise:state"), UNIMIX)
        likeliest_actions(patch, recorded("noise:action"))
        yield system


@pytest.fixture
def scene(system: System, recorded: Recorded) -> Scene:
    """The recorded window, and the windows that dreams start from; nothing is computed yet."""
    names = ("pixels", "previous_action", "reward", "terminated")
    window = records(**{name: recorded(f"in:{name}") for name in names})
    dreams = records(**{name: recorded(f"in:dream_{name}") for name in ("pixels", "previous_action")})
    system.controller.starts = SampledStarts(len(dreams), dreams.shape[1] - 1, look=False)
    system.dream_windows = tuple(dreams.shape)
    return system.scene(window, dreams)


def records(**given: Tensor) -> TensorDict:
    """Records ``[B, T]`` of episodes that neither begin nor, unless told, end."""
    lead = list(given["pixels"].shape[:2])
    never = torch.zeros(*lead, 1, dtype=torch.bool)
    usual = {"is_init": never, "terminated": never, "reward": torch.zeros(*lead, 1)} | given
    return TensorDict(usual | {"done": usual["terminated"]}, lead)


def log_probs(logits: Tensor) -> Tensor:
    return unimix_probs(logits, UNIMIX).log()


def test_the_posterior_with_running_statistics(system: System, recorded: Recorded, scene: Scene) -> None:
    system.eval()
    near(recorded("out:eval_posterior_log_probs"), log_probs(scene.posterior_logits))


def test_behaviour_in_dreams(system: System, recorded: Recorded, scene: Scene) -> None:
    system.eval()
    made = learned(system, scene)
    found, targets = made["found"], made["targets"]
    near(recorded("out:dream_latent"), rows_first(torch.cat([found.latent.state, found.latent.belief], -1)))
    near(recorded("out:dream_action"), rows_first(found.actions).argmax(-1))
    near(recorded("out:dream_reward"), rows_first(targets.reward))
    discounts = GAMMA * (1 - recorded("out:dream_end"))
    near(discounts, targets.transitions["next", "continuation"])
    near(recorded("out:dream_returns"), rows_first(targets.critic))


def test_the_world_model_with_the_batchs_statistics(system: System, recorded: Recorded, scene: Scene) -> None:
    statistics = [x.clone() for x in system.buffers()]
    system.train()
    losses, seen = weighed(system, scene), scene.observed
    for x, before in zip(system.buffers(), statistics, strict=True):  # the batch has moved some
        x.copy_(before)
    near(recorded("out:posterior_log_probs"), log_probs(seen.posterior_logits))
    near(recorded("out:prior_log_probs"), log_probs(seen.prior_logits[:, 1:]))
    near(recorded("out:belief"), seen.latent.belief[:, 1:])
    for theirs, (ours, weight) in TERMS.items():
        near(weight * recorded(f"out:loss_{theirs}"), losses[ours])
    near(recorded("out:loss_total"), sum(losses.values()))
