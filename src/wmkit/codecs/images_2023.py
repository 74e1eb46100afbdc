"""Image halves of a codec as DreamerV3 of 2023 has them (arXiv:2301.04104v1).

Convolutions of kernel 4 and stride 2 down to ``4 x 4``, each of twice the width, with a norm over
channels; images enter as ``x / 255 - 0.5``. Back by a linear layer to ``4 x 4`` and transposed
convolutions of halving width; plus 0.5, no sigmoid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from wmkit.codecs.images import channels, check_patch, image_side
from wmkit.nn import (
    STYLE_2023,
    Activation,
    DoublingConv,
    HalvingConv,
    LayerStyle,
    Linear,
    channel_norm,
    init_hidden,
    init_output,
    patches,
)

IMAGE_SIZE = 64
GRID = 4  # side of the coarsest grid
SHAPE = f"[channels, {IMAGE_SIZE}, {IMAGE_SIZE}]"


def stage_widths(depth: int, patch: int) -> list[int]:
    """Widths of the stages between ``64 / patch`` and ``4 x 4``, finest first.

    Raises:
        ConfigError: ``patch`` is not 1, 2, 4 or 8.

    >>> stage_widths(8, 1), stage_widths(16, 2)
    ([8, 16, 32, 64], [16, 32, 64])
    """
    check_patch(patch)
    return [depth * 2**i for i in range((IMAGE_SIZE // patch // GRID).bit_length() - 1)]


class ImageEncoder(nn.Module):
    """Images ``[N, C, 64, 64]`` to ``[N, 8 * depth / patch * 16]`` (DreamerV3 of 2023).

    Args:
        shapes: ``[C, 64, 64]`` of each image key; C in what follows is their sum.
        depth: width of the first convolution; each later stage doubles it.
        patch: read blocks of ``patch x patch`` pixels as one position of that many more channels,
            which saves the finest and dearest stages; 1 as published.
        style: norm, activation, bias and initialisation.

    Raises:
        SpecError: an image of another size.
        ConfigError: see :func:`stage_widths`.

    >>> import torch
    >>> ImageEncoder({"pixels": (4, 64, 64)}, depth=8)(torch.zeros(2, 4, 64, 64)).shape
    torch.Size([2, 1024])
    >>> ImageEncoder({"pixels": (4, 64, 64)}, depth=16, patch=2)(torch.zeros(2, 4, 64, 64)).shape
    torch.Size([2, 1024])
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        *,
        depth: int,
        patch: int = 1,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        image_side(shapes, lambda side: side == IMAGE_SIZE, SHAPE)
        self.patch = patch
        widths = [channels(shapes) * patch**2, *stage_widths(depth, patch)]
        self.layers = nn.Sequential()
        for before, after in pairwise(widths):
            conv = init_hidden(HalvingConv(before, after, bias=style.bias), style.init)
            self.layers.extend([conv, channel_norm(after, style), Activation(style, overwrites=True)])
        self.out_dim = widths[-1] * GRID**2

    def forward(self, image: Tensor) -> Tensor:
        """``image`` float in [0, 1]."""
        return self.layers(patches(image, self.patch) - 0.5).flatten(1)


class ImageDecoder(nn.Module):
    """Features ``[N, F]`` to images ``[N, C, 64, 64]`` in [0, 1] units (DreamerV3 of 2023).

    Args:
        in_dim: feature width F.
        shapes: ``[C, 64, 64]`` of each image key, as in the encoder.
        depth: width of the last hidden stage, as in the encoder.
        patch: side of the blocks of pixels written as one position, as in the encoder.
        style: norm, activation, bias and initialisation.

    Raises:
        SpecError: an image of another size.
        ConfigError: see :func:`stage_widths`.

    >>> import torch
    >>> ImageDecoder(16, {"pixels": (4, 64, 64)}, depth=8)(torch.zeros(2, 16)).shape
    torch.Size([2, 4, 64, 64])
    """

    def __init__(
        self,
        in_dim: int,
        shapes: Mapping[str, Sequence[int]],
        *,
        depth: int,
        patch: int = 1,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        image_side(shapes, lambda side: side == IMAGE_SIZE, SHAPE)
        widths = stage_widths(depth, patch)[::-1]
        self.linear = init_output(Linear(in_dim, GRID**2 * widths[0]), init=style.init)
        self.layers = nn.Sequential()
        for before, after in pairwise(widths):
            conv = init_hidden(DoublingConv(before, after, bias=style.bias), style.init)
            self.layers.extend([conv, channel_norm(after, style), Activation(style, overwrites=True)])
        last = DoublingConv(widths[-1], channels(shapes) * patch**2, bias=True, offset=0.5, patch=patch)
        self.layers.append(init_output(last, init=style.init))

    def forward(self, features: Tensor) -> Tensor:
        """``[N, F] -> [N, C, 64, 64]``."""
        grid = self.linear(features).unflatten(-1, (GRID, GRID, -1))  # [N, 4, 4, widths[0]]
        return self.layers(grid.permute(0, 3, 1, 2))
