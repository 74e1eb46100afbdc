"""The solvers beside those of stable-worldmodel (addbab4), given the same noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support.originals import Recorded
from wmkit.control.planners import CEM, ICEM, MPPI, CategoricalCEM, Clamp, Gradient, PredictiveSampling

RECORDED = Recorded("planners")
HORIZON, WIDTH, ENVS, SAMPLES, ELITES = 5, 4, 2, 24, 6
ITERATIONS = 5
SIZES: dict[str, Any] = {"samples": SAMPLES, "elites": ELITES}


def quadratic(seen: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """The recorded cost ``(x - target)' Q (x - target)``; keeps the costs of every iteration."""
    target, q = RECORDED("target"), RECORDED("Q")

    def costs(candidates: Tensor) -> Tensor:
        off = candidates.flatten(2) - target.unsqueeze(1)
        found = torch.einsum("enx,xy,eny->en", off, q, off)
        seen.append(found.detach())
        return found

    return costs


def start(name: str) -> Tensor:
    """Zeros, behind the steps that a warm start gives."""
    plan = torch.zeros(ENVS, HORIZON, WIDTH)
    if name.endswith("warm"):
        given = RECORDED("warm_start")
        plan[:, : given.shape[1]] = given
    return plan


def near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        ("cem", CEM, {}),
        ("cem_warm", CEM, {}),
        ("icem", ICEM, {"bounds": Clamp(), "keep_elites": 3}),
        ("icem_best", ICEM, {"bounds": Clamp(), "keep_elites": 3, "returns": "best"}),
    ],
)
def test_cem_follows_the_original_from_iteration_to_iteration(name: str, make: Any, options: Any) -> None:
    noise = RECORDED(f"{name}/noise")
    noise = noise.transpose(-1, -2) if make is ICEM else noise
    for count in range(1, ITERATIONS + 1):
        seen: list[Tensor] = []
        solver = make(**SIZES, iterations=count, **options)
        plan = solver(quadratic(seen), start(name), noise=noise[:count])
        near(plan.mean, RECORDED(f"{name}/mean")[count - 1])
        near(plan.std, RECORDED(f"{name}/var")[count - 1])
        near(seen[-1], RECORDED(f"{name}/costs")[count - 1])
        chosen = seen[-1].topk(ELITES, 1, largest=False).indices
        assert torch.equal(chosen, RECORDED(f"{name}/topk_inds")[count - 1])
    near(plan.actions, RECORDED(f"{name}/actions"))


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("mppi", MPPI(**SIZES, iterations=ITERATIONS)),
        ("predsamp", PredictiveSampling(samples=SAMPLES)),
    ],
)
def test_others_end_where_the_original_does(name: str, solver: Any) -> None:
    plan = solver(quadratic([]), start(name), noise=RECORDED(f"{name}/noise"))
    near(plan.actions, RECORDED(f"{name}/actions"))
    if name == "predsamp":
        near(plan.cost, RECORDED(f"{name}/final_costs"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gd_adamw", {"optimizer": "adamw", "lr": 0.1}),
        ("gd_sgd", {"optimizer": "sgd", "lr": 0.3, "clip": 1.0}),
    ],
)
def test_gradients_go_where_the_original_goes(name: str, options: Any) -> None:
    given, seen = RECORDED(f"{name}/noise"), list[Tensor]()
    noise = torch.cat([torch.zeros_like(given[:, :, :1]), given], 2)
    theirs = RECORDED(f"{name}/costs")
    solver = Gradient(samples=theirs.shape[2], iterations=len(theirs), **options)
    plan = solver(quadratic(seen), start(name), noise=noise)
    near(torch.stack(seen), theirs)
    near(plan.actions, RECORDED(f"{name}/actions"))


@pytest.mark.parametrize("name", ["catcem", "catcem_smooth"])
def test_choices_are_those_of_the_original(name: str) -> None:
    """The recorded elites cost least, in their order: of the cost itself only they are known."""
    uniform, elites = RECORDED(f"{name}/uniform"), RECORDED(f"{name}/topk_inds")
    options = {"smoothing": 0.05, "momentum": 0.3} if name.endswith("smooth") else {}
    groups, classes = uniform.shape[-2:]
    nothing = torch.zeros(ENVS, HORIZON, groups * classes)
    for count in range(1, ITERATIONS + 1):
        order = iter(elites)

        def costs(candidates: Tensor, order: Any = order) -> Tensor:
            place = torch.arange(ELITES).float().expand(ENVS, -1)
            return torch.full(candidates.shape[:2], float(ELITES)).scatter(1, next(order), place)

        solver = CategoricalCEM(**SIZES, iterations=count, groups=groups, **options)
        plan = solver(costs, nothing, noise=uniform[:count].flatten(-2))
        near(plan.mean.view(ENVS, HORIZON, groups, classes), RECORDED(f"{name}/probs")[count - 1])
    actions = plan.actions.view(ENVS, HORIZON, groups, classes).argmax(-1)
    assert torch.equal(actions, RECORDED(f"{name}/actions"))
