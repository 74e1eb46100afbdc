"""Many rows through large layers, few at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wmkit.fast.switch import enabled

MOST = 2**22  # numbers of one layer's output, 16 MB


def in_groups(layers: Callable[[Tensor], Tensor], x: Tensor, numbers: int) -> Tensor:
    """``layers(x)`` of layers that treat each row by itself, with or without gradient.

    On a CPU a layer over the grids of 16 images of 64 x 64 x 64 is as quick as it gets, and a thousand images
    would take a gigabyte for each layer.

    Args:
        layers: ``[N, ...] -> [N, ...]``.
        x: ``[N, ...]``.
        numbers: of a row in the largest layer.

    >>> in_groups(lambda x: x.cumsum(1), torch.ones(3, 2), MOST)
    tensor([[1., 2.],
            [1., 2.],
            [1., 2.]])
    """
    rows = max(MOST // numbers, 1)
    if len(x) <= rows or not enabled(x, autocast=True):
        return layers(x)
    return torch.cat([layers(part) for part in x.split(rows)])
