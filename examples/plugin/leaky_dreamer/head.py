"""A head that says whether a step is rewarded at all."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wmkit.heads import Head
from wmkit.plug import Key


class RewardedHead(Head):
    """P(reward is not zero | s), a Bernoulli; trains the features where rewards are rare.

    >>> import torch
    >>> head = RewardedHead(16, units=8, layers=1)
    >>> head.label({"reward": torch.tensor([[0.0], [-2.0]])})
    tensor([[False],
            [ True]])
    """

    default_target = "reward"
    default_distribution = "bernoulli"

    @property
    def needs(self) -> dict[str, Key]:
        """Rewards are in every batch; no other key is needed."""
        return {}

    def label(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Bool ``[*B, 1]``."""
        return super().label(batch) != 0
