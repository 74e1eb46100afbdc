"""Behaviour learning of the first two Dreamers (arXiv:1912.01603, eq. 5-8; arXiv:2010.02193, eq. 4-6).

Unlike DreamerV3's, a value counts the reward of the state itself, and nothing is normalised::

    states       s_0     s_1     s_2   ...   s_{H-1}   s_H
    actions      a_0     a_1     a_2   ...   a_{H-1}
    targets      t_0     t_1     t_2   ...   t_{H-1}            t_i = r_i + d_i [(1-λ) v_{i+1} + λ t_{i+1}]
    critic       l_0     l_1     l_2   ...   l_{H-1}            without l_0 in V1, which drops the start
    actor        a_0: t_1   a_1: t_2   ...                      what an action can change begins at t_{i+1}

``a_{H-1}`` leads only to the state that is bootstrapped from and learns nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.dynamics import Latent, Trajectory, WorldModel, constants, imagine, imagine_through
from wmkit.errors import ConfigError
from wmkit.nn import Feature
from wmkit.objectives.actor_critic import ActorCriticOutput
from wmkit.objectives.transitions import as_transitions

STARTS = ("scored", "dropped")


class ActorCriticLoss2020(nn.Module):
    """Losses of actor and critic on roll-outs of the current policy in the model (DreamerV1, DreamerV2).

    Targets are bootstrapped, and baselines taken, from the critic that the schedule hands over as the slow
    one: a copy in V2, the critic itself in V1. Where the actor's gradient comes from is a part, one
    for each kind of action.

    Args:
        horizon: transitions H of a roll-out, 2 or more.
        estimator: a TorchRL value estimator. It is shown a transition for each state, with that
            state's own reward and discount and the next one's value; ``differentiable`` where the
            actor climbs through the dynamics.
        rewards: heads whose predictions add up to the reward, with their factors.
        gradients: by kind of action, ``"discrete"`` and ``"continuous"``: :class:`Reinforce`,
            :class:`ThroughDynamics` or :class:`MixedGradient`.
        discount: of one step, where no continue head predicts it; also of the start, whose end is known.
        entropy: factor on the policy's entropy.
        start: whether the critic is ``"scored"`` at the states of replay too and weights begin there (V2),
            or they are ``"dropped"`` and weights begin after them (V1).

    Raises:
        ConfigError: an unknown ``start``, a horizon below 2, a gradient through the dynamics with an
            estimator that keeps none, or no gradient for the actor's kind of action.
    """

    gate = None  # these roll-outs never jump
    gradients: dict[str, Any]

    def __init__(
        self,
        *,
        horizon: int,
        estimator: Any,
        rewards: Mapping[str, float],
        gradients: Mapping[str, Any],
        discount: float,
        entropy: float = 0.0,
        start: Literal["scored", "dropped"] = "scored",
    ) -> None:
        super().__init__()
        if start not in STARTS or horizon < 2:
            raise ConfigError(
                f"behaviour has start {start!r} and horizon {horizon}: wanted start {' or '.join(STARTS)} "
                "and a horizon of 2 or more; correct behaviour.start or behaviour.horizon"
            )
        check_range("behaviour.discount", discount, 0, 1)
        through = any(gradient.through for gradient in gradients.values())
        if through and not getattr(estimator, "differentiable", False):
            raise ConfigError(
                "behaviour climbs through the dynamics with an estimator that keeps no gradient: found "
                "differentiable false, wanted true; set behaviour.estimator.differentiable=true"
            )
        self.horizon, self.discount, self.entropy, self.start = horizon, discount, entropy, start
        self.rewards, self.gradients, self.estimator = dict(rewards), dict(gradients), estimator

    def forward(
        self,
        world_model: WorldModel,
        actor: Any,
        critic: Any,
        slow_critic: Any,
        starts: Latent,
        start_mask: Tensor,
        start_continuation: Tensor,
    ) -> ActorCriticOutput:
        """Imagine from ``starts`` and score actor and critic.

        Args:
            world_model: a constant; the actor's gradient may pass through it.
            actor: features to a distribution over actions.
            critic: features to a prediction of the return.
            slow_critic: what targets are bootstrapped from; may be ``critic``.
            starts: leaves ``[S, ...]``.
            start_mask: ``[S, 1]`` bool, starts that count.
            start_continuation: ``[S, 1]`` float, one where the episode goes on after the start.
        """
        gradient = self._gradient(actor)
        roll_out = imagine_through if gradient.through else imagine
        with constants(world_model, slow_critic):
            trajectory = roll_out(
                world_model, actor, starts, self.horizon, learn=gradient.scored or self.entropy != 0
            )
            features = trajectory.time_major  # [H+1, S, ...]
            reward = self._reward(world_model, features)  # [S, H+1, 1]
            discount = self._discount(world_model, trajectory, start_continuation)  # [S, H+1, 1]
            value = slow_critic(features).mean.transpose(0, 1)  # [S, H+1, 1]
        first = 0 if self.start == "scored" else 1
        target = self._target(reward[:, first:], discount[:, first:], value[:, first:])  # [S, H-first, 1]
        mask = start_mask.unsqueeze(1)  # [S, 1, 1]
        with torch.no_grad():
            whole = torch.ones_like(discount[:, :1])
            weight = torch.cat([whole, discount[:, first:-1]], 1).cumprod(1) * mask  # [S, H+1-first, 1]

        scored = critic(features.map(lambda x: x[first:-1].detach()))
        critic_loss = scored.loss(target.detach().transpose(0, 1)).t().unsqueeze(-1)  # [S, H-first, 1]
        critic_loss = _mean(weight[:, :-1] * critic_loss, start_mask)

        acting = self.horizon - 1
        log_prob, entropy = trajectory.log_probs, trajectory.entropies
        gain = gradient(
            target[:, 1 - first :],
            value[:, :acting].detach(),
            None if log_prob is None else log_prob[:, :acting, None],
        )  # [S, H-1, 1]
        metrics = {}
        if entropy is not None:
            gain = gain + self.entropy * entropy[:, :acting, None]
            metrics["policy_entropy"] = _mean(entropy[..., None] * mask, start_mask)
        actor_loss = -_mean(weight[:, :acting] * gain, start_mask)
        metrics |= {
            "loss_actor": actor_loss,
            "loss_critic": critic_loss,
            "imagined_return": _mean(target * mask, start_mask),
            "imagined_value": _mean(value * mask, start_mask),
            "imagined_reward": _mean(reward[:, 1:] * mask, start_mask),
        }
        metrics = {name: number.detach() for name, number in metrics.items()}
        return ActorCriticOutput(actor_loss, critic_loss, metrics, target[:, 0].detach())

    @torch.no_grad()
    def imagine(self, world_model: WorldModel, actor: Any, start: Any, horizon: int) -> TensorDict:
        """Transitions ``[N, horizon]`` from a mapping with ``state``, ``belief`` and, maybe, ``carry``."""
        return self.transitions(world_model, imagine(world_model, actor, world_model.resume(start), horizon))

    @torch.no_grad()
    def transitions(self, world_model: WorldModel, trajectory: Trajectory) -> TensorDict:
        """A roll-out as TorchRL transitions ``[S, H]`` (:func:`as_transitions`)."""
        after = trajectory.time_major.map(lambda x: x[1:])
        return as_transitions(trajectory, self._reward(world_model, after))

    def _gradient(self, actor: Any) -> Any:
        kind = actor.actions[0]
        if kind not in self.gradients:
            raise ConfigError(
                f"behaviour has no gradient for {kind} actions: found {', '.join(self.gradients) or 'none'}, "
                f"wanted {kind}; add it to behaviour.gradients"
            )
        return self.gradients[kind]

    def _reward(self, world_model: WorldModel, features: Feature) -> Tensor:
        """Predicted reward of states ``[T, S, ...]``: ``[S, T, 1]``."""
        parts = (scale * world_model.heads[name](features).mean for name, scale in self.rewards.items())
        return sum(parts, torch.zeros_like(features.belief[..., :1])).transpose(0, 1)

    def _discount(self, world_model: WorldModel, trajectory: Trajectory, going_on: Tensor) -> Tensor:
        """Discount of every state, ``[S, H+1, 1]``: at the start by what replay knows, then as predicted."""
        predicted = trajectory.continuations
        if "continuation" not in world_model.heads:
            predicted = torch.full_like(predicted, self.discount)
        return torch.cat([self.discount * going_on.unsqueeze(1), predicted[:, 1:]], 1)

    def _target(self, reward: Tensor, discount: Tensor, value: Tensor) -> Tensor:
        """λ-returns ``[S, T-1, 1]`` of ``T`` states, each with its own reward."""
        never = torch.zeros_like(reward[:, 1:], dtype=torch.bool)
        following = {
            "reward": reward[:, :-1],
            "continuation": discount[:, :-1],
            "state_value": value[:, 1:],
            "done": never,
            "terminated": never,
        }
        shown = TensorDict({"state_value": value[:, :-1], "next": following}, batch_size=never.shape[:2])
        return self.estimator.value_estimate(shown)


def _mean(x: Tensor, start_mask: Tensor) -> Tensor:
    """Mean of ``[S, T, 1]`` over the starts that count; the others are zero already."""
    return x.sum() / (start_mask.sum() * x.shape[1])
