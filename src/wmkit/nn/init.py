"""Weight initialisation of the 2023 DreamerV3 code, shared by every part that descends from it.

Hidden layers draw from a truncated normal whose variance is one over the mean of fan-in
and fan-out; output layers from a uniform of the same kind times ``outscale``, so that an
``outscale`` of zero starts a head at exactly zero.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)

# Standard deviation of a unit normal truncated at two: dividing by it restores unit variance.
_TRUNCATED_STD = 0.87962566103423978


def _mean_fan(weight: torch.Tensor, transposed: bool) -> float:
    receptive = math.prod(weight.shape[2:])
    first, second = weight.shape[:2]
    fan_out, fan_in = (second, first) if transposed else (first, second)
    return receptive * (fan_in + fan_out) / 2


def init_hidden(layer: Layer) -> Layer:
    """Initialise a hidden linear or convolutional layer in place and return it.

    >>> _ = torch.manual_seed(0)
    >>> round(init_hidden(nn.Linear(400, 400)).weight.std().item(), 3)
    0.05
    """
    weight = layer.weight
    std = math.sqrt(1.0 / _mean_fan(weight, isinstance(layer, nn.ConvTranspose2d))) / _TRUNCATED_STD
    nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def init_output(layer: Layer, outscale: float = 1.0) -> Layer:
    """Initialise an output layer in place and return it.

    Args:
        layer: linear or convolutional.
        outscale: factor on the variance; zero gives zero weights.

    >>> init_output(nn.Linear(8, 2), outscale=0.0).weight.abs().max().item()
    0.0
    """
    limit = math.sqrt(3.0 * outscale / _mean_fan(layer.weight, isinstance(layer, nn.ConvTranspose2d)))
    nn.init.uniform_(layer.weight, -limit, limit)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
