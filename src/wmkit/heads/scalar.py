"""Heads that predict a scalar from features: rewards, returns inside a jump, durations, values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from wmkit.errors import ConfigError
from wmkit.functional import linear, symexp_bins, symmetric_bins
from wmkit.nn import (
    MLP,
    STYLE_2023,
    Feature,
    LastLayer,
    LayerStyle,
    Linear,
    SymexpTwoHot,
    SymlogTwoHot,
    init_output,
)

_BINS = {"symlog": symmetric_bins, "symexp": symexp_bins}
_PREDICTIONS: dict[str, type[SymlogTwoHot] | type[SymexpTwoHot]] = {
    "symlog": SymlogTwoHot,
    "symexp": SymexpTwoHot,
}


class TwoHotHead(nn.Module):
    """Scalar as a distribution over bins equidistant in symlog space (DreamerV3).

    Args:
        in_dim: width of the input.
        target: key of the label in a batch.
        units: width of the trunk.
        layers: depth of the trunk.
        bins: how many bins, odd.
        limit: outermost bin, symlog units.
        outscale: scale of the output layer; zero starts every prediction at zero.
        code: where interpolation between bins and the mean over them are linear: ``"symlog"`` in
            symlog units (2023), ``"symexp"`` in the quantity's own (since 2024).
        style: norm, activation, bias and initialisation.

    Attributes:
        reads: ``"feature"`` for one state, ``"pair"`` for the states before and after a transition.

    Raises:
        ConfigError: an unknown code, or an even number of bins.

    >>> import torch
    >>> head = TwoHotHead(16, target="reward", units=8, layers=1)
    >>> head(torch.zeros(2, 16)).mean.tolist()
    [[0.0], [0.0]]
    """

    reads = "feature"

    def __init__(
        self,
        in_dim: int,
        *,
        target: str,
        units: int,
        layers: int,
        bins: int = 255,
        limit: float = 20.0,
        outscale: float = 0.0,
        code: Literal["symlog", "symexp"] = "symlog",
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        if code not in _BINS or bins % 2 == 0:
            raise ConfigError(
                f"two-hot head for {target!r} has code {code!r} and {bins} bins: wanted code "
                f"{' or '.join(_BINS)} and an odd number of bins; correct the head"
            )
        self.target = target
        self.prediction = _PREDICTIONS[code]
        self.trunk = MLP(in_dim, units, layers, style)
        self.out = init_output(Linear(units if layers else in_dim, bins), outscale, style.init)
        self.bins: Tensor
        self.register_buffer("bins", _BINS[code](limit, bins), persistent=False)

    def forward(self, features: Tensor | Feature) -> SymlogTwoHot | SymexpTwoHot:
        """Predict from ``[*B, in_dim]``."""
        # One column more that says "never": a CPU's product of 256 columns takes half the time of 255.
        weight, bias = (
            F.pad(p, pad, value=x)
            for p, pad, x in ((self.out.weight, (0, 0, 0, 1), 0.0), (self.out.bias, (0, 1), -math.inf))
        )
        hidden = self.trunk(features)
        in_blocks = LastLayer.helps(hidden)
        layer = LastLayer(hidden, weight, bias) if in_blocks else linear(hidden, weight, bias)
        return self.prediction(layer, self.bins)

    def label(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The target ``[*B, 1]`` in a batch."""
        return batch[self.target]


class RewardHead(TwoHotHead):
    """Predicts a reward key (:class:`TwoHotHead`)."""


class DepartureTwoHotHead(TwoHotHead):
    """Predicts a reward from the belief alone, before the next state is seen (STORM)."""

    reads = "belief"


class JumpSpanHead(TwoHotHead):
    """Predicts how many environment steps a jump spans, Δ (LS-Imagine's interval predictor).

    Reads the features before and after the jump, concatenated.
    """

    reads = "pair"


class JumpReturnHead(TwoHotHead):
    """Predicts the mean reward inside a jump, the normalised G of LS-Imagine.

    Reads the features before and after the jump, concatenated.
    """

    reads = "pair"


class Critic(TwoHotHead):
    """State value v(s), in units of return."""
