"""The contract of solvers: candidates in, costs out, for many environments and candidates at once.

A solver looks for plans, sequences of H actions, that cost little::

    costs(candidates [E, N, H, A]) -> [E, N]      E environments, N candidates each
    solver(costs, start [E, H, A]) -> Plan        start: where to look first, what was found the step before

It knows neither models nor goals (:class:`~wmkit.control.planners.Imagined` puts those behind ``costs``).
Shapes are fixed, nothing is read on the host, and all chance is drawn before the loop (:meth:`Solver.noise`),
so that a recorded search can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from wmkit.arguments import check_range
from wmkit.errors import ConfigError, SpecError

Costs = Callable[[Tensor], Tensor]
WORST = 1e30  # what a cost that is not a number counts as


class Plan(NamedTuple):
    """What a search found.

    Attributes:
        actions: ``[E, H, A]`` to execute.
        mean: ``[E, H, A]`` what the next search starts from, once it is shifted (:meth:`Solver.shift`).
        std: ``[E, H, A]`` how far the last candidates were spread; zero where nothing is.
        cost: ``[E]`` of the best of the last candidates.
    """

    actions: Tensor
    mean: Tensor
    std: Tensor
    cost: Tensor


class Solver:
    """Base of all solvers.

    Args:
        samples: candidates N of an iteration.
        iterations: how often candidates are drawn.
        bounds: what candidates go through before they are scored: ``[..., A] -> [..., A]``; none leaves them.
        finish: what the plan goes through at the end, e.g. :class:`DeadZone`.

    Attributes:
        kinds: of actions that it searches over.
        gradient: whether it asks for gradients of costs.
    """

    kinds: ClassVar[tuple[str, ...]] = ("continuous",)
    gradient = False

    def __init__(
        self,
        *,
        samples: int,
        iterations: int,
        bounds: Callable[[Tensor], Tensor] | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_range("samples", samples, 1)
        check_range("iterations", iterations, 1)
        self.samples, self.iterations, self.bounds, self.finish = samples, iterations, bounds, finish

    def noise(self, start: Tensor) -> Tensor:
        """The chance of one search: standard normals ``[I, E, N, H, A]``."""
        rows, horizon, width = start.shape
        return torch.randn(self.iterations, rows, self.samples, horizon, width, device=start.device)

    def __call__(
        self, costs: Costs, start: Tensor, *, seeds: Tensor | None = None, noise: Tensor | None = None
    ) -> Plan:
        """Search.

        Args:
            costs: candidates ``[E, N, H, A]`` to ``[E, N]``.
            start: ``[E, H, A]``.
            seeds: ``[E, P, H, A]`` candidates of every iteration, e.g. of a policy; they come first.
            noise: of :meth:`noise`; drawn here if not given.

        Raises:
            SpecError: costs of another shape.
        """
        raise NotImplementedError

    @staticmethod
    def shift(mean: Tensor, steps: int = 1) -> Tensor:
        """Where to look next when ``steps`` actions were executed: the rest, and zeros.

        >>> Solver.shift(torch.tensor([[[1.0], [2.0], [3.0]]])).flatten().tolist()
        [2.0, 3.0, 0.0]
        """
        return torch.cat([mean[:, steps:], torch.zeros_like(mean[:, :steps])], 1)

    def bounded(self, candidates: Tensor) -> Tensor:
        """Candidates within the bounds."""
        return candidates if self.bounds is None else self.bounds(candidates)

    def finished(self, actions: Tensor) -> Tensor:
        """A plan as it is executed."""
        return actions if self.finish is None else self.finish(actions)


def score(costs: Costs, candidates: Tensor) -> Tensor:
    """Costs ``[E, N]`` that can be compared: what is no number counts as worst.

    Raises:
        SpecError: costs of another shape.

    >>> score(lambda plans: plans.sum((2, 3)) / 0, torch.tensor([[[[0.0]], [[1.0]]]]))
    tensor([[1.0000e+30, 1.0000e+30]])
    """
    found = costs(candidates)
    if found.shape != candidates.shape[:2]:
        raise SpecError(
            f"costs of candidates {list(candidates.shape)} are {list(found.shape)}: wanted "
            f"{list(candidates.shape[:2])}, one for each; reduce over steps and numbers"
        )
    return found.nan_to_num(nan=WORST, posinf=WORST, neginf=-WORST)


def pick(candidates: Tensor, index: Tensor) -> Tensor:
    """Candidates ``[E, N, H, A]`` at ``index [E, K]``: ``[E, K, H, A]``."""
    return candidates[torch.arange(len(index), device=index.device).unsqueeze(1), index]


def per_action(value: float | Sequence[float], name: str) -> float | tuple[float, ...]:
    """A number for every dimension of an action, or one for all.

    Raises:
        ConfigError: a negative one.
    """
    found = tuple(value) if isinstance(value, Sequence) else value
    for number in found if isinstance(found, tuple) else (found,):
        check_range(name, number, 0)
    return found


def spread(like: Tensor, value: float | tuple[float, ...]) -> Tensor:
    """:func:`per_action` over ``[E, H, A]``.

    Raises:
        SpecError: as many numbers as there are no dimensions.
    """
    if isinstance(value, tuple) and len(value) not in (1, like.shape[-1]):
        raise SpecError(
            f"std has {len(value)} numbers for actions of {like.shape[-1]}: wanted one, or one for each "
            "dimension; correct std"
        )
    return (
        like.new_full((1,), value).expand_as(like)
        if isinstance(value, (int, float))
        else (torch.as_tensor(value, dtype=like.dtype, device=like.device).expand_as(like))
    )


class Clamp:
    """Every dimension between two numbers.

    Args:
        low: one for all, or one for each dimension.
        high: the same.

    >>> Clamp(-1.0, [1.0, 0.5])(torch.tensor([[2.0, 2.0]]))
    tensor([[1.0000, 0.5000]])
    """

    def __init__(self, low: float | Sequence[float] = -1.0, high: float | Sequence[float] = 1.0) -> None:
        self.low, self.high = low, high

    def __call__(self, actions: Tensor) -> Tensor:
        """``[..., A]``."""
        return actions.clamp(min=_like(actions, self.low)).clamp(max=_like(actions, self.high))


class NormCap:
    """Actions no longer than a limit (eb_jepa 966e61e; PLDM, cbaf674): ``a min(|a|, m) / (|a| + 1e-6)``.

    Args:
        limit: longest norm m of an action.

    >>> NormCap(2.5)(torch.tensor([[3.0, 4.0]]))
    tensor([[1.5000, 2.0000]])
    """

    def __init__(self, limit: float) -> None:
        check_range("limit", limit, 0)
        self.limit = limit

    def __call__(self, actions: Tensor) -> Tensor:
        """``[..., A]``."""
        norm = actions.norm(dim=-1, keepdim=True)
        return actions * norm.clamp(max=self.limit) / (norm + 1e-6)


class DeadZone:
    """Numbers of small magnitude become zero: V-JEPA 2-AC's gripper, below 0.25 (c2963a4).

    Args:
        width: for all dimensions, or for each.

    >>> DeadZone([0.0, 0.25])(torch.tensor([[0.1, 0.1]]))
    tensor([[0.1000, 0.0000]])
    """

    def __init__(self, width: float | Sequence[float]) -> None:
        self.width = width

    def __call__(self, actions: Tensor) -> Tensor:
        """``[..., A]``."""
        return torch.where(actions.abs() < _like(actions, self.width), 0.0, actions)


def _like(actions: Tensor, value: Any) -> Any:
    """One number as it is, which nothing has to be copied for; several as a tensor."""
    if isinstance(value, (int, float)):
        return value
    return torch.as_tensor(value, dtype=actions.dtype, device=actions.device)


def check_elites(elites: int, samples: int) -> None:
    """Raise :class:`ConfigError` unless there are as many candidates as elites.

    >>> check_elites(3, 2)
    Traceback (most recent call last):
    wmkit.errors.ConfigError: elites is 3: wanted 1 to 2, of as many samples; correct elites
    """
    if not 1 <= elites <= samples:
        raise ConfigError(f"elites is {elites}: wanted 1 to {samples}, of as many samples; correct elites")
