"""In which order the parts of a system learn within one update."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wmkit.dynamics import Latent
from wmkit.dynamics.latent import Observed
from wmkit.objectives import Learner


def adam(settings: Mapping[str, float], parameters: Any) -> Learner:
    """An Adam learner from ``lr``, ``eps`` and ``clip``."""
    optimizer = partial(torch.optim.Adam, lr=settings["lr"], eps=settings["eps"], fused=True)
    return Learner(parameters, optimizer, settings["clip"])


class SequentialUpdate(nn.Module):
    """World model first, then actor and critic on roll-outs of the updated model.

    DreamerV3 of 2023 and LS-Imagine: three Adams with a clip each; the slow critic follows
    the critic after every update and serves as its regulariser only.

    Args:
        system: the parts: ``world_model``, ``actor``, ``critic``, ``world_model_loss``, ``behaviour``.
        world_model: ``lr``, ``eps`` and ``clip`` of its Adam.
        actor: likewise.
        critic: likewise.
        slow_fraction: how far the slow critic moves towards the critic per update.
    """

    def __init__(
        self,
        system: Any,
        *,
        world_model: Mapping[str, float],
        actor: Mapping[str, float],
        critic: Mapping[str, float],
        slow_fraction: float,
    ) -> None:
        super().__init__()
        self.slow_critic = copy.deepcopy(system.critic).requires_grad_(False)
        self.slow_fraction = slow_fraction
        self.learners = {
            "world_model": adam(world_model, system.world_model.parameters()),
            "actor": adam(actor, system.actor.parameters()),
            "critic": adam(critic, system.critic.parameters()),
        }

    def update(
        self, system: Any, batch: Mapping[str, Tensor], latent: Latent | None
    ) -> tuple[dict[str, Tensor], Observed]:
        """One update of everything; metrics and the posterior over the window."""
        learned = system.world_model_loss(system.world_model, batch, latent)
        metrics = dict(learned.metrics)
        metrics["grad_norm_world_model"] = self.learners["world_model"].step(learned.loss)
        behaved = system.behaviour(
            system.world_model,
            system.actor,
            system.critic,
            self.slow_critic,
            learned.starts,
            learned.start_mask,
            learned.start_continuation,
        )
        metrics |= behaved.metrics
        metrics["grad_norm_actor"] = self.learners["actor"].step(behaved.actor_loss)
        metrics["grad_norm_critic"] = self.learners["critic"].step(behaved.critic_loss)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.slow_critic.parameters()), list(system.critic.parameters()), self.slow_fraction
            )
        return metrics, learned.observed

    def get_extra_state(self) -> dict:
        """Optimiser states, so that ``state_dict`` holds everything a resume needs."""
        return {name: learner.state_dict() for name, learner in self.learners.items()}

    def set_extra_state(self, state: dict) -> None:
        """Take the optimiser states back."""
        for name, learner in self.learners.items():
            learner.load_state_dict(state[name])
