"""STORM beside its own code (weipu-zhang/STORM 1c50658), small, without dropout, with its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Composite, OneHot, UnboundedDiscrete

from support.originals import Recorded, likeliest_actions, likeliest_states, loaded, near
from wmkit.dynamics import DreamStart, dream
from wmkit.functional import unimix_probs
from wmkit.systems import System

HORIZON, ACTIONS, UNIMIX, GAMMA = 16, 6, 0.01, 0.985
TERMS = {
    "reconstruction": "pixels",
    "reward": "reward",
    "termination": "continuation",
    "dynamics_kl": "kl_dynamics",
    "representation_kl": "kl_representation",
}


# -- what is called inside ---------------------------------------------------------------------------------


def posterior(system: System, batch: dict[str, Tensor]) -> Tensor:
    """Log-probabilities ``[B, T, G, C]``, with running statistics or the batch's as the mode says."""
    with torch.no_grad():
        return unimix_probs(system.world_model.observe(batch).posterior_logits, UNIMIX).log()


def losses(system: System, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return system.world_model_loss(system.world_model, batch).metrics


def dreamt(system: System, batch: dict[str, Tensor]) -> Any:
    """From eight records of each window; the first state is the model's expectation."""
    records = system.world_model_loss.encoded(system.world_model, batch, blank=1)
    start = DreamStart(
        records.classes,
        records.reward,
        records.is_init,
        records.previous_action[:, 1:],
        torch.ones(len(records.classes), dtype=torch.bool),
    )
    return dream(system.world_model, system.actor, start, HORIZON, prior_start=True, learn=True)


# -- the checks --------------------------------------------------------------------------------------------


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


def filled(system: System, **records: Tensor) -> dict[str, Tensor]:
    """Records ``[B, T, ...]`` of episodes that neither begin nor, unless told, end."""
    lead = records["pixels"].shape[:2]
    usual = {name: torch.zeros(*lead, 1, dtype=torch.bool) for name in ("is_init", "terminated", "done")}
    batch = usual | {"reward": torch.zeros(*lead, 1)} | records
    return dict(system.fill(TensorDict(batch, list(lead))))


@pytest.fixture(scope="module")
def batch(system: System, recorded: Recorded) -> dict[str, Tensor]:
    records = {name: recorded(f"in:{name}") for name in ("pixels", "previous_action", "reward", "terminated")}
    return filled(system, **records, done=records["terminated"])


def test_the_posterior_with_running_statistics(
    system: System, recorded: Recorded, batch: dict[str, Tensor]
) -> None:
    system.eval()
    near(recorded("out:eval_posterior_log_probs"), posterior(system, batch))


def test_a_dream(system: System, recorded: Recorded) -> None:
    system.eval()
    starts = {name: recorded(f"in:dream_{name}") for name in ("pixels", "previous_action")}
    dream = dreamt(system, filled(system, **starts))
    near(recorded("out:dream_latent"), torch.cat([dream.states, dream.beliefs], -1))
    near(recorded("out:dream_action"), dream.actions.argmax(-1))
    near(recorded("out:dream_reward"), dream.rewards)
    near(GAMMA * (1 - recorded("out:dream_end")), dream.discounts)


def test_losses_with_the_batchs_statistics(
    system: System, recorded: Recorded, batch: dict[str, Tensor]
) -> None:
    statistics = [x.clone() for x in system.buffers()]
    system.train()
    terms = losses(system, batch)
    for theirs, ours in TERMS.items():
        near(recorded(f"out:loss_{theirs}"), terms[f"loss_{ours}"])
    for x, before in zip(system.buffers(), statistics, strict=True):  # the batch has moved some
        x.copy_(before)
