"""How much affordance a map promises, and whether one place in it stands out.

LS-Imagine, arXiv:2410.03618, equations 2 and 3. Affordance maps are ``[*B, H, W]`` in [0, 1];
image sizes are ``(H, W)`` in pixels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from wmkit.errors import ConfigError, SpecError


def affordance_score(
    affordance: Tensor, *, sigma: tuple[float, float] = (0.5, 0.5), normalise: bool = True
) -> Tensor:
    """How much affordance lies ahead: the map's mean under a centred Gaussian weight ``g`` (eq. 2).

    Args:
        affordance: ``[*B, H, W]`` in [0, 1].
        sigma: standard deviations of ``g`` as fractions of width and height; 0 switches an axis off.
        normalise: divide by the mean of ``g`` (released code), so that a constant map scores its
            value; ``False`` is the paper's formula.

    Returns:
        ``[*B]`` in [0, 1].

    Raises:
        SpecError: the map has fewer than two axes.

    >>> affordance_score(torch.full((3, 160, 256), 0.25))
    tensor([0.2500, 0.2500, 0.2500])
    """
    affordance = as_map(affordance)
    g = gaussian_weight(tuple(affordance.shape[-2:]), sigma).to(affordance)
    # Not as a product: some processors add 40,960 numbers one after the other there, and lose four digits.
    score = (affordance * g).sum((-2, -1))
    return score / (g.sum() if normalise else g.numel())


def jump_probability(affordance: Tensor, *, kurtosis: Literal["excess", "raw"] = "excess") -> Tensor:
    """How much one far place stands out: ``sigmoid(K) * (max M - mean M)`` (eq. 3).

    Args:
        affordance: ``[*B, H, W]`` in [0, 1].
        kurtosis: ``"excess"`` takes 3 off the fourth standardised moment (released code);
            ``"raw"`` does not (the paper), which keeps the sigmoid above 0.73.

    Returns:
        ``[*B]`` in [0, 1]; 0 for a constant map.

    Raises:
        ConfigError: another kind of kurtosis.
        SpecError: the map has fewer than two axes.

    >>> jump_probability(torch.zeros(2, 160, 256))
    tensor([0., 0.])
    """
    if kurtosis not in ("excess", "raw"):
        raise ConfigError(
            f"kurtosis of the jump probability is unknown: found {kurtosis!r}, wanted 'excess' (released "
            "code) or 'raw' (paper); choose one of the two"
        )
    affordance = as_map(affordance)
    stands_out = affordance.amax((-2, -1)) - affordance.mean((-2, -1))
    return torch.sigmoid(fourth_moment(affordance, excess=kurtosis == "excess")) * stands_out


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


def fourth_moment(values: Tensor, *, excess: bool = True) -> Tensor:
    """Biased fourth standardised moment over the last two axes.

    Args:
        values: ``[*B, H, W]``.
        excess: subtract 3, so that a normal distribution has 0.

    Returns:
        ``[*B]``. A constant map has no fourth moment; it gets that of a normal distribution.

    >>> fourth_moment(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), excess=False)
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


def as_map(affordance: Tensor) -> Tensor:
    """A map in floating point.

    Raises:
        SpecError: fewer than two axes.
    """
    if affordance.ndim < 2:
        raise SpecError(
            f"affordance map: found shape {list(affordance.shape)}, wanted [*B, H, W]; "
            "pass the map before any flattening"
        )
    return affordance if affordance.is_floating_point() else affordance.float()
