"""Linear maps in blocks: each block of the output reads only its own block of the input.

DreamerV3 since 2024 (danijar/dreamerv3 e3f0224): a belief of U numbers in g blocks costs U²/g
weights instead of U².
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wmkit.errors import ConfigError
from wmkit.fast import block_product
from wmkit.nn.init import truncated_normal_


def side_by_side(x: Tensor) -> Tensor:
    """``[g, N, O] -> [N, g*O]``.

    >>> side_by_side(torch.tensor([[[1.0]], [[2.0]]]))
    tensor([[1., 2.]])
    """
    return x.transpose(0, 1).flatten(1)


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
        product = block_product(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return side_by_side(product).view(*x.shape[:-1], -1)
