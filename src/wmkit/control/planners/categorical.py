"""The cross-entropy method over choices: a categorical for every step (stable-worldmodel addbab4)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.arguments import check_range
from wmkit.control.planners.solver import Costs, Plan, Solver, check_elites, pick, score
from wmkit.errors import SpecError

LEAST = 1e-10  # below which a probability or a uniform has no logarithm


class CategoricalCEM(Solver):
    """Draw one-hot actions, keep the best, count how often each was chosen, draw again.

    Candidates are one-hot; of G choices at a step, G one-hots side by side. Plans start from equal chances,
    mixed with those that the step before left where ``warm`` is not zero.

    Args:
        samples: candidates of an iteration, seeds among them.
        iterations: how often.
        elites: how many of them are counted.
        groups: choices G of a step.
        smoothing: added to every share before it is normalised.
        momentum: share of the old probabilities in the new.
        keep_mode: the first candidate is the likeliest.
        warm: share of the earlier plan's probabilities in those at first.

    Raises:
        ConfigError: more elites than samples, or a number out of range.

    >>> _ = torch.manual_seed(0)
    >>> goal = F.one_hot(torch.tensor([[2, 0]]), 3).float()
    >>> plan = CategoricalCEM(samples=32, iterations=4, elites=4)(lambda x: -(x * goal).sum((2, 3)), 0 * goal)
    >>> plan.actions.argmax(-1)
    tensor([[2, 0]])
    """

    kinds: ClassVar[tuple[str, ...]] = ("discrete",)

    def __init__(
        self,
        *,
        samples: int = 300,
        iterations: int = 30,
        elites: int = 30,
        groups: int = 1,
        smoothing: float = 0.0,
        momentum: float = 0.0,
        keep_mode: bool = True,
        warm: float = 0.0,
    ) -> None:
        super().__init__(samples=samples, iterations=iterations)
        check_elites(elites, samples)
        check_range("groups", groups, 1)
        check_range("smoothing", smoothing, 0)
        check_range("momentum", momentum, 0, 1)
        check_range("warm", warm, 0, 1)
        self.elites, self.groups, self.smoothing = elites, groups, smoothing
        self.momentum, self.keep_mode, self.warm = momentum, keep_mode, warm

    def noise(self, start: Tensor) -> Tensor:
        """Uniforms ``[I, E, N, H, A]``."""
        rows, horizon, width = start.shape
        return torch.rand(self.iterations, rows, self.samples, horizon, width, device=start.device)

    def __call__(
        self, costs: Costs, start: Tensor, *, seeds: Tensor | None = None, noise: Tensor | None = None
    ) -> Plan:
        """See :class:`~wmkit.control.planners.Solver`; of what it returns ``mean`` are probabilities."""
        width = start.shape[-1]
        if width % self.groups:
            raise SpecError(
                f"actions of {width} numbers cannot be cut into {self.groups} choices: wanted a divisor; "
                "correct groups"
            )
        probs = self._first(start.unflatten(-1, (self.groups, -1)))  # [E, H, G, C]
        classes = probs.shape[-1]
        for uniform in self.noise(start) if noise is None else noise:
            given = [probs.argmax(-1).unsqueeze(1)] * self.keep_mode
            if seeds is not None:
                given.append(seeds.unflatten(-1, (self.groups, classes)).argmax(-1))
            index = self._draw(probs, uniform.unflatten(-1, (self.groups, classes)))  # [E, N, H, G]
            if given:
                fixed = torch.cat(given, 1)
                index = torch.cat([fixed, index[:, fixed.shape[1] :]], 1)
            candidates = F.one_hot(index, classes).to(start.dtype).flatten(-2)
            cost, best = score(costs, candidates).topk(self.elites, 1, largest=False)
            share = pick(candidates, best).mean(1).unflatten(-1, (self.groups, classes))
            if self.smoothing:
                share = share + self.smoothing
                share = share / share.sum(-1, keepdim=True)
            probs = self.momentum * probs + (1 - self.momentum) * share
        likeliest = F.one_hot(probs.argmax(-1), classes).to(start.dtype).flatten(-2)
        return Plan(likeliest, probs.flatten(-2), torch.zeros_like(start), cost[:, 0])

    def _first(self, start: Tensor) -> Tensor:
        equal = torch.full_like(start, 1 / start.shape[-1])
        if not self.warm:
            return equal
        known = start.sum(-1, keepdim=True) > 0.5  # steps that the earlier plan had
        return torch.where(known, self.warm * start + (1 - self.warm) * equal, equal)

    def _draw(self, probs: Tensor, uniform: Tensor) -> Tensor:
        """Classes ``[E, N, H, G]``: the largest logarithm, with Gumbel noise."""
        gumbel = -(-uniform.clamp(min=LEAST).log()).log()
        return (probs.clamp(min=LEAST).log().unsqueeze(1) + gumbel).argmax(-1)
