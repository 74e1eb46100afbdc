"""Autocast: losses must not follow it, and a carried belief must."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Precision that products of ``x`` are lowered to where it lies; none outside of autocast.

    >>> autocast_dtype(torch.zeros(1)) is None
    True
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def widened(x: Tensor) -> Tensor:
    """``x`` in float32, or in its own precision if that is wider.

    >>> widened(torch.zeros(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rounded(x: Tensor) -> Tensor:
    """``x`` to what autocast computes in, if anything, and back to its own dtype; the same for gradients.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     rounded(torch.tensor(1.001))
    tensor(1.)
    """
    lower = autocast_dtype(x)
    return x if lower is None else x.to(lower).to(x.dtype)
