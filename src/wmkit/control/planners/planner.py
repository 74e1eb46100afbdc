"""The planner: a controller that searches in the world model's imagination at every step.

::

    latent ─▶ seeds of the policy, if any ─▶ solver ⇄ roll-outs, cost ─▶ plan ─▶ its first action
                                               ▲                            │
                                               └──── shifted by a step ◀────┘   the policy carries it
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.control.actor_critic import Learned
from wmkit.control.planners.beam import BeamSearch
from wmkit.control.planners.costs import Cost
from wmkit.control.planners.imagined import Imagined, chosen, repeated
from wmkit.control.planners.solver import Plan, Solver
from wmkit.control.returns import Outcome
from wmkit.dynamics import Latent, WorldModel, constants, rollout
from wmkit.errors import ConfigError
from wmkit.objectives import Scene


class Planner(nn.Module):
    """Plans at every step, or every few, and acts on what it finds; what it learns, if anything, is a part.

    It reads actor and critic where its cost, its seeds or its learning do; a system needs neither.

    Args:
        actor: ``policy(features)`` gives a distribution over actions; may be None.
        critic: ``predict(features)`` gives a value; may be None.
        horizon: actions H of a plan.
        solver: :class:`~wmkit.control.planners.Solver`.
        cost: of roll-outs (:mod:`wmkit.control.planners.costs`); ``attach(actor, critic)`` is called where
            it has one.
        execute: actions of a plan that are executed before the next is made.
        prior: plans of the actor among the candidates (TD-MPC2: 24).
        explore: add the plan's spread to actions that are sampled.
        learns: what actor and critic learn (:class:`~wmkit.control.ValueLearning`); None for nothing.
        rewards: heads whose predictions add up to the reward, with their factors, for dreams; those of the
            cost if not given.

    Raises:
        ConfigError: a number out of range, or an actor that is missing.

    Attributes:
        choices: actions are one-hot; see :meth:`of`.
    """

    actor: Any
    critic: Any

    def __init__(
        self,
        actor: Any,
        critic: Any,
        *,
        horizon: int,
        solver: Solver,
        cost: Cost | Any,
        execute: int = 1,
        prior: int = 0,
        explore: bool = False,
        learns: Any = None,
        rewards: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        check_range("horizon", horizon, 1)
        check_range("prior", prior, 0)
        if not 1 <= execute <= horizon:
            raise ConfigError(f"execute is {execute}: wanted 1 to {horizon}, the horizon; correct execute")
        if prior and actor is None:
            raise ConfigError(f"prior is {prior}: wanted 0, since there is no actor; correct prior")
        if prior >= solver.samples and prior:
            raise ConfigError(f"prior is {prior}: wanted less than {solver.samples} samples; correct prior")
        self.__dict__["actor"], self.__dict__["critic"] = actor, critic  # the system registers both
        self.horizon, self.solver, self.execute, self.prior = horizon, solver, execute, prior
        self.explore, self.learns = explore, learns
        self.choices = actor is not None and actor.actions[0] == "discrete"
        attach = getattr(cost, "attach", None)
        self.cost = cost if attach is None else attach(actor, critic)
        self.weights = dict(getattr(learns, "weights", {}))
        self.shortest = getattr(learns, "shortest", 1)
        self.outcome = Outcome(
            getattr(cost, "rewards", {"reward": 1.0}) if rewards is None else rewards,
            (),
            SimpleNamespace(gamma=1.0),
        )

    # -- planning ------------------------------------------------------------------------

    def of(self, kind: str) -> Planner:
        """For actions that are ``"discrete"`` or ``"continuous"``; returns itself.

        Raises:
            ConfigError: the solver cannot search over them.
        """
        if kind == "continuous" and kind not in self.solver.kinds:
            raise ConfigError(
                f"solver is {type(self.solver).__name__}, which chooses: wanted one that searches over "
                "numbers, as the environment takes them; choose cem, icem, mppi, gradient or "
                "predictive_sampling"
            )
        self.choices = kind == "discrete"
        return self

    @torch.no_grad()
    def plan(self, world_model: WorldModel, latent: Latent, start: Tensor | None = None) -> Plan:
        """Search from ``latent``, leaves ``[E, ...]``.

        Args:
            world_model: read only, without dropout.
            latent: where the environments are.
            start: ``[E, H, A]`` where to look first; zeros if not given.
        """
        rows, width = len(latent.state), world_model.dynamics.action_dim
        if start is None:
            start = latent.state.new_zeros(rows, self.horizon, width)
        gradient, options = self.solver.gradient, dict[str, Any]()
        parts: list[Any] = [x for x in (world_model, self.actor, self.critic) if x is not None]
        if isinstance(self.solver, BeamSearch):
            options["propose"] = self._propose(world_model) if self.prior else None
        elif self.prior:
            options["seeds"] = self._seeds(world_model, latent)
        with constants(*parts) if gradient else nullcontext():
            imagined = Imagined(world_model, latent, self.cost, choices=self.choices, gradient=gradient)
            return self.solver(imagined, start, **options)

    def _seeds(self, world_model: WorldModel, latent: Latent) -> Tensor:
        """Plans of the actor ``[E, P, H, A]``."""
        found = rollout(world_model, repeated(latent, self.prior), self.actor, self.horizon)
        return found.actions.transpose(0, 1).unflatten(0, (-1, self.prior))

    def _propose(self, world_model: WorldModel) -> Any:
        def propose(latent: Latent, count: int) -> Tensor:
            policy = self.actor.policy(world_model.read(self.actor, repeated(latent, count)))
            return policy.sample().unflatten(0, (-1, count))

        return propose

    # -- acting ----------------------------------------------------------------------------

    def carries(self, action_dim: int) -> dict[str, tuple[int, ...]]:
        """What a policy carries from step to step, by key: shapes of one row."""
        plan: dict[str, tuple[int, ...]] = {"plan": (self.horizon, action_dim)}
        return plan if self.execute == 1 else {**plan, "planned": plan["plan"], "plan_step": (1,)}

    def act(
        self,
        world_model: WorldModel,
        latent: Latent,
        memory: Mapping[str, Tensor],
        is_init: Tensor,
        *,
        sampled: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions ``[E, A]`` and what to carry.

        Args:
            world_model: read only.
            latent: where the environments are.
            memory: of :meth:`carries`, leaves ``[E, ...]``.
            is_init: ``[E]`` bool, episodes that begin: there is no earlier plan.
            sampled: actions are drawn, as in training.
        """
        start = memory["plan"].masked_fill(is_init[:, None, None], 0.0)
        if self.execute == 1:
            found = self.plan(world_model, latent, start)
            action, kept = found.actions[:, 0], {"plan": self.solver.shift(found.mean)}
        else:
            step = memory["plan_step"].masked_fill(is_init.unsqueeze(-1), 0.0)  # actions executed of the plan
            due, planned = step[:, 0] == 0, memory["planned"]
            found = Plan(planned, start, torch.zeros_like(start), start[:, 0, 0])
            if bool(due.any()):  # the one look at the host, outside of the search
                found = self.plan(world_model, latent, start)
                planned = torch.where(due[:, None, None], found.actions, planned)
            mean = torch.where(due[:, None, None], found.mean, start)
            action = planned.gather(1, step.long().unsqueeze(-1).expand(-1, 1, planned.shape[-1])).squeeze(1)
            following = (step + 1) % self.execute
            kept = {"plan": self.solver.shift(mean), "planned": planned, "plan_step": following}
        if self.choices:
            return chosen(action), kept
        if sampled and self.explore:
            action = self.solver.bounded(action + found.std[:, 0] * torch.randn_like(action))
        return action, kept

    # -- as a controller -------------------------------------------------------------------

    def learn(self, scene: Scene, slow: Mapping[str, Any] | None = None) -> Learned:
        """Losses of actor and critic, where they learn."""
        if self.learns is None:
            return Learned({}, {})
        return self.learns(scene, self.actor, self.critic, slow or {})

    @torch.no_grad()
    def imagine(self, world_model: WorldModel, latent: Latent, horizon: int) -> TensorDict:
        """Roll the actor out from ``latent``, or plans where there is none: ``[N, horizon]``
        (:class:`~wmkit.control.Outcome`).
        """
        plan: list[Plan] = []

        def follow(latent: Latent, t: int) -> Tensor:
            if t % self.horizon == 0:
                plan[:] = [self.plan(world_model, latent)]
            return plan[0].actions[:, t % self.horizon]

        act = follow if self.actor is None else self.actor
        return self.outcome(world_model, rollout(world_model, latent, act, horizon))
