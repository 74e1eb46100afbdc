"""Heads that predict a flag from features: going on, and jumping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.errors import ConfigError
from wmkit.nn import MLP, STYLE_2023, Bernoulli, Feature, LayerStyle, Linear, init_output

LABELS = ("continue", "end", "discount")


class FlagHead(nn.Module):
    """A Bernoulli over one flag of the batch.

    Args:
        in_dim: width of the input.
        target: key of the label in a batch.
        units: width of the trunk.
        layers: depth of the trunk.
        outscale: scale of the output layer.
        style: norm, activation, bias and initialisation.

    >>> import torch
    >>> FlagHead(16, target="jump", units=8, layers=1, outscale=0.0)(torch.zeros(1, 16)).mean.item()
    0.5
    """

    reads = "feature"

    def __init__(
        self,
        in_dim: int,
        *,
        target: str,
        units: int,
        layers: int,
        outscale: float = 1.0,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        self.target = target
        self.trunk = MLP(in_dim, units, layers, style)
        self.out = init_output(Linear(units if layers else in_dim, 1), outscale, style.init)

    def forward(self, features: Tensor | Feature) -> Bernoulli:
        """Predict from ``[*B, in_dim]``."""
        return Bernoulli(self.out(self.trunk(features)))

    def label(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The target ``[*B, 1]`` in a batch."""
        return batch[self.target]


class JumpFlagHead(FlagHead):
    """P(jump | s): is a long-term transition worth imagining from here (LS-Imagine)."""


class ContinueHead(FlagHead):
    """Whether the episode goes on.

    Args:
        in_dim: width of the input.
        label: what the Bernoulli stands for: ``"continue"`` (DreamerV3), ``"end"`` (the
            released LS-Imagine), or ``"discount"``, a continue flag whose target is
            ``discount`` instead of one (DreamerV3 since 2024, 1 - 1/333).
        discount: the soft target of ``"discount"``.
        target: key of the termination flag in a batch.
        units: width of the trunk.
        layers: depth of the trunk.
        outscale: scale of the output layer.
        style: norm, activation, bias and initialisation.

    Raises:
        ConfigError: an unknown label, or a discount outside [0, 1].

    >>> import torch
    >>> head = ContinueHead(16, label="end", units=8, layers=1)
    >>> head.continuation(Bernoulli(torch.full((1, 1), -100.0))).item()
    1.0
    """

    def __init__(
        self,
        in_dim: int,
        *,
        label: Literal["continue", "end", "discount"] = "continue",
        discount: float = 1.0,
        target: str = "terminated",
        units: int,
        layers: int,
        outscale: float = 1.0,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__(in_dim, target=target, units=units, layers=layers, outscale=outscale, style=style)
        check_range("continuation.discount", discount, 0, 1)
        if label not in LABELS:
            raise ConfigError(
                f"continue label {label!r} is unknown: wanted one of {', '.join(LABELS)}; "
                "set heads.continuation.label to one of them"
            )
        self.kind, self.discount = label, discount

    def label(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The target ``[*B, 1]`` in a batch."""
        terminated = batch[self.target].float()
        if self.kind == "end":
            return terminated
        return (1 - terminated) * (self.discount if self.kind == "discount" else 1.0)

    def continuation(self, prediction: Bernoulli) -> Tensor:
        """Probability of going on ``[*B, 1]`` that a prediction of this head means."""
        return 1 - prediction.mean if self.kind == "end" else prediction.mean
