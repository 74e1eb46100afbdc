"""Vector observations of a codec: floats, squashed or not, and classes as one-hot.

DreamerV3 (arXiv:2301.04104; danijar/dreamerv3 e3f0224).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict.utils import NestedKey
from torch import Tensor

from wmkit.functional import symlog


def vector_width(key: NestedKey, shape: Sequence[int], discrete: Mapping[Any, int]) -> int:
    """How many numbers a vector key is for a network.

    Args:
        key: its name, or tuple of names.
        shape: of one observation.
        discrete: number of classes of every key that holds classes.

    >>> vector_width("speed", (), {}), vector_width("grid", (2, 3), {})
    (1, 6)
    >>> vector_width("inventory", (2,), {"inventory": 5})
    10
    """
    return math.prod(shape) * discrete.get(key, 1)


def flat_vector(
    x: Tensor,
    shape: Sequence[int],
    classes: int | None = None,
    squash: Callable[[Tensor], Tensor] | None = symlog,
) -> Tensor:
    """A vector observation as a network reads it.

    Args:
        x: ``[*B, *shape]``, float or, of ``classes``, integer. A float of -inf is one that is missing and
            becomes zero.
        shape: of one observation.
        classes: how many; a value outside, as -1 where there is none, becomes zeros.
        squash: what is done to floats; none takes them as they are.

    Returns:
        ``[*B, D]`` float.

    >>> flat_vector(torch.tensor([[0, 2]]), (2,), 3)
    tensor([[1., 0., 0., 0., 0., 1.]])
    >>> flat_vector(torch.tensor([[0.0, -1.0, -torch.inf]]), (3,))
    tensor([[ 0.0000, -0.6931,  0.0000]])
    """
    lead = x.ndim - len(shape)
    if classes is None:
        x = x.float()
        x = x if squash is None else squash(x)
        x = x.nan_to_num(math.nan, math.inf, 0.0)  # what is broken stays broken
        return x.unsqueeze(-1).flatten(lead)
    return (x.unsqueeze(-1) == torch.arange(classes, device=x.device)).float().flatten(lead)
