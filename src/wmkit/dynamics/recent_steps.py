"""A memory of the last steps as they were, for acting with a sequence model that is run anew at every step.

STORM (arXiv:2310.09615; weipu-zhang/STORM) remembers 16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wmkit.dynamics.tokens import Steps


class RecentSteps:
    """Rows ``[B, window, N]``: the state (by its classes if it has any), arrival, ``is_init`` and action of
    each.

    Args:
        window: steps that are remembered.
        latent: what a state is made of.
        action_dim: width A of an action.

    >>> from wmkit.nn import CategoricalLatent
    >>> recent = RecentSteps(4, CategoricalLatent(2, 3), 5)
    >>> recent.shape
    (4, 9)
    >>> recent.steps(torch.zeros(1, 4, 9)).state.shape
    torch.Size([1, 4, 6])
    """

    def __init__(self, window: int, latent: Any, action_dim: int) -> None:
        self.window, self.latent, self.action_dim = window, latent, action_dim
        self._width = getattr(latent, "groups", latent.state_dim)

    @property
    def shape(self) -> tuple[int, int]:
        """Of one row."""
        return self.window, self._width + 2 + self.action_dim

    def unpack(self, recent: Tensor, previous_action: Tensor) -> Tensor:
        """Remembered steps, now that the action ``[B, A]`` of the last of them is known."""
        known = recent[:, -1, : self._width + 2]
        last = torch.cat([known, previous_action.to(known.dtype)], -1)
        return torch.cat([recent[:, :-1], last.unsqueeze(1)], 1)

    def steps(self, recent: Tensor) -> Steps:
        """As a sequence model takes them, leaves ``[B, window, ...]``."""
        state, arrival, first, action = recent.split([self._width, 1, 1, self.action_dim], -1)
        classes = None
        if hasattr(self.latent, "groups"):
            classes = state.long()
            state = self.latent.one_hot(classes)
        return Steps(state, classes, action, arrival, first[..., 0] > 0)

    def push(
        self, recent: Tensor, state: Tensor, classes: Tensor | None, arrival: Tensor, first: Tensor
    ) -> Tensor:
        """With one step more, whose action is not known yet; the oldest goes."""
        kept = state if classes is None else classes.float()
        action = arrival.new_zeros(len(arrival), self.action_dim)
        here = torch.cat([kept, arrival.float(), first.unsqueeze(-1).float(), action], -1)
        return torch.cat([recent[:, 1:], here.unsqueeze(1)], 1)
