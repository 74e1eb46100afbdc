"""Heads that predict a scalar from features: rewards, returns inside a jump, durations, values."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from wmkit.functional import symmetric_bins
from wmkit.nn import MLP, Feature, FeaturePair, SymlogTwoHot, init_output


class TwoHotHead(nn.Module):
    """Scalar as a distribution over bins equidistant in symlog space (DreamerV3 of 2023).

    Args:
        in_dim: width of the input.
        target: key of the label in a batch.
        units: width of the trunk.
        layers: depth of the trunk.
        bins: how many bins, odd.
        limit: outermost bin, symlog units.
        outscale: scale of the output layer; zero starts every prediction at zero.

    Attributes:
        reads: ``"feature"`` for one state, ``"pair"`` for the states before and after a transition.

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
    ) -> None:
        super().__init__()
        self.target = target
        self.trunk = MLP(in_dim, units, layers)
        self.out = init_output(nn.Linear(units if layers else in_dim, bins), outscale)
        self.bins: Tensor
        self.register_buffer("bins", symmetric_bins(limit, bins), persistent=False)

    def forward(self, features: Tensor | Feature | FeaturePair) -> SymlogTwoHot:
        """Predict from ``[*B, in_dim]``."""
        return SymlogTwoHot(self.out(self.trunk(features)), self.bins)

    def label(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The target ``[*B, 1]`` in a batch."""
        return batch[self.target]


class RewardHead(TwoHotHead):
    """Predicts a reward key (:class:`TwoHotHead`)."""


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
