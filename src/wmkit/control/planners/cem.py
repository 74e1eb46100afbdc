"""The cross-entropy method: draw, keep the best, fit a normal to them, draw again (Rubinstein 1999).

=====================  =====  =============  ===============  ==============================  ========
published              std    ``keep_mean``  ``bounds``       ``momentum``                    returns
=====================  =====  =============  ===============  ==============================  ========
stable-worldmodel      1      yes            -                0                               mean
DINO-WM                1      yes            -                0                               mean
jepa-wms               any    yes            ``Clamp``        ``momentum``, ``std_momentum``  mean
eb_jepa                1.5    no             ``NormCap``      0                               mean
V-JEPA 2-AC            each   no             ``Clamp``        0.15                            mean
=====================  =====  =============  ===============  ==============================  ========

V-JEPA 2-AC spreads 0.05, 0.05, 0.05 (x, y, z), 0, 0, 0 (rotations) and 1 (gripper), clips to 0.05 and 0.75
and zeroes a gripper below 0.25 (``finish``).
"""

from __future__ import annotations

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

RETURNS = ("mean", "best")


class CEM(Solver):
    """The cross-entropy method.

    Args:
        samples: candidates of an iteration, seeds among them.
        iterations: how often.
        elites: how many of them the next normal is fitted to.
        std: standard deviation at first, for all dimensions of an action or for each.
        keep_mean: the first candidate is the mean itself.
        momentum: share of the old mean in the new.
        std_momentum: share of the old standard deviation; ``momentum`` if not given.
        bounds: of candidates, the mean among them; see :class:`~wmkit.control.planners.Clamp`.
        finish: what the plan goes through.
        returns: the last ``"mean"``, or the ``"best"`` candidate of the last iteration.

    Raises:
        ConfigError: more elites than samples, or a number out of range.

    >>> _ = torch.manual_seed(0)
    >>> goal = torch.tensor([[[0.5], [-0.5]]])
    >>> plan = CEM(samples=64, iterations=8, elites=8)(lambda x: ((x - goal) ** 2).sum((2, 3)), 0 * goal)
    >>> bool((plan.actions - goal).abs().max() < 0.05)
    True
    """

    def __init__(
        self,
        *,
        samples: int = 300,
        iterations: int = 30,
        elites: int = 30,
        std: float | Sequence[float] = 1.0,
        keep_mean: bool = True,
        momentum: float = 0.0,
        std_momentum: float | None = None,
        bounds: Callable[[Tensor], Tensor] | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
        returns: Literal["mean", "best"] = "mean",
    ) -> None:
        super().__init__(samples=samples, iterations=iterations, bounds=bounds, finish=finish)
        check_elites(elites, samples)
        if elites < 2:
            raise ConfigError("elites is 1: wanted 2 or more, to which a spread is fitted; correct elites")
        if returns not in RETURNS:
            raise ConfigError(f"returns is {returns!r}: wanted {' or '.join(RETURNS)}; correct returns")
        self.momentum = momentum
        self.std_momentum = momentum if std_momentum is None else std_momentum
        check_range("momentum", self.momentum, 0, 1)
        check_range("std_momentum", self.std_momentum, 0, 1)
        self.elites, self.std = elites, per_action(std, "std")
        self.keep_mean, self.returns = keep_mean, returns

    def __call__(
        self, costs: Costs, start: Tensor, *, seeds: Tensor | None = None, noise: Tensor | None = None
    ) -> Plan:
        """See :class:`~wmkit.control.planners.Solver`."""
        mean, std = start, spread(start, self.std)
        chance = self.shaped(self.noise(start) if noise is None else noise)
        best, cost = mean.unsqueeze(1), mean.new_zeros(len(mean), 1)
        for i, eps in enumerate(chance):
            candidates = mean.unsqueeze(1) + std.unsqueeze(1) * eps  # [E, N, H, A]
            given = [mean.unsqueeze(1)] * self.keep_mean + ([] if seeds is None else [seeds])
            given += [best[:, : self.kept]] * (i > 0 and self.kept > 0)
            if given:
                fixed = torch.cat(given, 1)
                candidates = torch.cat([fixed, candidates[:, fixed.shape[1] :]], 1)
            candidates = self.bounded(candidates)
            cost, index = score(costs, candidates).topk(self.elites, 1, largest=False)
            best = pick(candidates, index)  # [E, K, H, A], the best first
            mean = self.momentum * mean + (1 - self.momentum) * best.mean(1)
            std = self.std_momentum * std + (1 - self.std_momentum) * best.std(1)
        actions = mean if self.returns == "mean" else best[:, 0]
        return Plan(self.finished(actions), mean, std, cost[:, 0])

    kept = 0  # elites that are candidates of the next iteration too

    def shaped(self, noise: Tensor) -> Tensor:
        """The noise that candidates are made of."""
        return noise
