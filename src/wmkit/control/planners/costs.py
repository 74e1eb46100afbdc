"""What a plan costs: costs of roll-outs, ``cost(world_model, found) -> [N]``.

Any function of a world model and a :class:`~wmkit.dynamics.Rollout` of N rows is a cost. Here are those that
planning needs most: what the model predicts to be paid, and how far from a goal it ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from wmkit.arguments import check_range
from wmkit.dynamics import Latent, Rollout, WorldModel
from wmkit.errors import ConfigError, SpecError

VALUES = ("state", "action", "none")


class Cost(Protocol):
    """What a planner minimises."""

    def __call__(self, world_model: WorldModel, found: Rollout, /) -> Tensor:
        """Costs ``[N]`` of N roll-outs of H transitions, ``found.latent`` ``[H+1, N, ...]``."""


class PredictedReturn:
    """The negative of the return that a world model predicts, with a value at the end.

    ``-(sum_t d_t r_{t+1} + d_H v(s_H))`` with ``d_t`` the product of ``gamma`` and the predicted
    continuations before.

    Args:
        rewards: heads whose predictions add up to the reward, with their factors.
        gamma: discount of a step that no continue head holds.
        value: of the last state: the critic's of the ``"state"``, its of an ``"action"`` of the actor there
            (TD-MPC2: the mean of two members of an ensemble, drawn anew each time), or ``"none"``.
        value_has_reward: the value of a state counts the reward on arriving there (DreamerV1 and V2).

    Raises:
        ConfigError: an unknown ``value``, or ``gamma`` out of range.
    """

    actor: Any = None
    critic: Any = None

    def __init__(
        self,
        *,
        rewards: Mapping[str, float] | None = None,
        gamma: float = 1.0,
        value: Literal["state", "action", "none"] = "state",
        value_has_reward: bool = False,
    ) -> None:
        if value not in VALUES:
            raise ConfigError(f"value is {value!r}: wanted one of {', '.join(VALUES)}; correct value")
        check_range("gamma", gamma, 0, 1)
        self.rewards = dict({"reward": 1.0} if rewards is None else rewards)
        self.gamma, self.value, self.value_has_reward = gamma, value, value_has_reward

    def attach(self, actor: Any, critic: Any) -> PredictedReturn:
        """Whose values these are; returns itself.

        Raises:
            ConfigError: there is no critic, or no actor, where the value needs one.
        """
        needs = {"state": ("critic",), "action": ("critic", "actor"), "none": ()}[self.value]
        for name in needs:
            if {"critic": critic, "actor": actor}[name] is None:
                raise ConfigError(
                    f"value is {self.value!r}: wanted none, since there is no {name}; set value=none"
                )
        self.actor, self.critic = actor, critic
        return self

    def __call__(self, world_model: WorldModel, found: Rollout) -> Tensor:
        """``[N]``."""
        after = found.after
        parts = [scale * world_model.predict(name, after).mean for name, scale in self.rewards.items()]
        reward = sum(parts, torch.zeros_like(after.belief[..., :1]))  # [H, N, 1]
        discount = (self.gamma * world_model.continuation(after)).cumprod(0)
        before = torch.cat([torch.ones_like(discount[:1]), discount[:-1]])
        paid = before * reward
        if self.value == "none":
            return -paid.sum(0).squeeze(-1)
        last, weight = self._value(world_model, found), discount[-1]
        if self.value_has_reward:
            paid, weight = paid[:-1], before[-1]
        return -(paid.sum(0) + weight * last).squeeze(-1)

    def _value(self, world_model: WorldModel, found: Rollout) -> Tensor:
        last = found.last
        if self.value == "state":
            return self.critic.predict(world_model.read(self.critic, last)).mean
        action = self.actor.policy(world_model.read(self.actor, last)).sample()
        return two_of(action_values(world_model, self.critic, last, action)).mean(0)


class GoalDistance:
    """How far from a goal imagination ends, in latent space.

    Args:
        weights: factor of each part of a latent, ``state`` and ``belief``.
        over: the ``"last"`` state counts, or ``"all"`` that actions lead to, added up (PLDM, eb_jepa).
        norm: differences are ``"squared"`` or ``"absolute"`` (V-JEPA 2-AC).
        reduce: over the numbers of a part: ``"sum"`` (LeWM) or ``"mean"`` (DINO-WM, PLDM).

    Raises:
        ConfigError: an unknown option or part.

    >>> from wmkit.dynamics import Latent
    >>> cost = GoalDistance(over="all").aim(Latent(torch.ones(1, 2), torch.zeros(1, 0)))
    >>> seen = torch.tensor([[[9.0, 9.0]], [[0.0, 0.0]], [[1.0, 1.0]]])  # [H+1, N, S]
    >>> cost.of(Latent(seen, seen[..., :0]))
    tensor([2.])
    """

    goal: Latent | None = None

    def __init__(
        self,
        *,
        weights: Mapping[str, float] | None = None,
        over: Literal["last", "all"] = "last",
        norm: Literal["squared", "absolute"] = "squared",
        reduce: Literal["sum", "mean"] = "sum",
    ) -> None:
        self.weights = dict({"state": 1.0} if weights is None else weights)
        if unknown := [name for name in self.weights if name not in ("state", "belief")]:
            raise ConfigError(f"weights name {unknown[0]!r}: wanted state or belief; correct weights")
        for name, found, wanted in (
            ("over", over, ("last", "all")),
            ("norm", norm, ("squared", "absolute")),
            ("reduce", reduce, ("sum", "mean")),
        ):
            if found not in wanted:
                raise ConfigError(f"{name} is {found!r}: wanted {' or '.join(wanted)}; correct {name}")
        self.over, self.norm, self.reduce = over, norm, reduce

    def aim(self, goal: Latent) -> GoalDistance:
        """Set the goal, leaves ``[1, ...]`` or one row for each environment; returns itself."""
        self.goal = goal.light().detach()
        return self

    @torch.no_grad()
    def aim_at(self, world_model: WorldModel, observations: Mapping[str, Tensor]) -> GoalDistance:
        """Set the goal to what a model makes of observations ``[G, ...]`` with nothing before them."""
        rows = len(next(iter(observations.values())))
        batch = {key: value.unsqueeze(1) for key, value in observations.items()}
        like = next(world_model.parameters())
        batch["previous_action"] = like.new_zeros(rows, 1, world_model.dynamics.action_dim)
        batch["is_init"] = torch.ones(rows, 1, 1, dtype=torch.bool, device=like.device)
        batch |= {key: like.new_zeros(rows, 1, 1) for key in world_model.dynamics.conditions}
        with world_model.evaluating():
            return self.aim(world_model.observe(batch).last)

    def __call__(self, world_model: WorldModel, found: Rollout) -> Tensor:
        """``[N]``."""
        return self.of(found.latent)

    def of(self, latent: Latent) -> Tensor:
        """Costs ``[N]`` of states ``[H+1, N, ...]``.

        Raises:
            SpecError: there is no goal, or goals of another number of environments.
        """
        if self.goal is None:
            raise SpecError("there is no goal: wanted one; call cost.aim(latent) before planning")
        rows, goals = latent.state.shape[1], len(self.goal.state)
        if rows % goals:
            raise SpecError(
                f"there are {goals} goals for {rows} roll-outs: wanted one, or one each; correct it"
            )
        total = latent.state.new_zeros(rows)
        for name, weight in self.weights.items():
            seen = getattr(latent, name)[1:] if self.over == "all" else getattr(latent, name)[-1:]
            goal = getattr(self.goal, name).repeat_interleave(rows // goals, 0)
            off = seen - goal
            off = off.square() if self.norm == "squared" else off.abs()
            total = total + weight * (off.sum(-1) if self.reduce == "sum" else off.mean(-1)).sum(0)
        return total


def action_values(world_model: WorldModel, critic: Any, latent: Latent, action: Tensor) -> Tensor:
    """What a critic that reads the belief after an action says of ``action [N, A]`` at ``latent``."""
    believed = latent.light()._replace(belief=world_model.dynamics.believe(latent, action))
    return critic.predict(world_model.read(critic, believed)).mean


def two_of(values: Tensor) -> Tensor:
    """Two members of an ensemble's values ``[K, *B]``, drawn without replacement; all where there are fewer.

    >>> two_of(torch.zeros(5, 2, 1)).shape
    torch.Size([2, 2, 1])
    """
    return values[torch.randperm(len(values), device=values.device)[:2]]
