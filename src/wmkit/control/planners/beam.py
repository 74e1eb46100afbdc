"""Beam search: grow some plans step by step and keep those that look best (VLP, arXiv:2310.10625, section 3).

::

    beams B ─ propose A actions each ─ draw D outcomes of each ─▶ B x A x D ─ score ─▶ beams B

Outcomes are drawn from the model as the plan grows and stay what they were, so that D draws mean something
where it is stochastic. VLP keeps the best outcome of each beam (``per_beam``), and puts the best beam in the
place of the worst every few steps; a search over the whole tree keeps the best B of all (``global``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.arguments import check_range
from wmkit.control.planners.imagined import Imagined, path, repeated
from wmkit.control.planners.solver import WORST, Costs, Plan, Solver
from wmkit.dynamics import Latent
from wmkit.errors import ConfigError, SpecError

Proposer = Callable[[Latent, int], Tensor]


class BeamSearch(Solver):
    """Search a tree of imagined steps; what it is called with must be an :class:`Imagined`.

    Args:
        beams: plans B that are grown.
        branches: actions A that are tried at each step of each.
        draws: outcomes D of each of them.
        keep: the best of each beam (``"per_beam"``) or the best B of all (``"global"``).
        replace_every: steps after which the best beam takes the place of the worst; zero never.
        threshold: an outcome that lowers a beam's cost by more in one step is not believed, and taken only
            where there is no other, the least lucky one. None believes all.
        std: spread of proposals, where actions are numbers and nobody else proposes.
        bounds: of proposals.
        propose: states ``[N]`` and a count to actions ``[N, count, A]``; without it choices are gone through
            in an order drawn anew for each state, numbers are drawn from a normal.

    Raises:
        ConfigError: an unknown ``keep``, or a number out of range.
    """

    kinds: ClassVar[tuple[str, ...]] = ("discrete", "continuous")

    def __init__(
        self,
        *,
        beams: int = 2,
        branches: int = 4,
        draws: int = 4,
        keep: Literal["per_beam", "global"] = "per_beam",
        replace_every: int = 5,
        threshold: float | None = None,
        std: float = 1.0,
        bounds: Callable[[Tensor], Tensor] | None = None,
        propose: Proposer | None = None,
    ) -> None:
        super().__init__(samples=beams * branches * draws, iterations=1, bounds=bounds)
        if keep not in ("per_beam", "global"):
            raise ConfigError(f"keep is {keep!r}: wanted per_beam or global; correct keep")
        for name, value in (("beams", beams), ("branches", branches), ("draws", draws)):
            check_range(name, value, 1)
        check_range("replace_every", replace_every, 0)
        check_range("std", std, 0)
        self.beams, self.branches, self.draws, self.keep = beams, branches, draws, keep
        self.replace_every, self.threshold, self.std, self.propose = replace_every, threshold, std, propose

    @torch.no_grad()
    def __call__(
        self,
        costs: Costs,
        start: Tensor,
        *,
        seeds: Tensor | None = None,
        noise: Tensor | None = None,
        propose: Proposer | None = None,
    ) -> Plan:
        """See :class:`~wmkit.control.planners.Solver`; ``propose`` as in the constructor.

        Raises:
            SpecError: ``costs`` cannot be grown step by step.
        """
        if not isinstance(costs, Imagined):
            raise SpecError(
                f"costs are a {type(costs).__name__}: wanted an Imagined, which can be grown step by step; "
                "choose another solver"
            )
        rows, horizon, width = start.shape
        propose = self.propose or propose or self._usual(costs.choices, start)
        fan = self.branches * self.draws
        latent, history, actions = repeated(costs.latent, self.beams), list[Latent](), list[Tensor]()
        price = start.new_full((rows, self.beams), WORST)
        with costs.world_model.evaluating():
            steps = costs.world_model.bind()
            for t in range(horizon):
                tried = propose(latent, self.branches).repeat_interleave(self.draws, 1)  # [E*B, A*D, A]
                tried = self.bounded(tried).flatten(0, 1)
                after = steps.step(repeated(latent, fan), tried)
                before = [repeated(past, fan) for past in (*history, latent.light())]
                grown = path([*before, after], [*(x.repeat_interleave(fan, 0) for x in actions), tried])
                cost = costs.priced(grown).view(rows, self.beams, fan).nan_to_num(nan=WORST, posinf=WORST)
                rank = cost
                if self.threshold is not None and t:
                    gain = price.unsqueeze(-1) - cost
                    rank = torch.where(gain > self.threshold, cost.amax(-1, keepdim=True) + gain, cost)
                chosen, parent = self._kept(rank, t)
                latent, price = after.map(lambda x: x[chosen]), cost.flatten()[chosen].view_as(price)  # noqa: B023
                history = [past.map(lambda x: x[chosen]) for past in before]  # noqa: B023
                actions = [*(x[parent] for x in actions), tried[chosen]]
                if self.replace_every and self.beams > 1 and (t + 1) % self.replace_every == 0:
                    place = self._replaced(price)
                    latent, price = latent.map(lambda x: x[place]), price.flatten()[place].view_as(price)  # noqa: B023
                    history = [past.map(lambda x: x[place]) for past in history]  # noqa: B023
                    actions = [x[place] for x in actions]
        cost, index = price.min(1, keepdim=True)
        plans = torch.stack(actions, 1).view(rows, self.beams, horizon, width)
        plan = plans[torch.arange(rows, device=start.device), index.squeeze(1)]
        return Plan(plan, plan, torch.zeros_like(plan), cost.squeeze(1))

    def _kept(self, rank: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Rows of the outcomes ``[E * B]`` that are kept, and of the beams that they grew from."""
        rows, beams, fan = rank.shape
        first = torch.arange(rows, device=rank.device).unsqueeze(1) * beams * fan  # [E, 1]
        if self.keep == "per_beam":
            index = rank.argmin(-1) + torch.arange(beams, device=rank.device) * fan  # [E, B]
        else:
            if not t:  # all beams are the same yet
                rank = torch.cat([rank[:, :1], torch.full_like(rank[:, 1:], WORST)], 1)
            index = rank.flatten(1).topk(beams, 1, largest=False).indices
        chosen = (first + index).flatten()
        return chosen, chosen // fan

    def _replaced(self, price: Tensor) -> Tensor:
        """Rows of beams ``[E * B]`` with the best in the place of the worst."""
        rows, beams = price.shape
        own = torch.arange(beams, device=price.device).expand(rows, beams)
        place = torch.where(own == price.argmax(1, keepdim=True), price.argmin(1, keepdim=True), own)
        return (place + torch.arange(rows, device=price.device).unsqueeze(1) * beams).flatten()

    def _usual(self, choices: bool, start: Tensor) -> Proposer:
        width: Any = start.shape[-1]

        def propose(latent: Latent, count: int) -> Tensor:
            rows = len(latent.state)
            if not choices:
                return self.std * torch.randn(rows, count, width, device=start.device)
            order = torch.rand(rows, width, device=start.device).argsort(1)
            taken = torch.arange(count, device=start.device) % width
            return F.one_hot(order[:, taken], width).to(start.dtype)

        return propose
