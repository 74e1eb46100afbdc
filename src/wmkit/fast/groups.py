"""Many rows through large layers, few at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wmkit.fast.switch import enabled

CACHED = 2**18  # numbers of one layer's output that a processor's cache still holds, 1 MB


def in_groups(layers: Callable[[Tensor], Tensor], x: Tensor, numbers: int) -> Tensor:
    """``layers(x)`` of layers that treat each row by itself, with or without gradient.

    On a CPU a grid of 64 x 64 x 64 that has just been written is still in the cache when the next layer reads
    it, those of 16 images are not: convolutions are then three to four times as slow.

    Args:
        layers: ``[N, ...] -> [N, ...]``.
        x: ``[N, ...]``.
        numbers: of a row in the largest layer.

    >>> in_groups(lambda x: x.cumsum(1), torch.ones(3, 2), CACHED)
    tensor([[1., 2.],
            [1., 2.],
            [1., 2.]])
    """
    rows = max(CACHED // numbers, 1)
    if len(x) <= rows or not enabled(x, autocast=True):
        return layers(x)
    return torch.cat([layers(part) for part in x.split(rows)])
