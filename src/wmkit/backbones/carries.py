"""A carry of any shape as rows of numbers, so that it travels under one key of a TensorDict."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

Carry = Any
"""The carry of a sequence model from step to step: any pytree of tensors ``[B, ...]``."""


def carry_width(carry: Carry) -> int:
    """How many numbers a row of :func:`flatten_carry` has.

    >>> carry_width((torch.zeros(5, 2, 3), torch.zeros(5)))
    7
    """
    return sum(math.prod(leaf.shape[1:]) for leaf in tree_leaves(carry))


def flatten_carry(carry: Carry) -> Tensor:
    """Lay the leaves ``[B, ...]`` of a carry side by side.

    Returns:
        ``[B, N]`` float32; whole numbers are exact up to 2**24.

    >>> flatten_carry((torch.ones(2, 2), torch.tensor([3, 4])))
    tensor([[1., 1., 3.],
            [1., 1., 4.]])
    """
    return torch.cat([leaf.float().reshape(len(leaf), -1) for leaf in tree_leaves(carry)], -1)


def unflatten_carry(rows: Tensor, like: Carry) -> Carry:
    """Undo :func:`flatten_carry`.

    Args:
        rows: ``[B, N]``.
        like: a carry of the same model, of any batch.

    >>> unflatten_carry(torch.tensor([[1.0, 1.0, 3.0]]), (torch.ones(2, 2), torch.tensor([3, 4])))
    (tensor([[1., 1.]]), tensor([3]))
    """
    leaves, structure = tree_flatten(like)
    parts = rows.split([math.prod(leaf.shape[1:]) for leaf in leaves], -1)
    return tree_unflatten(
        [
            part.reshape(len(rows), *leaf.shape[1:]).to(leaf.dtype)
            for part, leaf in zip(parts, leaves, strict=True)
        ],
        structure,
    )
