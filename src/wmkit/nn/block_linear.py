"""Linear maps in blocks: each block of the output reads only its own block of the input.

DreamerV3 since 2024 (danijar/dreamerv3 e3f0224): a belief of U numbers in g blocks costs U²/g
weights instead of U².
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wmkit.errors import ConfigError
from wmkit.nn.init import truncated_normal_


def block_product(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply block k of the input with matrix k.

    Args:
        x: ``[*B, g*I]``, blocks one after the other.
        weight: ``[g, I, O]``.

    Returns:
        ``[*B, g*O]``.

    >>> weight = torch.tensor([[[10.0]], [[100.0]]])  # two blocks, one number each
    >>> block_product(torch.tensor([[1.0, 2.0]]), weight)
    tensor([[ 10., 200.]])
    """
    blocks, rows, columns = weight.shape
    per_block = x.reshape(-1, blocks, rows).transpose(0, 1)  # [g, N, I]
    product = torch.bmm(per_block, weight)  # [g, N, O]
    return product.transpose(0, 1).reshape(*x.shape[:-1], blocks * columns)


class BlockLinear(nn.Module):
    """An affine map in blocks (DreamerV3, danijar/dreamerv3 e3f0224).

    The weights start as those of a dense layer of the same width would: the variance is one
    over the full ``in_dim``, not over the ``in_dim / blocks`` numbers that an output sees.

    Args:
        in_dim: input width.
        out_dim: output width.
        blocks: how many blocks g.

    Attributes:
        weight: ``[g, in_dim/g, out_dim/g]`` float.
        bias: ``[out_dim]`` float.

    Raises:
        ConfigError: ``blocks`` does not divide a width.

    >>> layer = BlockLinear(8, 12, 4)
    >>> layer.weight.shape, layer(torch.zeros(2, 8)).shape
    (torch.Size([4, 2, 3]), torch.Size([2, 12]))
    """

    def __init__(self, in_dim: int, out_dim: int, blocks: int) -> None:
        super().__init__()
        if blocks < 1 or in_dim % blocks or out_dim % blocks:
            raise ConfigError(
                f"block-linear layer {in_dim} -> {out_dim} cannot be cut into {blocks} equal blocks: "
                "wanted a divisor of both widths; change blocks or the widths"
            )
        self.weight = nn.Parameter(torch.empty(blocks, in_dim // blocks, out_dim // blocks))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        truncated_normal_(self.weight, math.sqrt(1.0 / in_dim))

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, in_dim] -> [*B, out_dim]``."""
        return block_product(x, self.weight) + self.bias
