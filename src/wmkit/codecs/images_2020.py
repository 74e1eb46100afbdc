"""Image halves of a codec as the first two Dreamers have them (arXiv:1912.01603, arXiv:2010.02193).

Down: four convolutions of kernel 4 and stride 2 without padding, 64 -> 31 -> 14 -> 6 -> 2; images enter
as ``x / 255 - 0.5``. Back: one dense layer to a single position, then transposed convolutions of
kernel 5, 5, 6, 6, stride 2, without padding, 1 -> 5 -> 13 -> 30 -> 64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from wmkit.codecs.images import channels
from wmkit.codecs.images_unpadded import KERNELS, UnpaddedImageEncoder, check_shapes, unpadded_stages
from wmkit.nn import STYLE_2023, LayerStyle, Linear, UnpaddedTransposedConv, init_output, patches


class ImageEncoder2020(UnpaddedImageEncoder):
    """Images ``[N, C, 64, 64]`` to ``[N, 32 * depth]`` (DreamerV1, DreamerV2).

    Args:
        shapes: ``[C, 64, 64]`` of each image key; C in what follows is their sum.
        depth: width of the first convolution; each later stage doubles it: 32 in V1, 48 in V2.
        patch: 1; blocks of pixels do not fit convolutions without padding.
        activation: of the convolutions: relu in V1, elu in V2.
        style: norm, bias and initialisation.

    Raises:
        SpecError: an image of another size.
        ConfigError: another ``patch``.

    >>> import torch
    >>> ImageEncoder2020({"pixels": (3, 64, 64)}, depth=4)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 128])
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        *,
        depth: int,
        patch: int = 1,
        activation: Literal["silu", "elu", "relu"] = "elu",
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__(shapes, depth=depth, patch=patch, style=replace(style, activation=activation))

    def forward(self, image: Tensor) -> Tensor:
        """``image`` float in [0, 1]."""
        return super().forward(patches(image, 1) - 0.5)


class ImageDecoder2020(nn.Module):
    """Features ``[N, F]`` to images ``[N, C, 64, 64]`` in [0, 1] units (DreamerV1, DreamerV2).

    Args:
        in_dim: feature width F.
        shapes: ``[C, 64, 64]`` of each image key, as in the encoder.
        depth: width of the last hidden stage, as in the encoder.
        patch: 1, as in the encoder.
        activation: as in the encoder.
        style: norm, bias and initialisation.

    Raises:
        SpecError: an image of another size.
        ConfigError: another ``patch``.

    >>> import torch
    >>> ImageDecoder2020(16, {"pixels": (3, 64, 64)}, depth=4)(torch.zeros(2, 16)).shape
    torch.Size([2, 3, 64, 64])
    """

    def __init__(
        self,
        in_dim: int,
        shapes: Mapping[str, Sequence[int]],
        *,
        depth: int,
        patch: int = 1,
        activation: Literal["silu", "elu", "relu"] = "elu",
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        check_shapes(shapes, patch)
        style = replace(style, activation=activation)
        self.linear = init_output(Linear(in_dim, 32 * depth), init=style.init)
        self.layers = unpadded_stages([32 * depth, 4 * depth, 2 * depth, depth], style)
        last = UnpaddedTransposedConv(depth, channels(shapes), KERNELS[-1])
        self.layers.append(init_output(last, init=style.init))

    def forward(self, features: Tensor) -> Tensor:
        """``[N, F] -> [N, C, 64, 64]``; the half that the encoder takes off is put back."""
        return self.layers(self.linear(features)[..., None, None]) + 0.5
