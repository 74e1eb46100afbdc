"""Image halves of a codec whose convolutions have no padding: TWM's (arXiv:2303.07109; jrobine/twm), and what
those of the first two Dreamers (:mod:`wmkit.codecs.images_2020`) are made of.

Down by four convolutions of kernel 4 and stride 2, ``64 -> 31 -> 14 -> 6 -> 2``; back from one
position by four transposed ones, ``1 -> 5 -> 13 -> 30 -> 64``. Images are in [0, 1] and not centred.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from wmkit.codecs.images import channels, image_side
from wmkit.errors import ConfigError
from wmkit.nn import (
    STYLE_2023,
    Activation,
    LayerStyle,
    Linear,
    UnpaddedConv,
    UnpaddedTransposedConv,
    channel_norm,
    init_hidden,
    init_output,
)

IMAGE_SIZE = 64
GRID = 2  # side of the coarsest grid of the encoder
KERNELS = (5, 5, 6, 6)  # of the decoder
SHAPE = f"[channels, {IMAGE_SIZE}, {IMAGE_SIZE}]"


class UnpaddedImageEncoder(nn.Module):
    """Images ``[N, C, 64, 64]`` to ``[N, 32 * depth]``.

    Args:
        shapes: ``[C, 64, 64]`` of each image key; C in what follows is their sum.
        depth: width of the first convolution, 48 in TWM; each later one doubles it.
        patch: only 1.
        style: norm, activation and initialisation; without a norm the convolutions have biases.

    Raises:
        SpecError: an image of another size.
        ConfigError: another ``patch``.

    >>> import torch
    >>> encoder = UnpaddedImageEncoder({"pixels": (4, 64, 64)}, depth=8)
    >>> encoder(torch.zeros(2, 4, 64, 64)).shape
    torch.Size([2, 256])
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
        check_shapes(shapes, patch)
        self.layers = nn.Sequential()
        for before, after in pairwise([channels(shapes), *(depth * 2**i for i in range(4))]):
            conv = init_hidden(UnpaddedConv(before, after, 4, bias=style.bias), style.init)
            self.layers.extend([conv, channel_norm(after, style), Activation(style, overwrites=True)])
        self.out_dim = 8 * depth * GRID**2

    def forward(self, image: Tensor) -> Tensor:
        """``image`` float in [0, 1]."""
        return self.layers(image).flatten(1)


class UnpaddedImageDecoder(nn.Module):
    """Features ``[N, F]`` to images ``[N, C, 64, 64]``.

    Args:
        in_dim: feature width F.
        shapes: ``[C, 64, 64]`` of each image key, as in the encoder.
        depth: as in the encoder; the widths are ``16, 4, 2, 1`` times it.
        patch: only 1.
        init: of the transposed convolutions: as ``style`` has it, with an output bias of one half, or
            PyTorch's own ``"default"``, which the released code gets because it initialises only
            convolutions and linear layers.
        style: norm, activation and initialisation.

    Raises:
        SpecError: an image of another size.
        ConfigError: another ``patch`` or ``init``.

    >>> import torch
    >>> UnpaddedImageDecoder(16, {"pixels": (4, 64, 64)}, depth=8)(torch.zeros(2, 16)).shape
    torch.Size([2, 4, 64, 64])
    """

    def __init__(
        self,
        in_dim: int,
        shapes: Mapping[str, Sequence[int]],
        *,
        depth: int,
        patch: int = 1,
        init: Literal["style", "default"] = "style",
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        check_shapes(shapes, patch)
        if init not in ("style", "default"):
            raise ConfigError(
                f"decoder init is {init!r}: wanted style or default; correct decoder.image.init"
            )
        self.linear: nn.Linear = init_hidden(Linear(in_dim, 16 * depth), style.init)
        self.activation = Activation(style)
        self.layers = unpadded_stages([16 * depth, 4 * depth, 2 * depth, depth], style, init)
        last = UnpaddedTransposedConv(depth, channels(shapes), KERNELS[-1])
        if init == "style":
            init_output(last, init=style.init)
            nn.init.constant_(last.bias, 0.5)  # type: ignore[arg-type]
        self.layers.append(last)

    def forward(self, features: Tensor) -> Tensor:
        """``[N, F] -> [N, C, 64, 64]``."""
        hidden = self.activation(self.linear(features))  # [N, 16 * depth]
        return self.layers(hidden[..., None, None])


def unpadded_stages(
    widths: Sequence[int], style: LayerStyle, init: Literal["style", "default"] = "style"
) -> nn.Sequential:
    """The hidden stages of a decoder: transposed convolutions ``1 -> 5 -> 13 -> 30`` of these widths.

    Args:
        widths: four, the first that of the single position.
        style: norm, activation, bias and initialisation.
        init: as in :class:`UnpaddedImageDecoder`.

    >>> import torch
    >>> unpadded_stages([8, 4, 2, 1], STYLE_2023)(torch.zeros(1, 8, 1, 1)).shape
    torch.Size([1, 1, 30, 30])
    """
    stages = nn.Sequential()
    for (before, after), kernel in zip(pairwise(widths), KERNELS[:-1], strict=True):
        conv: nn.ConvTranspose2d = UnpaddedTransposedConv(before, after, kernel, bias=style.bias)
        conv = init_hidden(conv, style.init) if init == "style" else conv
        stages.extend([conv, channel_norm(after, style), Activation(style, overwrites=True)])
    return stages


def check_shapes(shapes: Mapping[str, Sequence[int]], patch: int) -> None:
    """Raise unless every image is 64 x 64 and read pixel by pixel."""
    image_side(shapes, lambda side: side == IMAGE_SIZE, SHAPE)
    if patch != 1:
        raise ConfigError(
            f"patch is {patch} with convolutions without padding: wanted 1; set size.patch=1 or choose "
            "another size"
        )
