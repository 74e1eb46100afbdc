"""The first layers of heads that read the same feature, as one product.

A wide product is quicker than several narrow ones, and quickest while the feature it reads has
just been made: a roll-out takes it step by step, and its heads find their share when they are applied
to all steps at once (:attr:`Feature.products <wmkit.nn.Feature>`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from wmkit.nn.features import Feature, Products, one_hot_linear, rows_are_free
from wmkit.nn.mlp import MLP


class FirstLayers:
    """First weights of heads, side by side; good until the weights change.

    Args:
        weights: each ``[D_i, F]``.

    >>> from wmkit.heads import Critic, DiscreteActor
    >>> heads = [Critic(6, target="return", units=8, layers=1), DiscreteActor(6, 3, units=4, layers=1)]
    >>> feature = Feature(torch.eye(2), torch.ones(2, 4), torch.tensor([[0], [1]]))
    >>> layers = FirstLayers.of(heads, feature)
    >>> known = layers.known(feature, torch.empty(2, layers.width))
    >>> torch.allclose(heads[0](known).logits, heads[0](feature).logits)
    True
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = weights
        self.joint = torch.cat(list(weights)).detach()  # [D, F]
        self.width = len(self.joint)

    @classmethod
    def of(cls, heads: Iterable[nn.Module], feature: Feature) -> FirstLayers | None:
        """Of the heads with a ``trunk`` (:class:`~wmkit.nn.MLP`) over such features, where it helps.

        That is on a CPU, for known classes, in the precision of the weights.
        """
        belief = feature.belief
        if feature.classes is None or not rows_are_free(belief) or torch.is_autocast_enabled("cpu"):
            return None
        trunks = [getattr(head, "trunk", None) for head in heads]
        first: list[Any] = [trunk[0] for trunk in trunks if isinstance(trunk, MLP) and len(trunk)]
        width = feature.state.shape[-1] + belief.shape[-1]
        weights = [layer.linear.weight for layer in first]
        weights = [x for x in weights if x.shape[1] == width and x.dtype == belief.dtype]
        return cls(weights) if weights else None

    @torch.no_grad()
    def known(self, feature: Feature, out: Tensor) -> Feature:
        """A feature ``[N, F]`` with the products, which are written to ``out [N, D]``."""
        assert feature.classes is not None
        width = feature.state.shape[-1]
        torch.mm(feature.belief, self.joint[:, width:].t(), out=out)
        out.add_(one_hot_linear(feature.classes, self.joint[:, :width]))
        return replace(feature, products=Products(self.weights, out))
