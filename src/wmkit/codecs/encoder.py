"""Observations to embeddings: convolutions for images, a symlog MLP for vectors.

DreamerV3 of 2023 (arXiv:2301.04104v1): four stride-2 convolutions of doubling width with
LayerNorm over channels; images enter as ``x / 255 - 0.5``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from wmkit.errors import ConfigError, SpecError
from wmkit.functional import symlog
from wmkit.nn import MLP, ChannelNorm, HalvingConv, init_hidden, patches

IMAGE_SIZE = 64
GRID = 4  # side of the coarsest grid


def stage_widths(depth: int, patch: int) -> list[int]:
    """Widths of the stages between ``64 / patch`` and ``4 x 4``, finest first.

    Raises:
        ConfigError: ``patch`` is not 1, 2, 4 or 8.

    >>> stage_widths(8, 1), stage_widths(16, 2)
    ([8, 16, 32, 64], [16, 32, 64])
    """
    if patch not in (1, 2, 4, 8):
        raise ConfigError(f"patch is {patch}: wanted 1, 2, 4 or 8; correct size.patch")
    return [depth * 2**i for i in range((IMAGE_SIZE // patch // GRID).bit_length() - 1)]


class ImageEncoder(nn.Module):
    """Images ``[N, C, 64, 64]`` to ``[N, 8 * depth / patch * 16]``.

    Args:
        channels: of all image keys together.
        depth: width of the first convolution; each later stage doubles it.
        patch: read blocks of ``patch x patch`` pixels as one position of that many more channels,
            which saves the finest and dearest stages; 1 as published.

    >>> ImageEncoder(4, 8)(torch.zeros(2, 4, 64, 64)).shape
    torch.Size([2, 1024])
    >>> ImageEncoder(4, 16, patch=2)(torch.zeros(2, 4, 64, 64)).shape
    torch.Size([2, 1024])
    """

    def __init__(self, channels: int, depth: int, patch: int = 1) -> None:
        super().__init__()
        self.patch = patch
        widths = [channels * patch**2, *stage_widths(depth, patch)]
        self.layers = nn.Sequential()
        for before, after in pairwise(widths):
            self.layers.extend([init_hidden(HalvingConv(before, after)), ChannelNorm(after), nn.SiLU()])
        self.out_dim = widths[-1] * GRID**2

    def forward(self, image: Tensor) -> Tensor:
        """``image`` float in [0, 1]."""
        return self.layers(patches(image, self.patch) - 0.5).flatten(1)


class Encoder(nn.Module):
    """The encoder half of a codec: every observation key in, one embedding out.

    Args:
        spaces: shape of one observation for each key the encoder reads.
        images: image keys, joined along channels in this order.
        vectors: vector keys, joined in this order, squashed by symlog.
        depth: see :class:`ImageEncoder`.
        patch: see :class:`ImageEncoder`.
        units: width of the vector MLP.
        layers: depth of the vector MLP.

    Raises:
        SpecError: an image that is not ``[C, 64, 64]``, or nothing to encode.

    >>> encoder = Encoder({"pixels": (3, 64, 64)}, images=["pixels"], vectors=[], depth=4, units=8, layers=1)
    >>> encoder({"pixels": torch.zeros(2, 5, 3, 64, 64, dtype=torch.uint8)}).shape
    torch.Size([2, 5, 512])
    """

    def __init__(
        self,
        spaces: Mapping[str, Sequence[int]],
        *,
        images: Sequence[str],
        vectors: Sequence[str],
        depth: int,
        patch: int = 1,
        units: int,
        layers: int,
    ) -> None:
        super().__init__()
        self.images, self.vectors = tuple(images), tuple(vectors)
        for key in self.images:
            check_image(key, spaces[key])
        self.out_dim = 0
        self.image: ImageEncoder | None = None
        self.vector: MLP | None = None
        if self.images:
            self.image = ImageEncoder(sum(spaces[key][0] for key in self.images), depth, patch)
            self.out_dim += self.image.out_dim
        if self.vectors:
            self.vector = MLP(sum(spaces[key][-1] for key in self.vectors), units, layers)
            self.out_dim += units
        if not self.out_dim:
            raise SpecError(
                "the encoder has no observation to read: found no image and no vector key, wanted at "
                "least one; add a key to encoder.images or encoder.vectors"
            )

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Embed observations of any leading dimensions.

        Args:
            observations: ``[*B, C, 64, 64]`` uint8 for image keys (float in [0, 1] is taken
                too), ``[*B, D]`` float for vector keys.

        Returns:
            ``[*B, out_dim]`` float: image features first, then vector features.
        """
        parts = []
        if self.image is not None:
            images = [unit_image(observations[key]) for key in self.images]
            image = torch.cat(images, -3) if len(images) > 1 else images[0]
            lead = image.shape[:-3]
            parts.append(self.image(image.flatten(0, -4)).unflatten(0, lead))
        if self.vector is not None:
            vector = torch.cat([observations[key].float() for key in self.vectors], -1)
            parts.append(self.vector(symlog(vector)))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def check_image(key: str, shape: Sequence[int]) -> None:
    """Raise :class:`SpecError` unless ``shape`` is ``[C, 64, 64]``."""
    if len(shape) != 3 or tuple(shape[1:]) != (IMAGE_SIZE, IMAGE_SIZE):
        raise SpecError(
            f"image {key!r} has shape {list(shape)}: wanted [channels, {IMAGE_SIZE}, {IMAGE_SIZE}]; "
            "resize it (torchrl.envs.Resize) and put channels first (torchrl.envs.ToTensorImage)"
        )


def unit_image(image: Tensor) -> Tensor:
    """An image as float in [0, 1]; uint8 is divided by 255, float is taken as it is.

    >>> unit_image(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([0., 1.])
    """
    return image * (1 / 255) if image.dtype == torch.uint8 else image
