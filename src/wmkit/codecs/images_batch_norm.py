"""Image halves of a codec with batch norm: STORM's (arXiv:2310.09615, appendix).

Convolutions of kernel 4 and stride 2, ``64 -> 32 -> 16 -> 8 -> 4`` and back, each of twice the width and
followed by batch norm and activation. Images are in [0, 1] and not centred. Statistics are the batch's
where the model learns and running ones where it acts and imagines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from wmkit.codecs.images import channels, image_side
from wmkit.codecs.images_2023 import GRID, IMAGE_SIZE, SHAPE, stage_widths
from wmkit.nn import (
    STYLE_2023,
    Activation,
    DoublingConv,
    HalvingConv,
    LayerStyle,
    Linear,
    init_hidden,
    init_output,
    patches,
)


class BatchNormImageEncoder(nn.Module):
    """Images ``[N, C, 64, 64]`` to ``[N, 128 * depth]``.

    Args:
        shapes: ``[C, 64, 64]`` of each image key; C in what follows is their sum.
        depth: width of the first convolution, 32 in STORM; each later one doubles it.
        patch: only 1.
        style: activation and initialisation.

    Raises:
        SpecError: an image of another size.

    >>> import torch
    >>> BatchNormImageEncoder({"pixels": (3, 64, 64)}, depth=4)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 512])
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
        image_side(shapes, lambda side: side == IMAGE_SIZE and patch == 1, SHAPE)
        self.layers = nn.Sequential()
        for before, after in pairwise([channels(shapes), *stage_widths(depth, 1)]):
            conv = init_hidden(HalvingConv(before, after), style.init)
            self.layers.extend([conv, nn.BatchNorm2d(after), Activation(style, overwrites=True)])
        self.out_dim = 8 * depth * GRID**2

    def forward(self, image: Tensor) -> Tensor:
        """``image`` float in [0, 1]."""
        return self.layers(patches(image, 1)).flatten(1)


class BatchNormImageDecoder(nn.Module):
    """Features ``[N, F]`` to images ``[N, C, 64, 64]``.

    Args:
        in_dim: feature width F.
        shapes: ``[C, 64, 64]`` of each image key, as in the encoder.
        depth: width of the last hidden stage, as in the encoder.
        patch: only 1.
        style: activation and initialisation.

    Raises:
        SpecError: an image of another size.

    >>> import torch
    >>> BatchNormImageDecoder(16, {"pixels": (3, 64, 64)}, depth=4)(torch.zeros(2, 16)).shape
    torch.Size([2, 3, 64, 64])
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
        image_side(shapes, lambda side: side == IMAGE_SIZE and patch == 1, SHAPE)
        widths = stage_widths(depth, 1)[::-1]
        self.linear: nn.Linear = init_hidden(Linear(in_dim, widths[0] * GRID**2, bias=False), style.init)
        self.layers = nn.Sequential(nn.BatchNorm2d(widths[0]), Activation(style, overwrites=True))
        for before, after in pairwise(widths):
            conv = init_hidden(DoublingConv(before, after), style.init)
            self.layers.extend([conv, nn.BatchNorm2d(after), Activation(style, overwrites=True)])
        last = DoublingConv(widths[-1], channels(shapes), bias=True, patch=1)
        self.layers.append(init_output(last, init=style.init))

    def forward(self, features: Tensor) -> Tensor:
        """``[N, F] -> [N, C, 64, 64]``."""
        return self.layers(patches(self.linear(features).unflatten(-1, (-1, GRID, GRID)), 1))
