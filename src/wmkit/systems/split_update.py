"""A learner for each part of a token system, and the phases before all of them learn together (TWM).

TWM (arXiv:2303.07109; jrobine/twm): four Adams, stepped in the order dynamics, representation, critic,
actor. The sequence model sees states as constants and the representation sees what the model expected
as a constant, so the two world-model losses share no parameter; both are of the weights before the
update. Before the policy's first own step there are three phases, each with a share of a budget:

    representation   decoder and entropy term alone
    dynamics         sequence model and heads, over a representation that stands still
    behaviour        critic on real rewards; the actor learns nothing but to keep its entropy
    together         all four, behaviour in dreams
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wmkit.errors import ConfigError
from wmkit.objectives import Learner

PHASES = ("representation", "dynamics", "behaviour")
Metrics = dict[str, Tensor]


class SplitUpdate(nn.Module):
    """Four learners and three phases of pretraining.

    Args:
        system: the parts: ``world_model``, ``actor``, ``critic``, ``world_model_loss``, ``behaviour``.
        representation: ``lr``, ``eps``, ``clip`` and ``weight_decay`` of the Adam over encoder, posterior
            and decoder; the decay is added to the gradient, as Adam's always was.
        dynamics: likewise, over everything else of the world model.
        actor: likewise.
        critic: likewise.
        pretrain: updates of a pretraining of share one.
        shares: of the phases in it.

    Raises:
        ConfigError: an unknown phase.
    """

    def __init__(
        self,
        system: Any,
        *,
        representation: Mapping[str, float],
        dynamics: Mapping[str, float],
        actor: Mapping[str, float],
        critic: Mapping[str, float],
        pretrain: int = 0,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        shares = dict(shares or {})
        if unknown := set(shares) - set(PHASES):
            raise ConfigError(
                f"pretraining has no phase {', '.join(sorted(unknown))}: wanted {', '.join(PHASES)}; correct "
                "schedule.shares"
            )
        model = system.world_model
        parts = (model.encoder, model.dynamics.posterior, model.decoder)
        first = [parameter for part in parts for parameter in part.parameters()]
        known = {id(parameter) for parameter in first}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
        self.learners = {
            "representation": _adam(representation, first),
            "dynamics": _adam(dynamics, rest),
            "critic": _adam(critic, system.critic.parameters()),
            "actor": _adam(actor, system.actor.parameters()),
        }
        self.phases = {phase: round(pretrain * shares.get(phase, 0.0)) for phase in PHASES}
        self.updates = 0

    @property
    def pretraining(self) -> int:
        """Updates of all phases."""
        return sum(self.phases.values())

    @property
    def phase(self) -> str:
        """What the next update is: one of :data:`PHASES`, or ``"together"``."""
        left = self.updates
        for phase, updates in self.phases.items():
            if left < updates:
                return phase
            left -= updates
        return "together"

    def update(
        self,
        system: Any,
        batch: Mapping[str, Tensor],
        latent: Any = None,
        dreams: Mapping[str, Tensor] | None = None,
    ) -> tuple[Metrics, None]:
        """One update; metrics, and nothing that a later window could start from.

        ``dreams`` end in records that dreams may restart from.
        """
        if self.phase == "together":
            metrics = self._together(system, batch, dreams)
        else:
            metrics = getattr(self, f"_{self.phase}")(system, batch)
        self.updates += 1
        return metrics, None

    def _representation(self, system: Any, batch: Mapping[str, Tensor]) -> Metrics:
        loss, terms = system.world_model_loss.autoencoder(system.world_model, batch)
        metrics = {f"loss_{name}": term.mean.detach() for name, term in terms.items()}
        return metrics | {"loss_representation": loss.detach()} | self._step(representation=loss)

    def _dynamics(self, system: Any, batch: Mapping[str, Tensor]) -> Metrics:
        still = self.learners["representation"].parameters
        for parameter in still:  # no graph over what does not learn
            parameter.requires_grad_(False)
        learned = system.world_model_loss(system.world_model, batch)
        for parameter in still:
            parameter.requires_grad_(True)
        return learned.metrics | self._step(dynamics=learned.dynamics)

    def _behaviour(self, system: Any, batch: Mapping[str, Tensor]) -> Metrics:
        with torch.no_grad(), system.world_model.evaluating():
            learned = system.world_model_loss(system.world_model, batch)
        behaved = system.behaviour.on_records(
            system.world_model, system.actor, system.critic, learned.records
        )
        return behaved.metrics | self._step(critic=behaved.critic_loss, actor=behaved.actor_loss)

    def _together(
        self, system: Any, batch: Mapping[str, Tensor], dreams: Mapping[str, Tensor] | None
    ) -> Metrics:
        learned = system.world_model_loss(system.world_model, batch)
        norms = self._step(dynamics=learned.dynamics, representation=learned.representation)
        restart_from = None
        if dreams is not None:
            last = {key: value[:, -1:] for key, value in dreams.items()}
            restart_from = system.world_model_loss.encoded(system.world_model, last).classes[:, 0]
        behaved = system.behaviour(
            system.world_model, system.actor, system.critic, learned.records, restart_from
        )
        norms |= self._step(critic=behaved.critic_loss, actor=behaved.actor_loss)
        return learned.metrics | behaved.metrics | norms

    def _step(self, **losses: Tensor) -> Metrics:
        return {f"grad_norm_{name}": self.learners[name].step(loss) for name, loss in losses.items()}

    def get_extra_state(self) -> dict:
        """Optimiser states and the number of updates: ``state_dict`` holds all that a resume needs."""
        return {"updates": self.updates} | {k: learner.state_dict() for k, learner in self.learners.items()}

    def set_extra_state(self, state: dict) -> None:
        """Take them back."""
        self.updates = state["updates"]
        for name, learner in self.learners.items():
            learner.load_state_dict(state[name])


def _adam(settings: Mapping[str, float], parameters: Any) -> Learner:
    """An Adam learner from ``lr``, ``eps``, ``clip`` and ``weight_decay``."""
    options: dict[str, Any] = {key: value for key, value in settings.items() if key != "clip"}
    return Learner(parameters, lambda p: torch.optim.Adam(p, fused=True, **options), settings["clip"])
