"""Loss terms: named, per position, weighted and averaged in one place."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wmkit.errors import ConfigError


class Term(NamedTuple):
    """One named loss before reduction.

    Attributes:
        value: one loss per position, any shape.
        mask: which positions count (broadcastable to ``value``); all of them if ``None``.
    """

    value: Tensor
    mask: Tensor | None = None

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


def check_weights(terms: Mapping[str, Any], weights: Mapping[str, float]) -> None:
    """Raise :class:`ConfigError` unless every term has a weight and every weight a term.

    >>> check_weights({"reward": Term(torch.zeros(1))}, {"rewrd": 1.0})
    Traceback (most recent call last):
    wmkit.errors.ConfigError: loss weights do not match the loss terms: found weights for rewrd and none for \
reward, wanted exactly reward; correct the weights on the system's page
    """
    extra, missing = sorted(set(weights) - set(terms)), sorted(set(terms) - set(weights))
    if extra or missing:
        raise ConfigError(
            "loss weights do not match the loss terms: found weights for "
            f"{', '.join(extra) or 'nothing else'} and none for {', '.join(missing) or 'nothing'}, wanted "
            f"exactly {', '.join(terms)}; correct the weights on the system's page"
        )


def reduce_terms(terms: Mapping[str, Term], weights: Mapping[str, float], count: Tensor | float) -> Tensor:
    """Weighted sum of all terms over all positions, divided by ``count`` positions.

    Args:
        terms: named losses.
        weights: one weight per name.
        count: how many positions share the mean (LS-Imagine: B·T short plus N long ones).

    Returns:
        Scalar.

    >>> reduce_terms({"a": Term(torch.ones(4))}, {"a": 2.0}, 4).item()
    2.0
    """
    return reduce(operator.add, (weights[name] * term.total for name, term in terms.items())) / count
