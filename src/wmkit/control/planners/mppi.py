"""Model predictive path integrals: candidates, weighted by how little they cost (arXiv:1509.01149).

=====================  ========  =========  ===========  ===========  ================  =============
published              std       elites     temperature  ``refit``    ``keep_mean``     returns
=====================  ========  =========  ===========  ===========  ================  =============
stable-worldmodel      1         30         0.5          none         yes               mean
TD-MPC2                2         64         2            0.05 to 2    no                a draw
jepa-wms, eb_jepa      2         some       2, 200       any          no                a draw
PLDM                   sqrt(12)  all        0.005        none         no                mean
=====================  ========  =========  ===========  ===========  ================  =============

``temperature`` divides costs everywhere here; TD-MPC2's 0.5 and the 0.5 and 0.005 of jepa-wms and eb_jepa
multiply them. PLDM's costs hold a term of the noise (``noise_cost``), its actions are capped
(:class:`~wmkit.control.planners.NormCap`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from wmkit.arguments import check_range
from wmkit.control.planners.solver import (
    Costs,
    Plan,
    Solver,
    check_elites,
    per_action,
    pick,
    score,
    spread,
)
from wmkit.errors import ConfigError

RETURNS = ("mean", "best", "sampled")


class MPPI(Solver):
    """Means weighted by ``exp(-cost / temperature)``.

    Args:
        samples: candidates of an iteration, seeds among them.
        iterations: how often.
        elites: how many of the best have a weight; all if not given.
        temperature: what costs are divided by.
        std: standard deviation at first, for all dimensions of an action or for each.
        refit: least and largest standard deviation that is fitted to the weighted candidates; without it
            the first stays.
        keep_mean: the first candidate is the mean itself.
        noise_cost: add ``temperature * sum(mean * noise / std^2)`` to a candidate's cost: what the path
            integral charges for leaving the mean.
        bounds: of candidates; see :class:`~wmkit.control.planners.Clamp`.
        finish: what the plan goes through.
        returns: the last ``"mean"``, the ``"best"`` candidate, or one ``"sampled"`` by its weight.

    Raises:
        ConfigError: more elites than samples, or a number out of range.

    >>> _ = torch.manual_seed(0)
    >>> goal = torch.tensor([[[0.5], [-0.5]]])
    >>> solver = MPPI(samples=64, iterations=8, elites=8, temperature=0.1, refit=(0.05, 2.0))
    >>> plan = solver(lambda x: ((x - goal) ** 2).sum((2, 3)), 0 * goal)
    >>> bool((plan.actions - goal).abs().max() < 0.1)
    True
    """

    def __init__(
        self,
        *,
        samples: int = 300,
        iterations: int = 30,
        elites: int | None = 30,
        temperature: float = 0.5,
        std: float | Sequence[float] = 1.0,
        refit: Sequence[float] | None = None,
        keep_mean: bool = True,
        noise_cost: bool = False,
        bounds: Callable[[Tensor], Tensor] | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
        returns: Literal["mean", "best", "sampled"] = "mean",
    ) -> None:
        super().__init__(samples=samples, iterations=iterations, bounds=bounds, finish=finish)
        self.elites = samples if elites is None else elites
        check_elites(self.elites, samples)
        if not 0 < temperature < math.inf:
            raise ConfigError(f"temperature is {temperature!r}: wanted above 0; correct temperature")
        if returns not in RETURNS:
            raise ConfigError(f"returns is {returns!r}: wanted {', '.join(RETURNS)}; correct returns")
        if refit is not None and not (len(refit) == 2 and 0 <= refit[0] <= refit[1]):
            raise ConfigError(
                f"refit is {list(refit)}: wanted the least and the largest std, or null; correct refit"
            )
        self.temperature, self.std, self.refit = temperature, per_action(std, "std"), refit
        self.keep_mean, self.noise_cost, self.returns = keep_mean, noise_cost, returns
        check_range("std", min(self.std) if isinstance(self.std, tuple) else self.std, 0)

    def __call__(
        self, costs: Costs, start: Tensor, *, seeds: Tensor | None = None, noise: Tensor | None = None
    ) -> Plan:
        """See :class:`~wmkit.control.planners.Solver`."""
        mean, std = start, spread(start, self.std)
        for eps in self.noise(start) if noise is None else noise:
            given = [mean.unsqueeze(1)] * self.keep_mean + ([] if seeds is None else [seeds])
            count = sum(x.shape[1] for x in given)
            drawn = mean.unsqueeze(1) + std.unsqueeze(1) * eps[:, count:]
            candidates = self.bounded(torch.cat([*given, drawn], 1))  # [E, N, H, A]
            cost = score(costs, candidates)
            charged = cost + self._charge(candidates, mean, std) if self.noise_cost else cost
            charged, index = charged.topk(self.elites, 1, largest=False)
            best = pick(candidates, index)
            weight = torch.softmax((charged[:, :1] - charged) / self.temperature, 1)  # [E, K]
            each = weight[:, :, None, None]
            mean = (each * best).sum(1)
            if self.refit is not None:
                spread_of = (each * (best - mean.unsqueeze(1)) ** 2).sum(1).sqrt()
                std = spread_of.clamp(*self.refit)
        actions = mean
        if self.returns != "mean":
            chosen = self.draw(weight) if self.returns == "sampled" else torch.zeros_like(index[:, 0])
            actions = pick(best, chosen.unsqueeze(1)).squeeze(1)
        return Plan(self.finished(actions), mean, std, cost.amin(1))

    @staticmethod
    def draw(weight: Tensor) -> Tensor:
        """An index ``[E]`` by weights ``[E, K]``: the largest logarithm, with Gumbel noise."""
        return (weight.log() - torch.empty_like(weight).exponential_().log()).argmax(1)

    def _charge(self, candidates: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        noise = candidates - mean.unsqueeze(1)
        return self.temperature * (mean.unsqueeze(1) * noise / std.unsqueeze(1) ** 2).sum((2, 3))
