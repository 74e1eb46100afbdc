"""What keeps a policy open: what the mean entropy of its choices adds to the actor's loss."""

from __future__ import annotations

import math

from torch import Tensor

from wmkit.objectives.latent_terms import entropy_hinge


class EntropyBonus:
    """The more open, the better (all Dreamers, STORM).

    Args:
        scale: factor η.

    >>> import torch
    >>> EntropyBonus(0.5)(torch.tensor(2.0), 4)
    tensor(-1.)
    """

    def __init__(self, scale: float = 3e-4) -> None:
        self.scale = scale

    def __call__(self, entropy: Tensor, actions: int) -> Tensor:
        """Loss of a mean ``entropy``, nats, over ``actions`` choices."""
        return -self.scale * entropy


class EntropyFloor:
    """A hinge: only a mean entropy below a share of the largest one costs something (TWM, arXiv:2303.07109).

    Args:
        scale: factor η.
        threshold: Γ, a share of the largest entropy.

    >>> import torch
    >>> EntropyFloor(1.0, 0.5)(torch.tensor(0.0), 4)
    tensor(0.5000)
    """

    def __init__(self, scale: float = 0.01, threshold: float = 0.1) -> None:
        self.scale, self.threshold = scale, threshold

    def __call__(self, entropy: Tensor, actions: int) -> Tensor:
        """Loss of a mean ``entropy``, nats, over ``actions`` choices; one choice counts as two."""
        return self.scale * entropy_hinge(entropy / math.log(max(actions, 2)), self.threshold)
