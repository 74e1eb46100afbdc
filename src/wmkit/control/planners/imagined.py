"""A world model's imagination as something to search in: the costs that a solver calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wmkit.control.planners.costs import Cost
from wmkit.dynamics import Latent, Rollout, WorldModel, rollout
from wmkit.functional import one_hot, straight_through


class Imagined:
    """Costs of candidates: each is rolled out from its environment's state, and its roll-out costs.

    Args:
        world_model: read only, without dropout.
        latent: where the environments are, leaves ``[E, ...]``.
        cost: of roll-outs.
        choices: actions are choices, of which the largest number is taken; gradients go through a softmax.
        gradient: let gradients through the model; call under :func:`~wmkit.dynamics.constants`.
    """

    def __init__(
        self,
        world_model: WorldModel,
        latent: Latent,
        cost: Cost,
        *,
        choices: bool = False,
        gradient: bool = False,
    ) -> None:
        self.world_model, self.latent, self.cost = world_model, latent._replace(products=None), cost
        self.choices, self.gradient = choices, gradient

    def __call__(self, candidates: Tensor) -> Tensor:
        """Candidates ``[E, N, H, A]`` to costs ``[E, N]``."""
        rows, count, horizon, _ = candidates.shape
        actions = chosen(candidates).to(candidates.dtype) if self.choices else candidates
        start = repeated(self.latent, count)
        found = rollout(self.world_model, start, actions.flatten(0, 1), horizon, gradient=self.gradient)
        return self.priced(found).view(rows, count)

    def priced(self, found: Rollout) -> Tensor:
        """Costs ``[N]`` of roll-outs."""
        learns = self.gradient and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns), self.world_model.evaluating():
            return self.cost(self.world_model, found)


def repeated(latent: Latent, count: int) -> Latent:
    """Leaves ``[E, ...]``, each row ``count`` times: ``[E * count, ...]``."""
    return latent.map(lambda x: x.repeat_interleave(count, 0))


def chosen(numbers: Tensor) -> Tensor:
    """The largest of ``[..., A]`` as one-hot, with the gradient of a softmax.

    >>> chosen(torch.tensor([0.2, 0.9]))
    tensor([0., 1.])
    """
    choice = one_hot(numbers.argmax(-1), numbers.shape[-1], numbers.dtype)
    return straight_through(choice, torch.softmax(numbers, -1)) if numbers.requires_grad else choice


def path(latents: list[Latent], actions: list[Tensor]) -> Rollout:
    """States and the actions between them, time in lists, as a :class:`~wmkit.dynamics.Rollout`."""
    light = [latent.light() for latent in latents]
    known = all(latent.classes is not None for latent in light)
    whole = Latent.stack(light if known else [x._replace(classes=None) for x in light], 0)
    acted = torch.stack(actions)
    rows, never = acted.shape[1], torch.zeros(*acted.shape[:2], 1, dtype=torch.bool, device=acted.device)
    own: Any = torch.arange(rows, device=acted.device)
    return Rollout(whole, acted, never, never, own, ~never[0], latents[-1]._replace(products=None))
