"""Distributions: what heads and actors return, and stochastic states.

A prediction knows its loss, its mean, its mode and, where that makes sense, how to sample. Plain tensors
inside, no ``torch.distributions``: nothing validates, nothing synchronises. Every ``loss`` is per sample, in
nats or squared units, with the event dimension removed.
"""

from wmkit.nn.distributions.codebook import CodebookLatent
from wmkit.nn.distributions.discrete import (
    Bernoulli,
    Categorical,
    OneHotCategorical,
    OneOf,
    SymexpTwoHot,
    SymlogTwoHot,
    total_loss,
)
from wmkit.nn.distributions.latents import (
    CategoricalLatent,
    DeterministicLatent,
    GaussianLatent,
    SimNormLatent,
)
from wmkit.nn.distributions.normal import (
    AbsoluteError,
    BoundedNormal,
    SquaredError,
    SquashedNormal,
    SymlogSquaredError,
    TanhNormal,
    TruncatedNormal,
    UnitNormal,
)

__all__ = [
    "AbsoluteError",
    "Bernoulli",
    "BoundedNormal",
    "Categorical",
    "CategoricalLatent",
    "CodebookLatent",
    "DeterministicLatent",
    "GaussianLatent",
    "OneHotCategorical",
    "OneOf",
    "SimNormLatent",
    "SquaredError",
    "SquashedNormal",
    "SymexpTwoHot",
    "SymlogSquaredError",
    "SymlogTwoHot",
    "TanhNormal",
    "TruncatedNormal",
    "UnitNormal",
    "total_loss",
]
