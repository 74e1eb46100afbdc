"""Behaviour learning in dreams as STORM does it (arXiv:2310.09615, section 3.3): DreamerV3's, nearly.

Returns of the critic and of its slow copy are both targets; advantages are divided by the range of
returns; nothing is weighted by how likely a step is to be reached::

    L_actor  = -mean log π(a_t) sg((G_t - V_t) / max(1, S)) - η mean H
    L_critic = mean CE(V_t, G_t) + CE(V_t, G_t of the slow critic)
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from wmkit.dynamics.dream import PairStarts, SampledStarts, dream
from wmkit.dynamics.token_world_model import TokenWorldModel
from wmkit.nn import total_loss
from wmkit.objectives.actor_critic import ActorCriticOutput
from wmkit.objectives.dream_actor_critic import DreamActorCritic
from wmkit.objectives.token_world_model import Records


class ScaledDreamActorCritic(DreamActorCritic):
    """Losses of actor and critic on dreams of the current policy, with a slow critic.

    Args:
        horizon: transitions H of a dream.
        starts: which records dreams start from.
        estimator: a TorchRL value estimator; the discounts are predicted, so its ``gamma`` is one.
        return_norm: divides advantages by the range of returns.
        entropy: factor on the policy's entropy.
        prior_start: begin at what the model expects after the context, not at what was there.
    """

    return_norm: Any

    def __init__(
        self,
        *,
        horizon: int,
        starts: PairStarts | SampledStarts,
        estimator: Any,
        return_norm: nn.Module,
        entropy: float = 3e-4,
        prior_start: bool = True,
    ) -> None:
        super().__init__(
            horizon=horizon,
            starts=starts,
            estimator=estimator,
            entropy=entropy,
            entropy_threshold=0.0,
            restart=0.0,
        )
        self.return_norm, self.prior_start = return_norm, prior_start

    @property
    def starts_unseen(self) -> bool:  # type: ignore[override]
        """Whether dreams in windows of their own begin without a look at a window's last record."""
        return self.prior_start and getattr(self.starts, "windows", (0, 1))[1] > 1

    def forward(  # type: ignore[override]
        self, world_model: TokenWorldModel, actor: Any, critic: Any, records: Records, slow_critic: Any
    ) -> ActorCriticOutput:
        """Dream from some of ``records`` and score actor and critic."""
        start = self.starts(
            records.classes, records.previous_action, records.reward, records.is_init, records.ended
        )
        dreamt = dream(world_model, actor, start, self.horizon, prior_start=self.prior_start, learn=True)
        assert dreamt.log_probs is not None and dreamt.entropies is not None
        transitions = self.transitions(dreamt)
        features = world_model.dynamics.view(dreamt.states, dreamt.beliefs, dreamt.classes)
        online, value, target = self._values(critic, features, transitions)
        with torch.no_grad():
            slow_target = self.returns(transitions, slow_critic(features).mean)
        mask = start.mask.unsqueeze(1).float()  # [N, 1]
        count = mask.sum() * self.horizon

        def mean(x: Tensor) -> Tensor:
            return (x.view(x.shape[:2]) * mask).sum() / count

        self.return_norm.update(target)
        advantage = self.return_norm.normalize(target - value[:, :-1]).squeeze(-1)
        actor_loss = -mean(dreamt.log_probs * advantage) - self.entropy * mean(dreamt.entropies)
        critic_loss = mean(total_loss(online, target, slow_target))
        metrics = {
            "loss_actor": actor_loss,
            "loss_critic": critic_loss,
            "imagined_return": mean(target),
            "imagined_value": mean(value[:, :-1]),
            "imagined_reward": mean(dreamt.rewards),
            "policy_entropy": mean(dreamt.entropies),
            "return_scale": self.return_norm.scale().squeeze(),
        }
        metrics = {k: v.detach() for k, v in metrics.items()}
        return ActorCriticOutput(actor_loss, critic_loss, metrics, target[:, 0])


class OwnValueReturn(nn.Module):
    """λ-return that bootstraps with the value of the state that is left: a slip of the released STORM.

    ``G_t = r_t + d_t [(1-λ) V(s_t) + λ G_{t+1}]``, ``G_H = V(s_H)``, where ``V(s_{t+1})`` was meant.

    Args:
        lmbda: λ of the mixture.

    >>> from tensordict import TensorDict
    >>> one = torch.ones(1, 2, 1)
    >>> after = {"reward": one, "continuation": one, "state_value": 4 * one}
    >>> transitions = TensorDict({"state_value": 2 * one, "next": after}, [1, 2])
    >>> OwnValueReturn(0.5).value_estimate(transitions).flatten()
    tensor([4., 4.])
    """

    def __init__(self, lmbda: float) -> None:
        super().__init__()
        self.lmbda = lmbda

    def value_estimate(self, transitions: TensorDictBase) -> Tensor:
        """The λ-return ``[*B, T, 1]``."""
        after = transitions["next"]
        own = transitions["state_value"] * after["continuation"]
        base = after["reward"] + (1 - self.lmbda) * own  # [*B, T, 1]
        last, returns = after["state_value"][..., -1, :], []
        for t in reversed(range(base.shape[-2])):
            last = base[..., t, :] + self.lmbda * after["continuation"][..., t, :] * last
            returns.append(last)
        return torch.stack(returns[::-1], -2)
