"""Observations to embeddings: an image half that the page chooses, an MLP for vectors (DreamerV3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wmkit.codecs.images import unit_image
from wmkit.codecs.images_2023 import ImageEncoder
from wmkit.codecs.vectors import flat_vector, vector_width
from wmkit.errors import SpecError
from wmkit.functional import symlog
from wmkit.nn import MLP, STYLE_2023, LayerStyle


class Encoder(nn.Module):
    """The encoder half of a codec: every observation key in, one embedding out.

    Args:
        spaces: shape of one observation for each key the encoder reads.
        images: image keys, joined along channels in this order.
        vectors: vector keys, joined in this order.
        depth: width of the image half, see :class:`~wmkit.codecs.ImageEncoder`.
        patch: see :class:`~wmkit.codecs.ImageEncoder`.
        units: width of the vector MLP.
        layers: depth of the vector MLP.
        image: the image half, called as ``image(shapes, depth=..., patch=..., style=...)`` with the
            shape of every image key.
        discrete: vector keys that hold classes, with the number of them: read as one-hot. All
            others are floats.
        squash: what floats go through first: symlog in DreamerV3, none before.
        vectors_first: put the vectors' part of the embedding before that of the images (since 2024).
        style: norm, activation, bias and initialisation.

    Raises:
        SpecError: an image that the image half does not take, or nothing to encode.

    >>> encoder = Encoder({"pixels": (3, 64, 64)}, images=["pixels"], vectors=[], depth=4, units=8, layers=1)
    >>> encoder({"pixels": torch.zeros(2, 5, 3, 64, 64, dtype=torch.uint8)}).shape
    torch.Size([2, 5, 512])
    """

    image: Any

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
        image: Callable[..., nn.Module] = ImageEncoder,
        discrete: Mapping[str, int] | None = None,
        squash: Callable[[Tensor], Tensor] | None = symlog,
        vectors_first: bool = False,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        self.images, self.vectors = tuple(images), tuple(vectors)
        self.vectors_first, self.discrete = vectors_first, dict(discrete or {})
        self.squash = squash
        self.out_dim = 0
        self.image = None
        self.vector: MLP | None = None
        if self.images:
            shapes = {key: spaces[key] for key in self.images}
            self.image = image(shapes, depth=depth, patch=patch, style=style)
            self.out_dim += self.image.out_dim
        if self.vectors:
            self.events = {key: tuple(spaces[key]) for key in self.vectors}
            width = sum(vector_width(key, spaces[key], self.discrete) for key in self.vectors)
            self.vector = MLP(width, units, layers, style)
            self.out_dim += units
        if not self.out_dim:
            raise SpecError(
                "the encoder has no observation to read: found no image and no vector key, wanted at "
                "least one; add a key to encoder.images or encoder.vectors"
            )

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Embed observations of any leading dimensions.

        Args:
            observations: ``[*B, C, H, W]`` uint8 for image keys (float in [0, 1] is taken too),
                ``[*B, *event]`` float or integer for vector keys.

        Returns:
            ``[*B, out_dim]`` float: image features, then vector features, or the other way round.
        """
        parts = []
        if self.image is not None:
            images = [unit_image(observations[key]) for key in self.images]
            image = torch.cat(images, -3) if len(images) > 1 else images[0]
            lead = image.shape[:-3]
            parts.append(self.image(image.flatten(0, -4)).unflatten(0, lead))
        if self.vector is not None:
            vectors = [
                flat_vector(observations[key], self.events[key], self.discrete.get(key), self.squash)
                for key in self.vectors
            ]
            parts.append(self.vector(torch.cat(vectors, -1)))
        if self.vectors_first:
            parts.reverse()
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]
