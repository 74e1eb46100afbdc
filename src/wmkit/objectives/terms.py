"""Loss terms: named, per position, weighted and averaged in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from wmkit.errors import ConfigError


class Term(NamedTuple):
    """One named loss before reduction.

    Attributes:
        value: one loss per position, any shape.
        mask: which positions count (broadcastable to ``value``); all of them if ``None``.
        group: whom it teaches: a learner takes the terms of the groups that it learns from.
        positions: over how many positions the loss is a mean; over those that count if ``None``.
    """

    value: Tensor
    mask: Tensor | None = None
    group: str = "dynamics"
    positions: Tensor | float | None = None

    @property
    def total(self) -> Tensor:
        """Sum over the positions that count; masked positions have exactly no gradient.

        >>> Term(torch.tensor([1.0, float("nan")]), torch.tensor([True, False])).total
        tensor(1.)
        """
        if self.mask is None:
            return self.value.sum()
        return torch.where(self.mask, self.value, 0.0).sum()

    @property
    def mean(self) -> Tensor:
        """Mean over the positions that count; zero if there are none."""
        if self.mask is None:
            return self.value.mean()
        return self.total / self.mask.sum().clamp(min=1)

    @property
    def loss(self) -> Tensor:
        """What is minimised: :attr:`mean`, or the sum divided by :attr:`positions`."""
        return self.mean if self.positions is None else self.total / self.positions


def check_weights(terms: Iterable[str], weights: Mapping[str, float]) -> None:
    """Raise :class:`ConfigError` unless every term has a weight and every weight a term.

    >>> check_weights(["reward"], {"rewrd": 1.0})
    Traceback (most recent call last):
    wmkit.errors.ConfigError: weights do not match the terms: 'rewrd' has a weight but no term, 'reward' a
    term but \
no weight; name exactly reward
    """
    extra, missing = sorted(set(weights) - set(terms)), sorted(set(terms) - set(weights))
    if extra or missing:
        found = [f"{name!r} has a weight but no term" for name in extra]
        found += [f"{name!r} {'has ' if not found else ''}a term but no weight" for name in missing]
        raise ConfigError(
            f"weights do not match the terms: {', '.join(found)}; name exactly {', '.join(terms) or 'none'}"
        )
