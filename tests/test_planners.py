"""Planners: solvers over any costs, costs over any world model, and the controller that acts by them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import Bounded, Composite, OneHot, Unbounded
from torchrl.envs import GymEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import CEMPlanner, MPPIPlanner
from torchrl.objectives.value import TDLambdaEstimator
from typer.testing import CliRunner

import wmkit
from wmkit.cli.app import app
from wmkit.control.planners import (
    CEM,
    ICEM,
    MPPI,
    BeamSearch,
    CategoricalCEM,
    Clamp,
    GoalDistance,
    Gradient,
    Imagined,
    PredictedReturn,
    PredictiveSampling,
    Solver,
)
from wmkit.control.planners.imagined import repeated
from wmkit.dynamics import Latent, rollout
from wmkit.envs import unit_actions
from wmkit.errors import ConfigError, SpecError
from wmkit.functional import lambda_return_jumpy
from wmkit.systems import System
from wmkit.systems.planning import SOLVERS, make_planner, make_policy
from wmkit.training.collect import with_carry

NUMBERS, CHOICES = Bounded(-1.0, 1.0, (2,)), OneHot(3)
SMALL: dict[str, Any] = {"samples": 16, "iterations": 3, "elites": 4}
ALL = {
    "cem": CEM(**SMALL),
    "icem": ICEM(**SMALL),
    "mppi": MPPI(**SMALL, refit=(0.05, 2.0), returns="sampled"),
    "pldm": MPPI(samples=16, iterations=3, elites=None, noise_cost=True),
    "predictive": PredictiveSampling(samples=16, iterations=3),
    "gradient": Gradient(samples=4, iterations=5),
    "categorical": CategoricalCEM(**SMALL, warm=0.5),
}
every_solver = pytest.mark.parametrize("solver", ALL.values(), ids=ALL)


def build(name: str = "dreamer_v3", action: Any = NUMBERS, *overrides: str) -> System:
    torch.manual_seed(0)
    size = {"dreamer_v3": ("size=tiny",), "dreamer_v1": (), "twm": ("size=twm/micro",)}[name]
    spec = Composite(observation=Unbounded((3,)))
    system = wmkit.build(name, observation_spec=spec, action_spec=action, overrides=(*size, *overrides))
    for part in (*system.world_model.heads.values(), system.critic, system.actor):
        for layer in part.modules():  # heads that start at zero say nothing yet
            if isinstance(layer, nn.Linear) and not layer.weight.any():
                nn.init.normal_(layer.weight, std=0.01)
    return system


# ---- solvers ------------------------------------------------------------------------------------------


@every_solver
def test_environments_do_not_see_each_other(solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    goal = torch.rand(3, 4, 2)
    start = 0.1 * torch.randn(3, 4, 2)
    noise = solver.noise(start)
    monkeypatch.setattr(MPPI, "draw", staticmethod(lambda weight: weight.argmax(1)))

    def costs(rows: slice) -> Any:
        return lambda x: ((x - goal[rows].unsqueeze(1)) ** 2).sum((2, 3))

    together = solver(costs(slice(None)), start, noise=noise)
    for i in range(3):
        rows = slice(i, i + 1)
        alone = solver(costs(rows), start[rows], noise=noise[:, rows])
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[rows], other)


@every_solver
def test_seeds_are_candidates_and_what_is_no_number_is_never_chosen(solver: Solver) -> None:
    torch.manual_seed(1)
    seed = torch.nn.functional.one_hot(torch.tensor([[[1, 0, 1, 1]]]), 2).float()  # [E, P, H, A]
    seen: list[Tensor] = []

    def costs(x: Tensor) -> Tensor:
        seen.append(x.detach())
        found = ((x - seed) ** 2).sum((2, 3))
        return torch.where(torch.arange(x.shape[1]) == 2, torch.nan, found)

    plan = solver(costs, torch.zeros(1, 4, 2), seeds=seed)
    assert (seen[0][:, 1] == seed[:, 0]).all()
    assert plan.actions.isfinite().all()
    assert plan.cost <= 1.0 + 1e-6  # the seed itself costs nothing, whatever was fitted since


def test_wrong_options_and_costs_are_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match="elites is 9: wanted 1 to 8"):
        CEM(samples=8, elites=9)
    with pytest.raises(ConfigError, match="temperature is 0"):
        MPPI(temperature=0.0)
    with pytest.raises(SpecError, match=r"costs of candidates \[1, 16, 4, 2\] are \[1, 16, 4\]"):
        ALL["cem"](lambda x: x.sum(-1), torch.zeros(1, 4, 2))
    with pytest.raises(SpecError, match="no gradient"):
        ALL["gradient"](lambda x: x.detach().sum((2, 3)), torch.zeros(1, 4, 2))
    with pytest.raises(SpecError, match="std has 3 numbers for actions of 2"):
        CEM(std=[1.0, 1.0, 1.0])(lambda x: x.sum((2, 3)), torch.zeros(1, 4, 2))


# ---- costs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "action"), [("dreamer_v3", CHOICES), ("dreamer_v1", NUMBERS)])
def test_a_predicted_return_is_that_of_the_system(name: str, action: Any) -> None:
    """By the λ-return with λ of one over the same roll-out, or by hand where values hold rewards."""
    system = build(name, action)
    model, own = system.world_model, system.controller
    start = repeated(model.dynamics.initial(1), 5)
    found = rollout(model, start, system.actor, 4)
    transitions = own.outcome(model, found)
    after, values = transitions["next"], system.critic.predict(model.read(system.critic, found.latent)).mean
    cost = make_planner(system, ["controller=cem"]).cost
    if name == "dreamer_v3":
        each = {"steps": after["steps_to_next_obs"], "jump_return": after["jump_return"], "gamma": 1.0}
        parts = after["reward"], values[1:].transpose(0, 1), after["continuation"]
        wanted = lambda_return_jumpy(*parts, **each, lmbda=1.0)[:, 0, 0]
    else:
        gamma = own.returns.discount
        wanted = gamma**3 * values[-1, :, 0]
        wanted = wanted + sum(gamma**t * after["reward"][:, t, 0] for t in range(3))
    torch.testing.assert_close(-cost(model, found), wanted, rtol=1e-4, atol=1e-5)


def test_a_distance_is_to_the_goal_that_was_set() -> None:
    system = build("twm", CHOICES)
    model = system.world_model
    goal = {"observation": torch.randn(2, 3)}
    with pytest.raises(SpecError, match=r"call cost\.aim"):
        GoalDistance().of(model.dynamics.initial(1).map(lambda x: x.unsqueeze(0)))
    cost = GoalDistance(weights={"state": 2.0, "belief": 0.5}, norm="absolute", reduce="mean", over="all")
    cost.aim_at(model, goal)
    assert cost.goal is not None and cost.goal.state.shape[0] == 2
    start = repeated(model.dynamics.initial(2), 3)
    found = rollout(model, start, system.actor, 4)
    row, aim = 4, cost.goal.map(lambda x: x[1])
    parts = {"state": 2.0, "belief": 0.5}.items()
    wanted = sum(
        w * (getattr(found.latent, k)[1:, row] - getattr(aim, k)).abs().mean(-1).sum() for k, w in parts
    )
    torch.testing.assert_close(cost(model, found)[row], wanted)


def test_a_users_function_is_a_cost() -> None:
    system = build()
    planner = make_planner(system, ["controller=cem", "controller.horizon=3"])
    planner.cost = lambda model, found: (found.actions - 0.5).square().sum((0, 2))
    torch.manual_seed(0)
    plan = planner.plan(system.world_model, system.world_model.dynamics.initial(2))
    assert (plan.actions - 0.5).abs().max() < 0.2


# ---- beams --------------------------------------------------------------------------------------------


class Tree(nn.Module):
    """A deterministic world of three branches: the state is a base-3 number of what was chosen."""

    action_dim = 3
    conditions = ()

    def initial(self, rows: int) -> Latent:
        return Latent(torch.zeros(rows, 1), torch.zeros(rows, 1))

    def noise(self, *lead: int, device: Any = None) -> Tensor:
        return torch.zeros(*lead)

    def bind(self, *, one_hot: bool = False) -> Any:
        return self

    def step(self, latent: Latent, action: Tensor, option: Any = None, noise: Any = None) -> Latent:
        return Latent(3 * latent.state + action.argmax(-1, keepdim=True), latent.belief)


class Grown:
    """A world model as a beam search and an :class:`Imagined` use it."""

    def __init__(self) -> None:
        self.dynamics = Tree()

    def bind(self, *, one_hot: bool = False) -> Tree:
        return self.dynamics

    def evaluating(self) -> Any:
        return torch.no_grad()


@pytest.mark.parametrize("keep", ["global", "per_beam"])
def test_beams_find_the_best_leaf(keep: str) -> None:
    torch.manual_seed(0)
    worth = torch.rand(2, 4, 81)  # of each environment, by depth and node
    for env in range(2):  # what is good is good on the way there
        best = int(worth[env, 3].argmax())
        for depth in range(4):
            worth[env, depth, best // 3 ** (3 - depth)] = 2.0

    def cost(model: Any, found: Any) -> Tensor:
        depth, node = len(found.actions) - 1, found.latent.state[-1, :, 0].long()
        rows = torch.arange(len(node)) // (len(node) // 2)
        return -worth[rows, depth, node]

    world: Any = Grown()
    imagined = Imagined(world, world.dynamics.initial(2), cost, choices=True)
    options: dict[str, Any] = {"beams": 4, "branches": 3, "draws": 2, "keep": keep, "replace_every": 2}
    plan = BeamSearch(**options)(imagined, torch.zeros(2, 4, 3))
    digits = plan.actions.argmax(-1)
    leaf = (digits * torch.tensor([27, 9, 3, 1])).sum(-1)
    assert torch.equal(leaf, worth[:, 3].argmax(-1)) and torch.equal(plan.cost, torch.full((2,), -2.0))
    # a sudden gain is not believed where there is anything else
    sudden = lambda model, found: -worth[0, 0, found.latent.state[-1, :, 0].long() % 3]  # noqa: E731
    wary = BeamSearch(**options, threshold=-10.0)(
        Imagined(world, world.dynamics.initial(1), sudden, choices=True), torch.zeros(1, 4, 3)
    )
    assert wary.cost > -2.0
    with pytest.raises(SpecError, match="wanted an Imagined"):
        BeamSearch()(lambda x: x.sum((2, 3)), torch.zeros(1, 2, 3))


# ---- with world models --------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("name", "action"), [("dreamer_v3", NUMBERS), ("twm", CHOICES)])
def test_planning_reads_nothing_on_the_host(solver: str, name: str, action: Any) -> None:
    """On a device without numbers whoever looks at one is told so."""
    if solver == "categorical_cem" and action is NUMBERS:
        with pytest.raises(ConfigError, match="solver is CategoricalCEM"):
            make_planner(build(name, action), [f"controller={solver}"])
        return
    system = build(name, action)
    planner = make_planner(system, [f"controller={solver}", "controller.horizon=2"])
    planner.solver.iterations = min(planner.solver.iterations, 2)
    system.to("meta")
    with torch.device("meta"):
        plan = planner.plan(system.world_model, system.world_model.dynamics.initial(3))
    width = system.spaces.action_dim
    assert plan.actions.shape == plan.mean.shape == (3, 2, width) and plan.cost.shape == (3,)


def pendulum() -> Any:
    return TransformedEnv(GymEnv("Pendulum-v1"))


@pytest.mark.parametrize("execute", [1, 2])
def test_a_planner_runs_in_a_collector_and_goes_on_from_its_plan(execute: int) -> None:
    system = build("dreamer_v3", Bounded(-1.0, 1.0, (1,)))
    small = ["controller.horizon=3", "controller.solver.samples=8", "controller.solver.elites=4"]
    overrides = ["controller=cem", *small, f"controller.execute={execute}"]
    policy, starts = make_policy(system, overrides), list[Tensor]()
    planner, plans = policy.actor, list[Tensor]()

    def plan(model: Any, latent: Latent, start: Tensor) -> Any:
        starts.append(start.clone())
        found = type(planner).plan(planner, model, latent, start)
        plans.append(found.mean)
        return found

    planner.plan = plan
    env = with_carry(pendulum(), policy, *unit_actions())
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        collector = Collector(env, policy, frames_per_batch=6, total_frames=6)
        batch = next(iter(collector))
    assert batch["action"].shape == (6, 1) and batch["action"].abs().max() <= 1
    del starts[0], plans[0]  # the collector's look at what the policy writes
    assert len(plans) == 6 // execute
    zeros = torch.zeros_like(starts[0])
    assert torch.equal(starts[0], zeros)
    assert torch.equal(starts[1][:, : 3 - execute], plans[0][:, execute:])
    if execute == 2:
        assert torch.equal(batch["action"][1], plans[0][0, 1])
    memory = {key: torch.ones(1, *shape) for key, shape in planner.carries(1).items()}
    starts.clear()
    latent = system.world_model.dynamics.initial(1)
    planner.act(system.world_model, latent, memory, torch.tensor([True]), sampled=False)
    assert torch.equal(starts[0], zeros)  # an episode that begins has no earlier plan
    collector.shutdown()


def test_planners_of_torchrl_plan_in_a_dream() -> None:
    system = build("dreamer_v1")
    env = system.dream_env([], ends="never")
    options = {"planning_horizon": 3, "optim_steps": 2, "num_candidates": 6, "top_k": 2}
    value = TDLambdaEstimator(gamma=0.99, lmbda=0.95, value_network=system.critic)
    for planner in (CEMPlanner(env, **options), MPPIPlanner(env, value, temperature=1e-3, **options)):
        found = env.rollout(2, planner)
        assert found["action"].shape == (2, 2) and found["next", "reward"].isfinite().all()
    assert isinstance(TensorDictSequential(planner), nn.Module)


# ---- on the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "size", "env"),
    [("dreamer_v3", "size=tiny", "env.name=Pendulum-v1"), ("twm", "size=micro", "env.name=CartPole-v1")],
)
def test_any_run_is_evaluated_by_a_planner(system: str, size: str, env: str, tmp_path: Any) -> None:
    call = partial(CliRunner().invoke, app)
    run = str(tmp_path / "run")
    small = ["batch.size=2", "batch.length=8", "env.num_envs=1", "training.steps=32", "training.prefill=16"]
    small += ["training.final_episodes=1", "training.report=false", "training.log_every=16"]
    small += ["training.pretrain=0", "training.evaluate_limit=12"]
    done = call(["train", system, "preset=smoke", size, "env=gymnasium", env, f"run_dir={run}", *small])
    assert done.exit_code == 0, done.output
    few = ["controller.horizon=2", "controller.solver.samples=8", "controller.solver.elites=4"]
    done = call(["eval", run, "controller=cem", *few, "controller.solver.iterations=1", "--episodes", "1"])
    assert done.exit_code == 0, done.output
    assert "planned by cem" in done.output.replace("\n", " ")
    for wrong, words in (
        ("controller=cen", "did you mean 'cem'"),
        ("training.steps=3", "does not fit an evaluation"),
        ("controller.horizon=3", "controller is not chosen"),
    ):
        refused = call(["eval", run, wrong])
        assert refused.exit_code == 2 and words in refused.output
    refused = call(["eval", run, "controller=cem", "controller.solver.sampels=3"])
    assert refused.exit_code == 2 and "controller.solver.samples" in refused.output


def test_another_solver_over_a_system_that_plans_keeps_its_cost_and_seeds() -> None:
    spec = Composite(observation=Unbounded((3,)))
    options: Any = {"observation_spec": spec, "action_spec": NUMBERS, "overrides": ["size=micro"]}
    system = wmkit.build("td_mpc2", **options)
    planner = make_planner(system, ["controller=icem", "controller.solver.iterations=1"])
    own, cost = system.controller, planner.cost
    assert (planner.prior, planner.horizon) == (own.prior, own.horizon) == (24, 3)
    assert (cost.value, cost.gamma, cost.actor) == ("action", own.cost.gamma, system.actor)
    plan = planner.plan(system.world_model, system.world_model.dynamics.initial(2))
    assert plan.actions.shape == (2, 3, 2) and plan.cost.isfinite().all()
    beams = make_planner(system, ["controller=beam_search", "controller.prior=2"])
    assert beams.plan(system.world_model, system.world_model.dynamics.initial(2)).actions.shape == (2, 3, 2)


def test_a_value_without_a_critic_is_refused() -> None:
    with pytest.raises(ConfigError, match="value is 'state': wanted none"):
        PredictedReturn().attach(None, None)
    assert Clamp()(torch.tensor([2.0])) == 1
