"""Gaussian blur of one axis, as OpenCV has it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def gaussian_blur_matrix(size: int, kernel: int) -> Tensor:
    """A 1-D Gaussian blur as a matrix, borders reflected without repeating the edge (101).

    The standard deviation follows the kernel as in OpenCV: ``0.3 ((k - 1) / 2 - 1) + 0.8``.

    Args:
        size: length of the axis.
        kernel: odd number of taps.

    Returns:
        ``[size, size]`` float64; row i holds the weights of output i. Cached: do not write into it.

    >>> gaussian_blur_matrix(9, 3).sum(1).allclose(torch.ones(9, dtype=torch.float64))
    True
    """
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    offset = torch.arange(kernel) - kernel // 2  # [K]
    taps = torch.exp(-0.5 * (offset.double() / sigma) ** 2)
    taps = taps / taps.sum()
    source = torch.arange(size)[:, None] + offset  # [size, K]
    period = max(2 * (size - 1), 1)
    source = source.remainder(period)
    source = torch.where(source >= size, period - source, source)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, source, taps.expand(size, kernel))
