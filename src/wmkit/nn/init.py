"""Weight initialisation of the DreamerV3 codes, shared by every part that descends from them.

2023: hidden layers draw from a truncated normal whose variance is one over the mean of fan-in
and fan-out; output layers from a uniform of the same kind. Since 2024: both draw from a
truncated normal whose variance is one over fan-in. ``"glorot"``, Keras's default and so that of
DreamerV1 and V2, is the uniform for both (Glorot and Bengio 2010). An ``outscale`` of zero starts a
head at exactly zero.

TWM's code (jrobine/twm) has two others, both with zero biases: ``"kaiming"``, uniform over fan-in, and
``"orthogonal"``; a gain of the root of two for hidden layers, of one for output layers. ``"default"`` leaves
layers as PyTorch makes them, biases too. ``"small"`` (TD-MPC2, IRIS) is a normal of standard deviation 0.02
for all layers, and zero biases.
"""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
from torch import nn

Init = Literal["mean_fan", "fan_in", "glorot", "kaiming", "orthogonal", "default", "small"]
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)

SMALL = 0.02
# Standard deviation of a unit normal truncated at two: dividing by it restores unit variance.
_TRUNCATED_STD = 0.87962566103423978


def truncated_normal_(weight: torch.Tensor, std: float) -> torch.Tensor:
    """Fill with a normal of standard deviation ``std``, cut at two of the wider normal's deviations."""
    wide = std / _TRUNCATED_STD
    return nn.init.trunc_normal_(weight, 0.0, wide, -2 * wide, 2 * wide) if std else nn.init.zeros_(weight)


def init_hidden(layer: Layer, init: Init = "mean_fan") -> Layer:
    """Initialise a hidden linear or convolutional layer in place and return it.

    >>> _ = torch.manual_seed(0)
    >>> round(init_hidden(nn.Linear(400, 400)).weight.std().item(), 3)
    0.05
    """
    if init == "default":
        return layer
    if init == "glorot":
        return init_output(layer, init=init)
    if init == "small":
        nn.init.normal_(layer.weight, std=SMALL)
    elif init in ("kaiming", "orthogonal"):
        _with_gain(layer, init, math.sqrt(2.0))
    else:
        truncated_normal_(layer.weight, math.sqrt(1.0 / _fan(layer, init)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def init_output(layer: Layer, outscale: float = 1.0, init: Init = "mean_fan") -> Layer:
    """Initialise an output layer in place and return it.

    Args:
        layer: linear or convolutional.
        outscale: factor on the variance of the weights (``"mean_fan"``, ``"glorot"``) or on the weights
            (all others), as the codes have it; zero gives zero weights.
        init: which of them.

    >>> init_output(nn.Linear(8, 2), outscale=0.0).weight.abs().max().item()
    0.0
    """
    if init == "default":
        return layer
    if init == "fan_in":
        truncated_normal_(layer.weight, outscale * math.sqrt(1.0 / _fan(layer, init)))
    elif init in ("kaiming", "orthogonal"):
        _with_gain(layer, init, outscale)
    elif init == "small":
        nn.init.normal_(layer.weight, std=outscale * SMALL)
    else:
        limit = math.sqrt(3.0 * outscale / _fan(layer, init))
        nn.init.uniform_(layer.weight, -limit, limit)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _with_gain(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, init: Init, gain: float) -> None:
    if init == "orthogonal":
        nn.init.orthogonal_(layer.weight, gain)
    else:
        limit = gain * math.sqrt(3.0 / _fan(layer, "fan_in"))
        nn.init.uniform_(layer.weight, -limit, limit)


def _fan(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, init: Init) -> float:
    receptive = math.prod(layer.weight.shape[2:])
    first, second = layer.weight.shape[:2]
    fan_out, fan_in = (second, first) if isinstance(layer, nn.ConvTranspose2d) else (first, second)
    return receptive * (fan_in if init == "fan_in" else (fan_in + fan_out) / 2)
