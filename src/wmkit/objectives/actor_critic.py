"""Behaviour learning in imagination: REINFORCE actor, two-hot critic, jumpy λ-returns.

DreamerV3 of 2023 (arXiv:2301.04104v1, eq. 7-11) and of today (danijar/dreamerv3 e3f0224); LS-Imagine
(arXiv:2410.03618, eq. 6-8) adds jumps, whose transitions train the critic and not the actor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.dynamics import JumpGate, Latent, Trajectory, WorldModel, branch, imagine
from wmkit.errors import ConfigError
from wmkit.functional import discount_sum
from wmkit.nn import FeaturePair, rows_are_free, total_loss
from wmkit.objectives.transitions import as_transitions


class ActorCriticOutput(NamedTuple):
    """What one behaviour loss yields.

    Attributes:
        actor_loss: scalar; gradients reach the actor only.
        critic_loss: scalar; gradients reach the critic only.
        metrics: detached scalars by name.
        start_return: ``[S, 1]`` imagined return of every start, detached.
    """

    actor_loss: Tensor
    critic_loss: Tensor
    metrics: dict[str, Tensor]
    start_return: Tensor


FIRST_WEIGHTS = ("replay", "predicted")


class ActorCriticLoss(nn.Module):
    """Losses of actor and critic on roll-outs of the current policy in the model.

    The actor's distribution needs ``sample``, ``log_prob`` and ``entropy``, the critic's prediction
    ``loss`` and ``mean``: one-hot or continuous actions are all the same here.

    A discount is in the estimator's ``gamma`` (DreamerV3 of 2023) or in what the continue head
    predicts, then with a ``gamma`` of one (today's).

    Args:
        horizon: transitions H of a roll-out.
        estimator: a TorchRL value estimator; its ``gamma`` also discounts the weights.
        rewards: heads whose predictions add up to the reward, with their factors.
        gate: where to jump; none for systems without jumps.
        entropy: factor on the policy's entropy.
        branches: add to every roll-out a second one that sets off after a jump from its likeliest
            step (released LS-Imagine); up to twice the work.
        return_norm: divides advantages by the range of returns; none leaves them raw.
        max_span: longest span of a jump, environment steps.
        first_weight: what the weight of a roll-out's first transition is: whether the episode went
            on after the start in ``"replay"`` (DreamerV3 of 2023 and of 2024), or the model's own
            ``"predicted"`` continuation of the start (today's).

    Raises:
        ConfigError: a horizon below 1, an unknown ``first_weight``, or ``"predicted"`` where the returns
            hold the continuation of the start already (``continuation_at="current"``).
    """

    return_norm: Any
    estimator: Any
    gate: JumpGate | None

    def __init__(
        self,
        *,
        horizon: int,
        estimator: Any,
        rewards: Mapping[str, float],
        gate: JumpGate | None = None,
        branches: bool = False,
        entropy: float = 3e-4,
        return_norm: nn.Module | None = None,
        max_span: int = 1000,
        first_weight: Literal["replay", "predicted"] = "replay",
    ) -> None:
        super().__init__()
        check_range("behaviour.horizon", horizon, 1)
        if first_weight not in FIRST_WEIGHTS:
            raise ConfigError(
                f"first_weight {first_weight!r} is unknown: wanted one of {', '.join(FIRST_WEIGHTS)}; "
                "set behaviour.first_weight to one of them"
            )
        self.horizon, self.gate, self.entropy, self.max_span = horizon, gate, entropy, max_span
        self.branches = branches
        self.rewards = dict(rewards)
        self.estimator = estimator
        self.return_norm = return_norm
        self.first_weight = first_weight
        if first_weight == "predicted" and self.continuation_at == "current":
            raise ConfigError(
                "first_weight is 'predicted' with continuation_at 'current', which counts the start's "
                "continuation twice: wanted 'replay'; set behaviour.first_weight=replay"
            )

    @property
    def continuation_at(self) -> str:
        """Which state's continuation the returns use."""
        return getattr(self.estimator, "continuation_at", "next")

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
            world_model: read only; no gradient reaches it.
            actor: features to a distribution over actions.
            critic: features to a prediction of the return.
            slow_critic: regulariser target of the critic.
            starts: leaves ``[S, ...]``.
            start_mask: ``[S, 1]`` bool, starts that count.
            start_continuation: ``[S, 1]`` float, one where the episode goes on after the start.
        """
        trajectory = imagine(
            world_model,
            actor,
            starts,
            self.horizon,
            gate=self.gate,
            learn=True,
            look_for_turn=self.branches and self.gate is not None,
            readers=[critic, slow_critic, *(world_model.heads[name] for name in self.rewards)],
        )
        rows = starts.state.shape[0]
        if self.branches and self.gate is not None:
            later, opened = branch(world_model, actor, trajectory, self.gate)
            second = imagine(world_model, actor, later, self.horizon, learn=True)
            trajectory = Trajectory.cat([trajectory, second])
            start_mask = torch.cat([start_mask, start_mask & opened.unsqueeze(-1)])
            start_continuation = start_continuation.repeat(2, 1)
        features = trajectory.time_major  # [H+1, S, F]
        before = features.map(lambda x: x[:-1])
        transitions = self.transitions(world_model, trajectory)

        online = critic(before)
        with torch.no_grad():
            last = critic(features.map(lambda x: x[-1:])).mean
            value = torch.cat([online.mean, last]).transpose(0, 1)  # [S, H+1, 1]
            slow = slow_critic(before).mean  # [H, S, 1]
        transitions.set(("next", "state_value"), value[:, 1:])
        target = self.estimator.value_estimate(transitions).detach()  # [S, H, 1]
        weight = self._weights(transitions, start_continuation) * start_mask.unsqueeze(1)  # [S, H, 1]
        count = start_mask.sum() * self.horizon

        critic_loss = total_loss(online, target.transpose(0, 1), slow)  # [H, S]
        critic_loss = (weight.squeeze(-1) * critic_loss.t()).sum() / count

        assert trajectory.log_probs is not None and trajectory.entropies is not None
        advantage = target - value[:, :-1]
        if self.return_norm is not None:
            self.return_norm.update(target)
            advantage = self.return_norm.normalize(advantage)
        acted = ~trajectory.jumps  # [S, H, 1] no action was taken in a jump
        gain = trajectory.log_probs.unsqueeze(-1) * advantage * acted
        entropy = trajectory.entropies.unsqueeze(-1)
        actor_loss = -(weight * (gain + self.entropy * entropy)).sum() / count

        metrics = {
            "loss_actor": actor_loss,
            "loss_critic": critic_loss,
            "imagined_return": _masked_mean(target, start_mask, self.horizon),
            "imagined_value": _masked_mean(value[:, :-1], start_mask, self.horizon),
            "imagined_reward": _masked_mean(transitions["next", "reward"], start_mask, self.horizon),
            "policy_entropy": _masked_mean(entropy, start_mask, self.horizon),
        }
        if self.gate is not None:
            jumps = trajectory.jumps.float()
            span = (transitions["next", "steps_to_next_obs"] * jumps).sum() / jumps.sum().clamp(min=1)
            metrics |= {"jump_rate": _masked_mean(jumps, start_mask, self.horizon), "jump_span": span}
        if self.return_norm is not None:
            metrics["return_scale"] = self.return_norm.scale().squeeze()
        metrics = {k: v.detach() for k, v in metrics.items()}
        return ActorCriticOutput(actor_loss, critic_loss, metrics, target[:rows, 0])

    @torch.no_grad()
    def imagine(self, world_model: WorldModel, actor: Any, start: Any, horizon: int) -> TensorDict:
        """Transitions ``[N, horizon]`` from a mapping with ``state``, ``belief`` and, maybe, ``carry``."""
        latent = world_model.resume(start)
        return self.transitions(world_model, imagine(world_model, actor, latent, horizon, gate=self.gate))

    @torch.no_grad()
    def transitions(self, world_model: WorldModel, trajectory: Trajectory) -> TensorDict:
        """A roll-out as TorchRL transitions ``[S, H]`` (:func:`as_transitions`)."""
        features = trajectory.time_major
        before, after = features.map(lambda x: x[:-1]), features.map(lambda x: x[1:])  # [H, S, F]
        reward = sum(
            (scale * world_model.heads[name](after).mean for name, scale in self.rewards.items()),
            torch.zeros_like(after.belief[..., :1]),
        ).transpose(0, 1)
        steps, jump_return = torch.ones_like(reward), torch.zeros_like(reward)
        if self.gate is not None:
            pair = FeaturePair(before, after)
            heads = world_model.heads
            jumps = trajectory.jumps.transpose(0, 1)
            span = _where(jumps, pair, lambda x: heads["jump_steps"](x).mean).transpose(0, 1)
            span = span.clamp(1, self.max_span).floor()
            mean_reward = _where(jumps, pair, lambda x: heads["jump_return"](x).mean).transpose(0, 1)
            total = mean_reward * discount_sum(span, self.estimator.gamma)
            steps = torch.where(trajectory.jumps, span, steps)
            jump_return = torch.where(trajectory.jumps, total, jump_return)
        return as_transitions(trajectory, reward, steps=steps, jump_return=jump_return)

    def _weights(self, transitions: TensorDict, start_continuation: Tensor) -> Tensor:
        """Probability, discounted, that each transition happens at all: ``[S, H, 1]``."""
        discount = self.estimator.gamma ** transitions["next", "steps_to_next_obs"]
        if self.continuation_at == "next":
            discount = discount * transitions["next", "continuation"]
            first = start_continuation
            if self.first_weight == "predicted":
                first = transitions["continuation"][:, 0]
        else:  # the return of a state already holds that state's continuation
            discount = discount * transitions["continuation"]
            first = torch.ones_like(start_continuation)
        return torch.cat([first.unsqueeze(1), discount[:, :-1]], 1).cumprod(1)


def _where(mask: Tensor, pair: FeaturePair, predict: Callable[[FeaturePair], Tensor]) -> Tensor:
    """``predict(pair)`` ``[H, S, 1]`` at the rows that ``mask`` ``[H, S, 1]`` sets; zero elsewhere."""
    if not rows_are_free(mask):
        return torch.where(mask, predict(pair), 0.0)
    rows = mask.flatten().nonzero().squeeze(1)
    values = predict(pair.map(lambda x: x.flatten(0, 1)[rows]))
    return values.new_zeros(mask.shape).flatten(0, 1).index_copy(0, rows, values).view(mask.shape)


def _masked_mean(x: Tensor, mask: Tensor, horizon: int) -> Tensor:
    """Mean of ``[S, H, 1]`` over the starts that count."""
    return (x * mask.unsqueeze(1)).sum() / (mask.sum() * horizon)
