"""Reward and discount predicted from the belief alone, before the next state is seen.

TWM (arXiv:2303.07109) and STORM (arXiv:2310.09615).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.errors import ConfigError
from wmkit.nn import STYLE_2023, Bernoulli, LayerStyle, Perceptron, UnitNormal

READOUTS = ("mean", "mode")
_TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "tanh": torch.tanh,
    "sign": torch.sign,
}


class DepartureNormalHead(nn.Module):
    """A scalar as the mean of a normal of unit variance: what an action will bring (TWM's rewards).

    Args:
        in_dim: width of the belief.
        target: key of the label in a batch.
        units: width of the hidden layers.
        layers: how many.
        transform: what the label is: the key's value as it is (``"none"``), its ``"tanh"`` or its
            ``"sign"``; predictions stay in these units.
        dropout: after every hidden layer.
        activate_input: see :class:`~wmkit.nn.Perceptron`.
        style: norm, activation, bias and initialisation.

    Raises:
        ConfigError: an unknown transform.

    >>> head = DepartureNormalHead(4, target="reward", units=8, layers=1, transform="tanh")
    >>> head.label({"reward": torch.tensor([[100.0]])})
    tensor([[1.]])
    """

    reads = "belief"

    def __init__(
        self,
        in_dim: int,
        *,
        target: str,
        units: int,
        layers: int,
        transform: Literal["none", "tanh", "sign"] = "none",
        dropout: float = 0.0,
        activate_input: bool = False,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        if transform not in _TRANSFORMS:
            raise ConfigError(
                f"head for {target!r} has transform {transform!r}: wanted one of {', '.join(_TRANSFORMS)}; "
                "correct its transform"
            )
        self.target, self.transform = target, transform
        options: dict[str, Any] = {"dropout": dropout, "activate_input": activate_input, "style": style}
        self.trunk = Perceptron(in_dim, 1, units=units, layers=layers, **options)

    def forward(self, belief: Tensor) -> UnitNormal:
        """Predict from ``[*B, in_dim]``."""
        return UnitNormal(self.trunk(belief), 1)

    def label(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The target ``[*B, 1]`` in a batch."""
        return _TRANSFORMS[self.transform](batch[self.target])


class DepartureDiscountHead(nn.Module):
    """A Bernoulli whose soft label is the discount of the transition: ``discount * (1 - terminated)``.

    With a ``discount`` below one its :meth:`continuation` discounts and nothing else has to.

    Args:
        in_dim: width of the belief.
        discount: the label where the episode goes on.
        target: key of the termination flag in a batch.
        units: width of the hidden layers.
        layers: how many.
        initial: the output layer's bias: the logit of ``discount`` (``"discount"``), ``discount`` itself,
            which as a logit means a probability of 0.73 and not of 0.99 (``"value"``, the released
            TWM), or whatever ``style`` says (``"style"``).
        readout: what :meth:`continuation` is: the probability (``"mean"``), or ``discount`` where going on
            is the likelier and zero elsewhere (``"mode"``, STORM).
        label_discount: whether the label is ``discount`` (TWM) or one (STORM, which discounts the readout).
        dropout: after every hidden layer.
        activate_input: see :class:`~wmkit.nn.Perceptron`.
        style: norm, activation, bias and initialisation.

    Raises:
        ConfigError: an unknown ``initial`` or ``readout``.

    >>> head = DepartureDiscountHead(4, discount=0.99, units=8, layers=0)
    >>> head.label({"terminated": torch.tensor([[True], [False]])})
    tensor([[0.0000],
            [0.9900]])
    >>> head(torch.zeros(1, 4)).mean.item()
    0.99...
    """

    reads = "belief"

    def __init__(
        self,
        in_dim: int,
        *,
        discount: float,
        target: str = "terminated",
        units: int,
        layers: int,
        initial: Literal["discount", "value", "style"] = "discount",
        readout: Literal["mean", "mode"] = "mean",
        label_discount: bool = True,
        dropout: float = 0.0,
        activate_input: bool = False,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        check_range("continuation.discount", discount, 0, 1, open_end=True)
        logit = math.log(discount / (1 - discount))
        biases = {"discount": logit, "value": discount, "style": None}
        if initial not in biases or readout not in READOUTS:
            raise ConfigError(
                f"discount head has initial {initial!r} and readout {readout!r}: wanted one of "
                f"{', '.join(biases)} and one of {', '.join(READOUTS)}; correct heads.continuation"
            )
        self.target, self.discount, self.readout = target, discount, readout
        self.label_discount = label_discount
        options: dict[str, Any] = {"dropout": dropout, "activate_input": activate_input, "style": style}
        self.trunk = Perceptron(in_dim, 1, units=units, layers=layers, bias=biases[initial], **options)

    def forward(self, belief: Tensor) -> Bernoulli:
        """Predict from ``[*B, in_dim]``."""
        return Bernoulli(self.trunk(belief))

    def label(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The target ``[*B, 1]`` in a batch."""
        going_on = 1 - batch[self.target].float()
        return going_on * self.discount if self.label_discount else going_on

    def continuation(self, prediction: Bernoulli) -> Tensor:
        """Discount ``[*B, 1]`` of the transition that a prediction of this head means."""
        going_on = prediction.mean if self.readout == "mean" else prediction.mode.float()
        return going_on if self.label_discount else going_on * self.discount
