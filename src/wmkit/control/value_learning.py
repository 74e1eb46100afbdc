"""What a planner's actor and critic learn from records: temporal differences (TD-MPC2, arXiv:2310.16828).

::

    critic   q(z_t, a_t) -> r_{t+1} + γ min of two slow q(z'_{t+1}, a ~ π)
    actor    climbs  mean of two q(z_t, a ~ π) / scale + entropy

where z is imagined along real actions, with the critic's gradient and without the actor's, and z' is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.control.actor_critic import Learned
from wmkit.control.planners.costs import two_of
from wmkit.dynamics import Latent, WorldModel, constants
from wmkit.errors import ConfigError
from wmkit.objectives import Scene, Term
from wmkit.objectives.objective import decayed

TERMS = ("actor", "critic")


class RangeNorm(nn.Module):
    """A running range of values, to divide by: mean distance of two quantiles, each time one or more.

    Args:
        rate: share of the newest range.
        low: lower quantile.
        high: upper quantile.

    >>> norm = RangeNorm(rate=0.5)
    >>> norm.update(torch.linspace(0.0, 100.0, 101))
    >>> norm.value
    tensor([45.5000])
    """

    def __init__(self, rate: float = 0.01, low: float = 0.05, high: float = 0.95) -> None:
        super().__init__()
        for name, value in (("rate", rate), ("low", low), ("high", high)):
            check_range(name, value, 0, 1)
        self.rate, self.low, self.high = rate, low, high
        self.value: Tensor
        self.register_buffer("value", torch.ones(1))

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Take in the range of some values."""
        rows, count = values.detach().flatten().float().sort().values, values.numel()
        least, most = (_quantile(rows, share * (count - 1)) for share in (self.low, self.high))
        self.value.lerp_((most - least).clamp(min=1.0).expand_as(self.value), self.rate)

    def forward(self, values: Tensor) -> Tensor:
        """Values, divided by the range."""
        return values / self.value


class ValueLearning(nn.Module):
    """Temporal differences for an ensemble of critics, and an actor that climbs them.

    Whoever is not asked to learn has parameters that need no gradient, and costs nothing
    (:meth:`~wmkit.optim.Schedule.alone`).

    Args:
        gamma: discount of a step. TD-MPC2: ``clip((T/5 - 1) / (T/5), 0.95, 0.995)`` for episodes of T steps.
        decay: factor on a loss for every step after the first.
        entropy: factor on the policy's entropy, times the numbers of an action.
        norm: of the values that the actor climbs.
        weights: factors on ``actor`` and ``critic``.

    Raises:
        ConfigError: a number out of range, or weights of other terms.
    """

    shortest = 2

    def __init__(
        self,
        *,
        gamma: float,
        decay: float = 0.5,
        entropy: float = 1e-4,
        norm: RangeNorm | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        check_range("gamma", gamma, 0, 1)
        check_range("decay", decay, 0, 1)
        self.gamma, self.decay, self.entropy = gamma, decay, entropy
        self.norm = norm or RangeNorm()
        self.weights = {"actor": 1.0, "critic": 0.1} | dict(weights or {})
        if len(self.weights) > len(TERMS):
            raise ConfigError(
                f"weights are of {', '.join(weights or ())}: wanted some of {' and '.join(TERMS)}; "
                "correct weights"
            )

    def forward(self, scene: Scene, actor: Any, critic: Any, slow: Mapping[str, Any]) -> Learned:
        """Score those that learn.

        Args:
            scene: a window of records and what the world model makes of it; the critic's gradient reaches it.
            actor: the policy.
            critic: an ensemble of action values.
            slow: slow copies by name; the critic itself where there is no ``critic`` among them.
        """
        terms: dict[str, Term] = {}
        metrics: dict[str, Tensor] = {}
        if _learns(critic):
            terms["critic"] = self._critic(scene, actor, critic, slow.get("critic", critic), metrics)
            metrics["loss_critic"] = terms["critic"].loss
        if _learns(actor):
            with constants(scene.world_model, critic):
                terms["actor"] = self._actor(scene, actor, critic, metrics)
            metrics["loss_actor"] = terms["actor"].loss
        terms = {name: term._replace(value=self.weights[name] * term.value) for name, term in terms.items()}
        return Learned(terms, {name: value.detach() for name, value in metrics.items()})

    def _critic(self, scene: Scene, actor: Any, critic: Any, slow: Any, metrics: dict[str, Tensor]) -> Term:
        model, found, batch = scene.world_model, scene.unrolled, scene.batch
        with torch.no_grad():
            steps = [
                step._replace(state=state, classes=None)
                for step, state in zip(found.steps[1:], found.seen.state.unbind(1), strict=True)
            ]
            policy = actor.policy(model.read(actor, found.seen))
            action = policy.sample(actor.noise(*found.seen.state.shape[:2], device=found.seen.state.device))
            following = two_of(_values(model, slow, steps, action)).amin(0)  # [B, T-1, 1]
            goes_on = 1 - batch["terminated"][:, 1:].float()
            target = batch["reward"][:, 1:].float() + self.gamma * goes_on * following
        after = found.latent.light().map(lambda x: x[:, 1:])
        prediction = critic.predict(model.read(critic, after))
        members = prediction.mean.shape[0]
        loss = prediction.loss(target.expand(members, *target.shape)).mean(0)  # [B, T-1]
        metrics["value_target"] = target.mean()
        return Term(decayed(loss, self.decay), found.unbroken[:, 1:], "critic")

    def _actor(self, scene: Scene, actor: Any, critic: Any, metrics: dict[str, Tensor]) -> Term:
        model, found = scene.world_model, scene.unrolled
        latent = found.latent.light().detach()
        policy = actor.policy(model.read(actor, latent))
        action = policy.rsample(actor.noise(*latent.state.shape[:2], device=latent.state.device))
        steps = [step.detach() for step in found.steps]
        value = two_of(_values(model, critic, steps, action)).mean(0)  # [B, T, 1]
        self.norm.update(value[:, 0])
        bonus = self.entropy * action.shape[-1] * policy.entropy  # [B, T]
        loss = -(self.norm(value).squeeze(-1) + bonus)
        metrics |= {"policy_entropy": policy.entropy.mean(), "value": value.mean()}
        metrics["value_scale"] = self.norm.value.squeeze()
        return Term(decayed(loss, self.decay), found.unbroken, "actor")


def _values(model: WorldModel, critic: Any, steps: list[Latent], action: Tensor) -> Tensor:
    """Action values ``[K, B, T, 1]`` of latents by step and actions ``[B, T, A]``."""
    believed = [model.dynamics.believe(step, one) for step, one in zip(steps, action.unbind(1), strict=True)]
    belief = torch.stack(believed, 1)
    return critic.predict(model.read(critic, Latent(belief, belief))).mean


def _learns(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _quantile(rows: Tensor, place: float) -> Tensor:
    """Between two of the sorted ``rows [N]``."""
    below = int(place)
    return torch.lerp(rows[below], rows[min(below + 1, len(rows) - 1)], place - below)
