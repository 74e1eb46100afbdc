"""Pure maths on affordance maps: weights, moments, integral images, blurs (LS-Imagine, arXiv:2410.03618).

Maps are ``[..., H, W]`` in [0, 1]; image sizes are ``(H, W)`` in pixels. Everything here is
plain torch, and what depends on the image size alone is computed once and cached.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def gaussian_weight(image_size: tuple[int, int], sigma: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """Centred Gaussian weight ``g`` of the affordance reward (eq. 2).

    ``g(h, w) = exp(-(x^2 / (2 sx^2) + y^2 / (2 sy^2)))`` with ``x`` from ``-W/2`` to ``W/2`` and ``y``
    from ``-H/2`` to ``H/2``, both ends included.

    Args:
        image_size: ``(H, W)`` in pixels.
        sigma: ``(sx / W, sy / H)``, fractions of width and height; 0 switches that axis off.

    Returns:
        ``[H, W]`` float32, at most 1. The tensor is cached and shared: do not write into it.

    >>> g = gaussian_weight((160, 256))
    >>> round(float(g.mean()), 5), round(float(g.min()), 3)
    (0.72992, 0.368)
    """
    height, width = image_size
    x = _gaussian_axis(width, sigma[0])  # [W]
    y = _gaussian_axis(height, sigma[1])  # [H]
    return (y[:, None] * x).float()


def _gaussian_axis(size: int, sigma: float) -> Tensor:
    """One axis of the weight, ``[size]`` float64."""
    if sigma == 0:
        return torch.ones(size, dtype=torch.float64)
    position = torch.linspace(-size / 2, size / 2, size, dtype=torch.float64)
    return torch.exp(-0.5 * (position / (sigma * size)) ** 2)


def kurtosis(values: Tensor, *, excess: bool = True) -> Tensor:
    """Biased fourth standardised moment over the last two axes.

    Args:
        values: ``[*B, H, W]``.
        excess: subtract 3, so that a normal distribution has 0.

    Returns:
        ``[*B]``. A constant map has no fourth moment; it gets that of a normal distribution.

    >>> kurtosis(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), excess=False)
    tensor(1.)
    """
    mean = values.mean((-2, -1), keepdim=True)  # [*B, 1, 1]
    centred = values - mean
    variance = centred.square().mean((-2, -1), keepdim=True)
    resolution = (torch.finfo(values.dtype).eps * mean).square().clamp_min(torch.finfo(values.dtype).tiny)
    constant = variance <= resolution
    squares = centred.square().flatten(-2)  # [*B, H*W]
    ratio = torch.linalg.vecdot(squares, squares) / squares.shape[-1] / variance[..., 0, 0].square()  # [*B]
    fourth = torch.where(constant[..., 0, 0], torch.full_like(ratio, 3.0), ratio)
    return fourth - 3.0 if excess else fourth


def integral_image(values: Tensor) -> Tensor:
    """Sums over every rectangle that starts at the top left corner.

    Args:
        values: ``[*B, H, W]``, any dtype.

    Returns:
        ``[*B, H + 1, W + 1]`` float64; entry ``(y, x)`` is the sum of ``values[:y, :x]``.

    >>> integral_image(torch.ones(2, 3))[-1, -1]
    tensor(6., dtype=torch.float64)
    """
    sums = values.new_zeros(
        *values.shape[:-2], values.shape[-2] + 1, values.shape[-1] + 1, dtype=torch.float64
    )
    sums[..., 1:, 1:] = values.double().cumsum(-1).cumsum(-2)
    return sums


def box_sums(integral: Tensor, boxes: Tensor) -> Tensor:
    """Sums inside boxes, four look-ups each.

    Args:
        integral: ``[*B, H + 1, W + 1]`` of :func:`integral_image`.
        boxes: ``[..., 4]`` int64 ``(top, left, bottom, right)``, ends excluded.

    Returns:
        ``[*B, ...]`` in the dtype of ``integral``.

    >>> box_sums(integral_image(torch.ones(4, 4)), torch.tensor([[1, 1, 3, 4]]))
    tensor([6.], dtype=torch.float64)
    """
    top, left, bottom, right = boxes.unbind(-1)
    corner = integral[..., bottom, right] - integral[..., top, right]
    return corner - integral[..., bottom, left] + integral[..., top, left]


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
