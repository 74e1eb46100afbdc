"""World model first, with one optimiser; then actor and critic together, with another (STORM)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wmkit.systems.schedules import Schedule, adam


class PairedUpdate(Schedule):
    """Two Adams; the slow critic follows the critic after every update.

    Args:
        system: the parts: ``world_model``, ``actor``, ``critic``, ``world_model_loss``, ``behaviour``.
        world_model: ``lr``, ``eps`` and ``clip`` of its Adam.
        agent: likewise, over actor and critic.
        slow_fraction: how far the slow critic moves towards the critic per update.
    """

    takes_dreams = True

    def __init__(
        self,
        system: Any,
        *,
        world_model: Mapping[str, float],
        agent: Mapping[str, float],
        slow_fraction: float,
    ) -> None:
        behaviour = itertools.chain(system.actor.parameters(), system.critic.parameters())
        learners = {
            "world_model": adam(world_model, system.world_model.parameters()),
            "agent": adam(agent, behaviour),
        }
        super().__init__(system, slow_fraction, learners)

    def update(
        self,
        system: Any,
        batch: Mapping[str, Tensor],
        latent: Any = None,
        dreams: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], None]:
        """One update of everything; metrics, and nothing that a later window could start from.

        ``dreams`` are windows for dreams alone; without them these start from the batch.
        """
        learned = system.world_model_loss(system.world_model, batch)
        metrics = dict(learned.metrics)
        loss = learned.representation + learned.dynamics
        metrics["grad_norm_world_model"] = self.learners["world_model"].step(loss)
        records = learned.records
        if dreams is not None:
            blank = int(system.behaviour.starts_unseen)
            records = system.world_model_loss.encoded(system.world_model, dreams, blank=blank)
        behaved = system.behaviour(system.world_model, system.actor, system.critic, records, self.slow_critic)
        metrics |= behaved.metrics
        metrics["grad_norm_agent"] = self.learners["agent"].step(behaved.actor_loss + behaved.critic_loss)
        self.follow(system.critic)
        return metrics, None
