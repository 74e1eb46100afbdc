"""One optimiser over one group of parameters, with its clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class Learner:
    """Backward, clip, step.

    Args:
        parameters: what it trains.
        optimizer: called as ``optimizer(parameters)``, gives the optimiser.
        clip: largest norm of the whole gradient; ``None`` where the optimiser sees to that.

    >>> weight = nn.Parameter(torch.ones(2))
    >>> learner = Learner([weight], lambda p: torch.optim.SGD(p, lr=1.0), clip=1.0)
    >>> learner.step((10 * weight).sum()).item()
    14.1421...
    >>> weight.data
    tensor([0.2929, 0.2929])
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        clip: float | None,
    ) -> None:
        self.parameters = list(parameters)
        self.optimizer = optimizer(self.parameters)
        self.clip = clip

    def step(self, loss: Tensor) -> Tensor:
        """Minimise ``loss`` once; returns the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters)
        if self.clip is None:
            norm = nn.utils.get_total_norm(
                [p.grad for p in self.parameters if p.grad is not None], foreach=True
            )
        else:
            norm = nn.utils.clip_grad_norm_(self.parameters, self.clip, foreach=True)
        self.optimizer.step()
        return norm.detach()

    def state_dict(self) -> dict:
        """The optimiser's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Take an optimiser's state back."""
        self.optimizer.load_state_dict(state)
