"""Behaviour learning in the dreams of a token world model, as TWM does it (arXiv:2303.07109, section 2.3).

REINFORCE with generalised advantages, no target network, no normalisation; what keeps the policy open
is a hinge on its mean entropy. With per-step discounts d, ``A_t + V(z_t)`` is the λ-return::

    G_t = r_t + d_t [(1-λ) V(z_{t+1}) + λ G_{t+1}]
    L_critic = mean w_t ½ (V(z_t) - sg G_t)²         L_actor = -mean w_t log π(a_t) sg(G_t - V(z_t))
                                                              + η relu(Γ - mean w_t H(π_t) / ln A)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.dynamics.dream import Dream, DreamStart, PairStarts, SampledStarts, dream
from wmkit.dynamics.token_world_model import TokenWorldModel
from wmkit.nn import Feature
from wmkit.objectives.actor_critic import ActorCriticOutput
from wmkit.objectives.token_latents import entropy_hinge
from wmkit.objectives.token_world_model import Records


class DreamActorCritic(nn.Module):
    """Losses of actor and critic on dreams of the current policy.

    Args:
        horizon: transitions H of a dream.
        starts: which records dreams start from.
        estimator: a TorchRL value estimator; the discounts are predicted, so its ``gamma`` is one.
        entropy: factor η on the hinge.
        entropy_threshold: Γ, a share of the largest entropy.
        restart: a dream restarts from another real state where its discounts multiply to less than this;
            zero lets it go on.
        restart_states: how many of those states an update is given beside its batch, drawn uniformly from
            all records (TWM); zero takes the dreams' starts.
    """

    estimator: Any
    gate = None
    starts_unseen = False  # dreams begin at the states of their last records

    def __init__(
        self,
        *,
        horizon: int,
        starts: PairStarts | SampledStarts,
        estimator: Any,
        entropy: float = 0.01,
        entropy_threshold: float = 0.1,
        restart: float = 0.1,
        restart_states: int = 0,
    ) -> None:
        super().__init__()
        check_range("behaviour.horizon", horizon, 1)
        check_range("behaviour.restart_states", restart_states, 0)
        self.horizon, self.starts, self.estimator = horizon, starts, estimator
        self.entropy, self.entropy_threshold, self.restart = entropy, entropy_threshold, restart
        self.restart_states = restart_states

    def forward(
        self,
        world_model: TokenWorldModel,
        actor: Any,
        critic: Any,
        records: Records,
        restart_from: Tensor | None = None,
    ) -> ActorCriticOutput:
        """Dream from some of ``records`` and score actor and critic.

        ``restart_from`` are classes ``[M, G]`` of real states; without them dreams restart from the starts.
        """
        start = self.starts(
            records.classes, records.previous_action, records.reward, records.is_init, records.ended
        )
        dreamt = dream(
            world_model,
            actor,
            start,
            self.horizon,
            threshold=self.restart,
            replacements=start.classes[:, -1] if restart_from is None else restart_from,
            learn=True,
        )
        assert dreamt.log_probs is not None and dreamt.entropies is not None
        transitions = self.transitions(dreamt)
        features = world_model.dynamics.view(dreamt.states, dreamt.beliefs, dreamt.classes)
        online, value, target = self._values(critic, features, transitions)
        weight = dreamt.weights.squeeze(-1) * start.mask.unsqueeze(1)  # [N, H]
        count = start.mask.sum() * self.horizon

        critic_loss = (weight * online.loss(target)).sum() / count
        advantage = (target - value[:, :-1]).squeeze(-1)
        openness = (weight * dreamt.entropies).sum() / count / _most(dreamt.actions)
        gain = (weight * dreamt.log_probs * advantage).sum() / count
        actor_loss = self.entropy * entropy_hinge(openness, self.entropy_threshold) - gain

        def mean(x: Tensor) -> Tensor:
            return (x.squeeze(-1) * start.mask.unsqueeze(1)).sum() / count

        metrics = {
            "loss_actor": actor_loss,
            "loss_critic": critic_loss,
            "imagined_return": mean(target),
            "imagined_value": mean(value[:, :-1]),
            "imagined_reward": mean(dreamt.rewards),
            "policy_entropy": mean(dreamt.entropies),
            "restart_rate": mean(dreamt.restarts.float()),
        }
        metrics = {k: v.detach() for k, v in metrics.items()}
        return ActorCriticOutput(actor_loss, critic_loss, metrics, target[:, 0])

    def on_records(
        self, world_model: TokenWorldModel, actor: Any, critic: Any, records: Records
    ) -> ActorCriticOutput:
        """Score the critic on real rewards, and the actor on nothing but its entropy.

        For the time before the model's dreams are worth anything, with records of a random policy (TWM's
        pretraining). Both kinds of end stop the return here.
        """
        features = world_model.dynamics.view(records.states, records.beliefs, records.classes)
        head: Any = world_model.heads["continuation"]
        goes_on = ~(records.ended | records.is_init)[:, 1:, None]  # [B, T-1, 1]
        after = {"reward": records.reward[:, 1:], "continuation": goes_on * float(head.discount)}
        transitions = TensorDict({"next": after}, list(goes_on.shape[:2]))
        online, _, target = self._values(critic, features, transitions)
        real = ~records.is_init[:, 1:]
        critic_loss = (real * online.loss(target)).sum() / real.sum().clamp(min=1)
        entropy = actor(features).entropy.mean()
        actor_loss = -self.entropy * entropy / _most(records.previous_action)
        metrics = {"loss_actor": actor_loss, "loss_critic": critic_loss, "policy_entropy": entropy}
        metrics = {k: v.detach() for k, v in metrics.items()}
        return ActorCriticOutput(actor_loss, critic_loss, metrics, target[:, 0])

    @torch.no_grad()
    def imagine(self, world_model: TokenWorldModel, actor: Any, start: Any, horizon: int) -> TensorDict:
        """Transitions ``[N, horizon]`` from ``start``, a mapping with ``state`` ``[N, G*C]``.

        A state is all a dream of this kind starts from: its memory fills while it goes on.
        """
        dynamics, state = world_model.dynamics, start["state"].float()
        classes = state.unflatten(-1, (dynamics.groups, dynamics.classes)).argmax(-1)
        rows = len(classes)
        flag = torch.zeros(rows, 1, dtype=torch.bool, device=state.device)
        nothing = state.new_zeros(rows, 0, dynamics.action_dim)
        begin = DreamStart(classes.unsqueeze(1), state.new_zeros(rows, 1, 1), flag, nothing, ~flag[:, 0])
        return self.transitions(dream(world_model, actor, begin, horizon))

    def transitions(self, dreamt: Dream) -> TensorDict:
        """A dream as TorchRL transitions ``[N, H]``.

        Root: ``state``, ``belief``, ``action``, ``weight``. Under ``next``: ``state``, ``belief``,
        ``reward`` (in the head's units), ``continuation`` (the predicted discount, zero where the dream
        restarts), ``steps_to_next_obs``, ``done``, ``terminated``.
        """
        one, never = torch.ones_like(dreamt.rewards), torch.zeros_like(dreamt.restarts)
        return TensorDict(
            {
                "state": dreamt.states[:, :-1],
                "belief": dreamt.beliefs[:, :-1],
                "action": dreamt.actions,
                "weight": dreamt.weights,
                "steps_to_next_obs": one,
                "next": {
                    "state": dreamt.states[:, 1:],
                    "belief": dreamt.beliefs[:, 1:],
                    "reward": dreamt.rewards,
                    "continuation": dreamt.discounts,
                    "steps_to_next_obs": one,
                    "done": dreamt.restarts,
                    "terminated": never,
                },
            },
            batch_size=list(dreamt.rewards.shape[:2]),
        )

    def _values(self, critic: Any, features: Feature, transitions: TensorDict) -> tuple[Any, Tensor, Tensor]:
        """Prediction before every transition, values ``[N, H+1, 1]`` and λ-returns ``[N, H, 1]``."""
        online = critic(features.map(lambda x: x[:, :-1]))
        with torch.no_grad():
            last = critic(features.map(lambda x: x[:, -1:])).mean
            value = torch.cat([online.mean, last], 1)
        return online, value, self.returns(transitions, value)

    def returns(self, transitions: TensorDict, value: Tensor) -> Tensor:
        """λ-returns ``[N, H, 1]`` of transitions between states with values ``[N, H+1, 1]``."""
        valued = transitions.copy().set("state_value", value[:, :-1])
        valued.set(("next", "state_value"), value[:, 1:])
        return self.estimator.value_estimate(valued).detach()


def _most(action: Tensor) -> float:
    """Largest entropy of a policy over actions ``[*B, A]``, nats; that of two where there is but one."""
    return math.log(max(action.shape[-1], 2))
