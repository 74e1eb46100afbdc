"""Scalars as the mean of a normal of unit variance: rewards and values of the first two Dreamers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from wmkit.nn import MLP, STYLE_2023, Feature, LayerStyle, Linear, UnitNormal, init_output


class NormalHead(nn.Module):
    """A scalar predicted as it is (DreamerV1, arXiv:1912.01603; DreamerV2, arXiv:2010.02193).

    Args:
        in_dim: width of the features.
        target: key of the label in a batch.
        units: width of the trunk.
        layers: depth of the trunk.
        squash: what is done to the label first: a tanh for the rewards of DreamerV2 on Atari. What is
            predicted, and imagined, is then the squashed reward.
        outscale: scale of the output layer.
        style: norm, activation, bias and initialisation.

    >>> import torch
    >>> head = NormalHead(16, target="reward", units=8, layers=1, squash=torch.tanh, outscale=0.0)
    >>> head.label({"reward": torch.tensor([[100.0]])}), head(torch.zeros(1, 16)).mean
    (tensor([[1.]]), tensor([[0.]], grad_fn=<AddmmBackward0>))
    """

    reads = "feature"

    def __init__(
        self,
        in_dim: int,
        *,
        target: str,
        units: int,
        layers: int,
        squash: Callable[[Tensor], Tensor] | None = None,
        outscale: float = 1.0,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        self.target, self.squash = target, squash
        self.trunk = MLP(in_dim, units, layers, style)
        self.out = init_output(Linear(units if layers else in_dim, 1), outscale, style.init)

    def forward(self, features: Tensor | Feature) -> UnitNormal:
        """Predict from ``[*B, in_dim]``."""
        return UnitNormal(self.out(self.trunk(features)), 1)

    def label(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The target ``[*B, 1]`` in a batch."""
        label = batch[self.target]
        return label if self.squash is None else self.squash(label)
