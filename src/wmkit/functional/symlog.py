"""Symlog squashing (Hafner et al. 2023, arXiv:2301.04104, eq. 9)."""

from __future__ import annotations

import torch
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """Compress magnitudes symmetrically: ``sign(x) * log(1 + |x|)``.

    Linear near zero and logarithmic far away, so that one network predicts rewards of
    0.1 and of 10,000. Inverse of :func:`symexp`.

    Args:
        x: any shape, in the quantity's own units.

    Returns:
        Same shape, in symlog units.

    >>> symlog(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.6931,  0.0000,  0.6931])
    """
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """Undo :func:`symlog`: ``sign(x) * (exp(|x|) - 1)``.

    Args:
        x: any shape, in symlog units.

    Returns:
        Same shape, in the quantity's own units.

    >>> symexp(symlog(torch.tensor([-3.0, 0.5])))
    tensor([-3.0000,  0.5000])
    """
    return torch.sign(x) * torch.expm1(torch.abs(x))
