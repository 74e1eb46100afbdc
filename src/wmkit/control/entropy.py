"""What keeps a policy open: what the mean entropy of its choices costs."""

from __future__ import annotations

import math

from torch import Tensor

from wmkit.objectives.latent_terms import entropy_hinge


class EntropyBonus:
    """The more open, the better (all Dreamers, STORM).

    >>> import torch
    >>> EntropyBonus()(torch.tensor(2.0), 4)
    tensor(-2.)
    """

    def __call__(self, entropy: Tensor, actions: int) -> Tensor:
        """Loss of a mean ``entropy``, nats, over ``actions`` choices."""
        return -entropy


class EntropyFloor:
    """A hinge: only a mean entropy below a share of the largest one costs something (TWM, arXiv:2303.07109).

    Args:
        threshold: Γ, a share of the largest entropy.

    >>> import torch
    >>> EntropyFloor(0.5)(torch.tensor(0.0), 4)
    tensor(0.5000)
    """

    def __init__(self, threshold: float = 0.1) -> None:
        self.threshold = threshold

    def __call__(self, entropy: Tensor, actions: int) -> Tensor:
        """Loss of a mean ``entropy``, nats, over ``actions`` choices."""
        return entropy_hinge(entropy / largest_entropy(actions), self.threshold)


def largest_entropy(actions: int) -> float:
    """Of a choice among so many, nats; one choice counts as two."""
    return math.log(max(actions, 2))
