"""Gradient descent on actions, through the model.

===================  ========  =======  ============  =====================================
published            samples   std      steps         ``optimizer``
===================  ========  =======  ============  =====================================
stable-worldmodel    100       1        30            ``adamw``, learning rate 0.1
DINO-WM              -         1        1000          ``sgd``, learning rate 1, noise 0.003
===================  ========  =======  ============  =====================================

The first sample is the plan there is. What is returned cost least before the last step and has made it, as in
stable-worldmodel (addbab4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from wmkit.arguments import check_range
from wmkit.control.planners.solver import Costs, Plan, Solver, per_action, pick, score, spread
from wmkit.errors import ConfigError, SpecError

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class Gradient(Solver):
    """Descend the costs of some plans at once.

    Args:
        samples: plans that descend.
        iterations: steps.
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        lr: learning rate.
        std: standard deviation of what the samples but the first and the seeds begin with.
        jitter: standard deviation of noise after every step.
        clip: largest norm of the gradient of all plans of all environments together; none leaves it.
        bounds: what plans are put back into after every step; see :class:`~wmkit.control.planners.Clamp`.
        finish: what the plan goes through.

    Raises:
        ConfigError: another optimiser.
        SpecError: costs without gradient.

    >>> goal = torch.tensor([[[0.5], [-0.5]]])
    >>> plan = Gradient(samples=1, iterations=60)(lambda x: ((x - goal) ** 2).sum((2, 3)), 0 * goal)
    >>> bool((plan.actions - goal).abs().max() < 0.05)
    True
    """

    gradient = True

    def __init__(
        self,
        *,
        samples: int = 100,
        iterations: int = 30,
        optimizer: Literal["adam", "adamw", "sgd"] = "adam",
        lr: float = 0.1,
        std: float | Sequence[float] = 1.0,
        jitter: float = 0.0,
        clip: float | None = None,
        bounds: Callable[[Tensor], Tensor] | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(samples=samples, iterations=iterations, bounds=bounds, finish=finish)
        if optimizer not in OPTIMIZERS:
            raise ConfigError(
                f"optimizer is {optimizer!r}: wanted one of {', '.join(OPTIMIZERS)}; correct optimizer"
            )
        check_range("lr", lr, 0)
        check_range("jitter", jitter, 0)
        check_range("clip", 0.0 if clip is None else clip, 0)
        self.optimizer, self.lr, self.jitter, self.clip = optimizer, lr, jitter, clip
        self.std = per_action(std, "std")

    def noise(self, start: Tensor) -> Tensor:
        """Where samples begin, and what is added after every step: ``[1, E, N, H, A]``, with ``jitter``
        ``[I + 1, ...]``.
        """
        shape = start.shape[0], self.samples, *start.shape[1:]
        return torch.randn(1 + self.iterations * bool(self.jitter), *shape, device=start.device)

    @torch.enable_grad()
    def __call__(
        self, costs: Costs, start: Tensor, *, seeds: Tensor | None = None, noise: Tensor | None = None
    ) -> Plan:
        """See :class:`~wmkit.control.planners.Solver`."""
        first, *later = self.noise(start) if noise is None else noise
        given = [start.unsqueeze(1), *([] if seeds is None else [seeds])]
        count = sum(x.shape[1] for x in given)
        near = start.unsqueeze(1) + spread(start, self.std).unsqueeze(1) * first[:, count:]
        plans = self.bounded(torch.cat([*given, near], 1)).detach().requires_grad_(True)
        optimizer = OPTIMIZERS[self.optimizer]([plans], lr=self.lr)
        for i in range(self.iterations):
            cost = score(costs, plans)
            if not cost.requires_grad:
                raise SpecError(
                    "costs have no gradient: found constants, wanted what depends on the actions by "
                    "differentiable steps; choose another solver"
                )
            (plans.grad,) = torch.autograd.grad(cost.sum(), plans)
            if self.clip is not None:
                torch.nn.utils.clip_grad_norm_([plans], self.clip)
            optimizer.step()
            with torch.no_grad():
                if later:
                    plans.add_(self.jitter * later[i])
                plans.copy_(self.bounded(plans))
        cost, index = cost.detach().min(1, keepdim=True)
        plan = pick(plans.detach(), index).squeeze(1)
        return Plan(self.finished(plan), plan, torch.zeros_like(plan), cost.squeeze(1))
