"""The first layers of a policy and of heads that read the same feature, as one product.

A wide product is quicker than several narrow ones, and quickest while the feature it reads has
just been made: a roll-out takes it step by step. When policy and heads are applied to all steps at once
afterwards, they find their share in the feature (:attr:`Feature.products <wmkit.nn.Feature>`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wmkit.functional import linear
from wmkit.nn.dense import MLP
from wmkit.nn.features import Feature, Products, one_hot_linear, rows_are_free

_NARROW = 128  # columns; a wider layer is as quick alone, and its products would take memory


class FirstLayers:
    """First weights side by side.

    Args:
        weights: each ``[D_i, F]``.
        state: columns that read the state; the others read the belief.

    >>> from wmkit.heads import Critic, DiscreteActor
    >>> actor = DiscreteActor(6, 3, units=4, layers=1)
    >>> critic = Critic(6, units=8, layers=1)
    >>> feature = Feature(torch.eye(2), torch.ones(2, 4), torch.tensor([[0], [1]]))
    >>> layers = FirstLayers.of(feature, actor, [critic])
    >>> multiplied = layers.attach(feature, torch.empty(2, layers.width))
    >>> torch.allclose(critic(multiplied).logits, critic(feature).logits)
    True
    """

    def __init__(self, weights: Sequence[Tensor], state: int) -> None:
        self.weights = [(weight, weight._version) for weight in weights]
        # Matrices of their own: a part of a wider one is copied at each product.
        self._of_state = torch.cat([weight.detach()[:, :state] for weight in weights])
        self._of_belief = torch.cat([weight.detach()[:, state:] for weight in weights])
        self.width = len(self._of_state)

    @classmethod
    def of(cls, feature: Feature, policy: Any, heads: Iterable[Any]) -> FirstLayers | None:
        """Of a policy and narrow heads with a ``trunk`` (:class:`~wmkit.nn.MLP`) over such features.

        Nothing where it does not help: it does on a CPU, for known classes, in the precision of the weights.
        """
        belief = feature.belief
        if feature.classes is None or not rows_are_free(belief) or torch.is_autocast_enabled("cpu"):
            return None
        width = feature.state.shape[-1] + belief.shape[-1]
        weights: dict[int, Tensor] = {}
        for reader in (policy, *heads):
            trunk = getattr(reader, "trunk", None)
            if isinstance(trunk, MLP) and len(trunk):
                first: Any = trunk[0]
                weight: Tensor = first.linear.weight
                fits = weight.shape[1] == width and weight.dtype == belief.dtype
                if fits and (reader is policy or len(weight) <= _NARROW):
                    weights[id(weight)] = weight
        return cls(list(weights.values()), feature.state.shape[-1]) if weights else None

    @torch.no_grad()
    def attach(self, feature: Feature, out: Tensor) -> Feature:
        """A feature ``[N, F]`` of known classes with the products, which are written to ``out [N, D]``."""
        assert feature.classes is not None
        from_state = one_hot_linear(feature.classes, self._of_state)
        torch.add(linear(feature.belief, self._of_belief), from_state, out=out)
        return replace(feature, products=Products(self.weights, out))
