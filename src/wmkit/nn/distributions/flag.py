"""A prediction of a flag."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class Bernoulli:
    """A flag.

    Args:
        logits: ``[*B, 1]`` float; computed with in float32.

    >>> Bernoulli(torch.zeros(1, 1)).mean
    tensor([[0.5000]])
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.float()

    @property
    def mean(self) -> Tensor:
        """Probability that the flag is set, ``[*B, 1]``."""
        return torch.sigmoid(self.logits)

    @property
    def mode(self) -> Tensor:
        """The likelier value, ``[*B, 1]`` bool."""
        return self.logits > 0

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy to ``target`` ``[*B, 1]`` (bool or soft label); ``[*B]``."""
        return F.binary_cross_entropy_with_logits(
            self.logits, target.to(self.logits.dtype), reduction="none"
        ).squeeze(-1)
