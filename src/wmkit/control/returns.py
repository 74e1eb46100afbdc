"""What a roll-out was worth: targets of the critic, what the actor climbs, and how much each step counts.

Two ways to line values up with rewards. Either a value is of what comes after its state (DreamerV3,
LS-Imagine, TWM,
STORM, TransDreamer)::

    states      s_0     s_1   ...   s_{H-1}   s_H
    targets     t_0     t_1   ...   t_{H-1}          t_i = r_{i+1} + d_{i+1} [(1-λ) v_{i+1} + λ t_{i+1}]
    actor       a_0: t_0      ...   a_{H-1}: t_{H-1}

or it counts the reward of the state itself too (DreamerV1, DreamerV2)::

    targets     t_0     t_1   ...   t_{H-1}          t_i = r_i + d_i [(1-λ) v_{i+1} + λ t_{i+1}]
    actor       a_0: t_1      ...                    what an action can change begins at t_{i+1}

Everything here has time first: ``[H, N, 1]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.dynamics import Latent, Rollout, WorldModel
from wmkit.errors import ConfigError
from wmkit.objectives import Start

Values = Callable[[Latent], Tensor]


class Targets(NamedTuple):
    """What actor and critic learn from a roll-out.

    Attributes:
        critic: ``[C, N, 1]`` targets of the states that the critic is scored at.
        critic_weight: ``[C, N, 1]`` how much each counts.
        actor: ``[A, N, 1]`` what each of the first A actions led to.
        baseline: ``[A, N, 1]`` what was expected before it.
        actor_weight: ``[A, N, 1]`` how much each counts.
        value: ``[H+1, N, 1]`` of every state.
        reward: ``[H, N, 1]`` on arriving at the end of each transition.
        transitions: the roll-out as TorchRL has it, where the targets are made of it.
    """

    critic: Tensor
    critic_weight: Tensor
    actor: Tensor
    baseline: Tensor
    actor_weight: Tensor
    value: Tensor
    reward: Tensor
    transitions: TensorDict | None = None


class TransitionReturns(nn.Module):
    """A value is of what comes after its state.

    Args:
        estimator: a TorchRL value estimator; its ``gamma`` also discounts the weights.
        bootstrap: whose values make the targets: the critic's (``"online"``) or its slow copy's (``"slow"``).
        weigh: a transition counts by the probability that it happens at all, the product of the continuations
            before it; of the states that transitions lead to (``"next"``) or start from (``"current"``).
            ``"none"`` counts all alike (STORM).
        first: the weight of a roll-out's first transition: whether the episode went on after the start in
            ``"replay"`` (DreamerV3 of 2023 and of 2024), the model's own ``"predicted"`` continuation of the
            start (today's), or ``"one"``.

    Raises:
        ConfigError: an unknown option, or ``first`` other than one where ``weigh`` begins with the start's
            continuation anyway.
    """

    def __init__(
        self,
        *,
        estimator: Any,
        bootstrap: Literal["online", "slow"] = "online",
        weigh: Literal["next", "current", "none"] = "next",
        first: Literal["replay", "predicted", "one"] = "replay",
    ) -> None:
        super().__init__()
        wanted = {"bootstrap": ("online", "slow"), "weigh": ("next", "current", "none")}
        wanted["first"] = ("replay", "predicted", "one") if weigh == "next" else ("one",)
        if getattr(estimator, "continuation_at", "next") == "current" and weigh == "next":
            wanted["first"] = ("replay", "one")  # the returns hold the model's continuation of the start
        found = {"bootstrap": bootstrap, "weigh": weigh, "first": first}
        for name, options in wanted.items():
            if found[name] not in options:
                raise ConfigError(
                    f"{name} is {found[name]!r}: wanted {' or '.join(options)}"
                    f"{f' with weigh={weigh}' if name == 'first' else ''}; correct {name}"
                )
        self.estimator, self.bootstrap, self.weigh, self.first = estimator, bootstrap, weigh, first

    @property
    def gamma(self) -> Any:
        """Discount of one environment step that no prediction holds."""
        return self.estimator.gamma

    def scored(self, horizon: int) -> tuple[slice, int]:
        """Which of the H+1 states the critic is scored at, and how many actions the actor."""
        return slice(0, horizon), horizon

    def __call__(
        self,
        world_model: WorldModel,
        found: Rollout,
        start: Start,
        outcome: Outcome,
        online: Tensor,
        values: Mapping[str, Values],
    ) -> Targets:
        """Targets of a roll-out.

        Args:
            world_model: for its heads.
            found: the roll-out.
            start: where it set off.
            outcome: gives it as transitions ``[N, H]``.
            online: ``[H, N, 1]`` the critic's values of the states that are scored.
            values: ``online`` and ``slow``: a latent to its values ``[*B, 1]``.
        """
        transitions = outcome(world_model, found)
        with torch.no_grad():
            if self.bootstrap == "online":
                last = values["online"](found.latent.map(lambda x: x[-1:]))
                value = torch.cat([online.detach(), last])
            else:
                value = values["slow"](found.latent)
        target = self.returns(transitions, value)
        weight = self._weights(transitions, found, start)
        return Targets(
            target,
            weight,
            target,
            online.detach(),
            weight,
            value,
            _swap(transitions["next", "reward"]),
            transitions,
        )

    def returns(self, transitions: TensorDict, value: Tensor) -> Tensor:
        """λ-returns ``[H, N, 1]`` of transitions ``[N, H]`` between states with values ``[H+1, N, 1]``."""
        valued = transitions.copy().set("state_value", _swap(value[:-1]))
        valued.set(("next", "state_value"), _swap(value[1:]))
        return _swap(self.estimator.value_estimate(valued).detach())

    def _weights(self, transitions: TensorDict, found: Rollout, start: Start) -> Tensor:
        """``[H, N, 1]``."""
        if self.weigh == "none":
            return torch.ones_like(_swap(transitions["next", "reward"]))
        at = transitions["next"] if self.weigh == "next" else transitions
        discount = _swap(self.gamma ** transitions["next", "steps_to_next_obs"] * at["continuation"])
        if self.first == "replay":
            weight = start.continuation[found.rows]
        elif self.first == "predicted":
            weight = transitions["continuation"][:, 0]
        else:
            weight = torch.ones_like(discount[0])
        weights = [weight]
        for t in range(len(discount) - 1):
            # A roll-out that begins anew counts fully again.
            weight = torch.where(found.restarts[t], 1.0, weight * discount[t])
            weights.append(weight)
        return torch.stack(weights)


class StateReturns(nn.Module):
    """A value counts the reward of the state itself (DreamerV1, DreamerV2).

    ``a_{H-1}`` leads only to the state that is bootstrapped from and learns nothing.

    Args:
        estimator: a TorchRL value estimator. It is shown a transition for each state, with that
            state's own reward and discount and the next one's value; ``differentiable`` where the
            actor climbs through the dynamics.
        discount: of one step, where no continue head predicts it; also of the start, whose end is known.
        start: whether the critic is ``"scored"`` at the states of replay too and weights begin there (V2),
            or they are ``"dropped"`` and weights begin after them (V1).

    Raises:
        ConfigError: an unknown ``start``, or a discount outside [0, 1].
    """

    bootstrap = "slow"

    def __init__(
        self, *, estimator: Any, discount: float, start: Literal["scored", "dropped"] = "scored"
    ) -> None:
        super().__init__()
        if start not in ("scored", "dropped"):
            raise ConfigError(f"start is {start!r}: wanted scored or dropped; correct start")
        check_range("discount", discount, 0, 1)
        self.estimator, self.discount, self.dropped = estimator, discount, int(start == "dropped")

    @property
    def gamma(self) -> Any:
        """Discount of one environment step that no prediction holds."""
        return self.estimator.gamma

    def scored(self, horizon: int) -> tuple[slice, int]:
        """Which of the H+1 states the critic is scored at, and how many actions the actor."""
        if horizon < 2:
            raise ConfigError(
                f"horizon is {horizon}: wanted 2 or more, since no last action learns; set horizon"
            )
        return slice(self.dropped, horizon), horizon - 1

    def __call__(
        self,
        world_model: WorldModel,
        found: Rollout,
        start: Start,
        outcome: Outcome,
        online: Tensor,
        values: Mapping[str, Values],
    ) -> Targets:
        """Targets of a roll-out, see :meth:`TransitionReturns.__call__`; differentiable if that is."""
        first, acting = self.dropped, len(found.actions) - 1
        reward = outcome.reward(world_model, found.latent)  # [H+1, N, 1]
        predicted = world_model.continuation(found.latent)
        if "continuation" not in world_model.heads:
            predicted = torch.full_like(predicted, self.discount)
        known = self.discount * start.continuation[found.rows]
        discount = torch.cat([known.unsqueeze(0), predicted[1:]])
        value = values["slow"](found.latent)
        target = self._target(reward[first:], discount[first:], value[first:])  # [H-first, N, 1]
        with torch.no_grad():
            whole = torch.ones_like(discount[:1])
            weight = torch.cat([whole, discount[first:-1]]).cumprod(0)  # [H+1-first, N, 1]
        led_to, expected = target[1 - first :], value[:acting].detach()
        return Targets(target.detach(), weight[:-1], led_to, expected, weight[:acting], value, reward[1:])

    def _target(self, reward: Tensor, discount: Tensor, value: Tensor) -> Tensor:
        """λ-returns ``[T-1, N, 1]`` of ``T`` states, each with its own reward."""
        never = torch.zeros_like(_swap(reward[1:]), dtype=torch.bool)
        following = {
            "reward": _swap(reward[:-1]),
            "continuation": _swap(discount[:-1]),
            "state_value": _swap(value[1:]),
            "done": never,
            "terminated": never,
        }
        shown = TensorDict({"state_value": _swap(value[:-1]), "next": following}, batch_size=never.shape[:2])
        return _swap(self.estimator.value_estimate(shown))


class Outcome:
    """What the heads say of a roll-out, as TorchRL lays transitions out.

    Args:
        rewards: heads whose predictions add up to the reward, with their factors.
        hooks: of the roll-out; one may say how long its options take.
        returns: whose ``gamma`` is the discount of one environment step inside an option.
    """

    def __init__(self, rewards: Mapping[str, float], hooks: Sequence[Any], returns: Any) -> None:
        self.rewards, self.hooks, self.returns = dict(rewards), tuple(hooks), returns

    def reward(self, world_model: WorldModel, latent: Latent) -> Tensor:
        """Predicted reward ``[*B, 1]`` on arriving at states."""
        with world_model.evaluating():
            parts = [scale * world_model.read_out(name, latent) for name, scale in self.rewards.items()]
        return sum(parts, torch.zeros_like(latent.state[..., :1]))

    @torch.no_grad()
    def __call__(self, world_model: WorldModel, found: Rollout) -> TensorDict:
        """Transitions ``[N, H]``.

        Root: ``state``, ``belief``, ``action``, ``jump``, ``continuation``, ``steps_to_next_obs``. Under
        ``next``: ``state``, ``belief``, ``reward``, ``continuation`` (zero where the roll-out begins anew),
        ``steps_to_next_obs``, ``jump_return``, ``done``, ``terminated``.
        """
        before, after = found.before, found.after
        with world_model.evaluating():
            continuation = world_model.continuation(found.latent)  # [H+1, N, 1]
        reward = self.reward(world_model, after)
        steps, inside = torch.ones_like(reward), torch.zeros_like(reward)
        for hook in self.hooks:
            durations = hook.durations(world_model, found, self.returns.gamma)
            steps, inside = (steps, inside) if durations is None else durations
        values = {
            "state": before.state,
            "belief": before.belief,
            "action": found.actions,
            "jump": found.options,
            "continuation": continuation[:-1],
            "steps_to_next_obs": steps,  # TorchRL's own estimators look for it here
            "next": {
                "state": after.state,
                "belief": after.belief,
                "reward": reward,
                "continuation": continuation[1:].masked_fill(found.restarts, 0),
                "steps_to_next_obs": steps,
                "jump_return": inside,
                "done": found.restarts,
                "terminated": torch.zeros_like(found.restarts),
            },
        }
        return TensorDict(_swapped(values), batch_size=[reward.shape[1], reward.shape[0]])


def _swap(x: Tensor) -> Tensor:
    """``[H, N, ...]`` to ``[N, H, ...]`` and back."""
    return x.transpose(0, 1)


def _swapped(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _swap(x) if isinstance(x, Tensor) else _swapped(x) for key, x in values.items()}
