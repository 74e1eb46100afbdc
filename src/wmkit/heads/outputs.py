"""From the numbers of a head's last layer to a prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from wmkit import fast
from wmkit.arguments import check_range
from wmkit.errors import ConfigError
from wmkit.functional import symexp_bins, symmetric_bins
from wmkit.nn import Bernoulli, OneOf, SymexpTwoHot, SymlogTwoHot, UnitNormal

Distribution = Literal["bernoulli", "normal", "signs", "symlog_two_hot", "symexp_two_hot", "two_logits"]


class Prediction(Protocol):
    """The output of a head."""

    @property
    def mean(self) -> Tensor:
        """``[*B, 1]``."""

    @property
    def mode(self) -> Tensor:
        """``[*B, 1]``."""

    def loss(self, target: Tensor, /) -> Tensor:
        """Loss to ``target`` ``[*B, 1]``; ``[*B]``."""


class TwoHotBins(nn.Module):
    """A scalar as a distribution over bins equidistant in symlog space (DreamerV3, arXiv:2301.04104).

    Args:
        code: where interpolation between bins and the mean over them are linear: ``"symlog"`` in
            symlog units (2023), ``"symexp"`` in the quantity's own (since 2024).
        bins: how many, odd.
        limit: outermost bin, symlog units.

    Attributes:
        width: numbers it takes, one for each bin.
        outscale: scale of the layer that makes them, unless a head is given another: zero, so that every
            prediction starts at zero.

    Raises:
        ConfigError: an unknown code, an even number of bins, or fewer than three.

    >>> import torch
    >>> TwoHotBins(code="symexp")(torch.zeros(1, 255)).mean
    tensor([[0.]])
    """

    outscale = 0.0

    def __init__(
        self, *, code: Literal["symlog", "symexp"] = "symlog", bins: int = 255, limit: float = 20.0
    ) -> None:
        super().__init__()
        if code not in ("symlog", "symexp"):
            raise ConfigError(f"code is {code!r}: wanted symlog or symexp; correct code")
        check_range("bins", bins, 3)
        if bins % 2 == 0:
            raise ConfigError(f"bins is {bins}: wanted an odd number, so that one bin is zero; correct bins")
        self.width = bins
        self.prediction = SymlogTwoHot if code == "symlog" else SymexpTwoHot
        self.bins: Tensor
        make = symmetric_bins if code == "symlog" else symexp_bins
        self.register_buffer("bins", make(limit, bins), persistent=False)

    def forward(self, logits: Tensor | fast.LastLayer) -> SymlogTwoHot | SymexpTwoHot:
        """Predict from ``[*B, bins]``."""
        return self.prediction(logits, self.bins)


class Numbers(nn.Module):
    """One of a few numbers (:class:`~wmkit.nn.OneOf`).

    Args:
        values: which; their signs in IRIS (arXiv:2209.00588).

    Attributes:
        width: numbers it takes, one for each of them.

    >>> import torch
    >>> Numbers([-1.0, 0.0, 1.0])(torch.zeros(1, 3)).mean
    tensor([[0.]])
    """

    def __init__(self, values: Sequence[float] = (-1.0, 0.0, 1.0)) -> None:
        super().__init__()
        self.width = len(values)
        self.values: Tensor
        self.register_buffer("values", torch.tensor([float(value) for value in values]), persistent=False)

    def forward(self, logits: Tensor) -> OneOf:
        """Predict from ``[*B, K]``."""
        return OneOf(logits, self.values)


class TwoLogits(nn.Module):
    """A flag from a logit for each of its values (IRIS): that of their difference.

    >>> import torch
    >>> TwoLogits()(torch.tensor([[1.0, 1.0]])).mean
    tensor([[0.5000]])
    """

    width = 2

    def forward(self, logits: Tensor) -> Bernoulli:
        """Predict from ``[*B, 2]``, unset before set."""
        return Bernoulli(logits[..., 1:] - logits[..., :1])


_NAMED: dict[str, Callable[[], Any]] = {
    "bernoulli": lambda: Bernoulli,
    "normal": lambda: partial(UnitNormal, event_dims=1),
    "signs": Numbers,
    "symlog_two_hot": partial(TwoHotBins, code="symlog"),
    "symexp_two_hot": partial(TwoHotBins, code="symexp"),
    "two_logits": TwoLogits,
}


def named_distribution(name: str) -> Callable[[Tensor], Prediction]:
    """A maker of predictions from numbers ``[*B, width]``; ``width`` is one unless it has another.

    Raises:
        ConfigError: no such name.

    >>> named_distribution("symlog_two_hot").width
    255
    """
    if name not in _NAMED:
        raise ConfigError(
            f"distribution is {name!r}: wanted one of {', '.join(_NAMED)}, or what makes a prediction of "
            "numbers; correct distribution"
        )
    return _NAMED[name]()
