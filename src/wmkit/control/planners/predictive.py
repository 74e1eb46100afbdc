"""Predictive sampling: keep the best of some perturbed plans (Howell et al. 2022, arXiv:2212.00541)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wmkit.control.planners.solver import Costs, Plan, Solver, per_action, pick, score, spread


class PredictiveSampling(Solver):
    """The best of the plan there is and some that are near it.

    Args:
        samples: candidates of an iteration, the plan there is and seeds among them.
        iterations: how often.
        std: standard deviation of what is added, for all dimensions of an action or for each.
        bounds: of candidates; see :class:`~wmkit.control.planners.Clamp`.
        finish: what the plan goes through.

    >>> _ = torch.manual_seed(0)
    >>> goal = torch.tensor([[[0.5], [-0.5]]])
    >>> costs = lambda x: ((x - goal) ** 2).sum((2, 3))
    >>> plan = PredictiveSampling(samples=64, iterations=4, std=0.3)(costs, 0 * goal)
    >>> bool(plan.cost < costs(0 * goal[:, None]).squeeze())
    True
    """

    def __init__(
        self,
        *,
        samples: int = 300,
        iterations: int = 1,
        std: float | Sequence[float] = 1.0,
        bounds: Callable[[Tensor], Tensor] | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(samples=samples, iterations=iterations, bounds=bounds, finish=finish)
        self.std = per_action(std, "std")

    def __call__(
        self, costs: Costs, start: Tensor, *, seeds: Tensor | None = None, noise: Tensor | None = None
    ) -> Plan:
        """See :class:`~wmkit.control.planners.Solver`."""
        plan, std = start, spread(start, self.std)
        for eps in self.noise(start) if noise is None else noise:
            given = [plan.unsqueeze(1), *([] if seeds is None else [seeds])]
            count = sum(x.shape[1] for x in given)
            drawn = plan.unsqueeze(1) + std.unsqueeze(1) * eps[:, count:]
            candidates = self.bounded(torch.cat([*given, drawn], 1))
            cost, index = score(costs, candidates).min(1, keepdim=True)
            plan = pick(candidates, index).squeeze(1)
        return Plan(self.finished(plan), plan, std, cost.squeeze(1))
