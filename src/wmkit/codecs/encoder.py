"""Observations to embeddings: an image half, chosen by name, beside an MLP for vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from wmkit.codecs.convolutional import ConvolutionalImageEncoder
from wmkit.codecs.images import Shapes, unit_image
from wmkit.codecs.vectors import flat_vector, vector_width
from wmkit.errors import SpecError
from wmkit.functional import symlog
from wmkit.nn import MLP, STYLE_2023, LayerStyle
from wmkit.plug import Plug, as_keys


class Encoder(Plug):
    """The encoder half of a codec: every observation key in, one embedding out (arXiv:2301.04104).

    Args:
        spaces: shape of one observation for each key, a name or, for a nested key, a tuple of names.
        images: image keys, joined along channels in this order.
        vectors: vector keys, joined in this order.
        depth: width of the image half, see :class:`~wmkit.codecs.ConvolutionalImageEncoder`.
        patch: see :class:`~wmkit.codecs.ConvolutionalImageEncoder`.
        units: width of the vector MLP.
        layers: depth of the vector MLP.
        image: the image half, called as ``image(shapes, depth=..., patch=..., style=...)`` with the
            shape of every image key; it maps ``[N, C, H, W]`` to ``[N, image.out_dim]``.
        discrete: vector keys that hold classes, with the number of them: read as one-hot. All
            others are floats.
        squash: what floats go through first: symlog in DreamerV3, none before.
        vectors_first: put the vectors' part of the embedding before that of the images, as DreamerV3 does
            since 2024.
        style: norm, activation, bias and initialisation.
        in_keys: where observations stand, if not under their own keys: images first, then vectors.
        out_keys: where the embedding goes.

    Attributes:
        images: where images stand.
        vectors: where vectors stand.
        out_dim: width of the embedding.

    Raises:
        SpecError: an image that the image half does not take, or nothing to encode.
        ConfigError: not as many ``in_keys`` as observations.

    >>> from tensordict import TensorDict
    >>> encoder = Encoder(
    ...     {"pixels": (3, 64, 64)}, images=["pixels"], vectors=[], depth=4, units=8, layers=1,
    ...     in_keys=[("agent", "pixels")],
    ... )
    >>> image = torch.zeros(2, 5, 3, 64, 64, dtype=torch.uint8)
    >>> encoder(TensorDict({"agent": {"pixels": image}}, [2, 5]))["embed"].shape
    torch.Size([2, 5, 512])
    >>> encoder.encode({("agent", "pixels"): image}).shape
    torch.Size([2, 5, 512])
    """

    image: Any

    def __init__(
        self,
        spaces: Shapes,
        *,
        images: Sequence[NestedKey],
        vectors: Sequence[NestedKey],
        depth: int,
        patch: int = 1,
        units: int,
        layers: int,
        image: Callable[..., nn.Module] = ConvolutionalImageEncoder,
        discrete: Mapping[Any, int] | None = None,
        squash: Callable[[Tensor], Tensor] | None = symlog,
        vectors_first: bool = False,
        style: LayerStyle = STYLE_2023,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] = ("embed",),
    ) -> None:
        super().__init__()
        keys = as_keys([*images, *vectors])
        read = keys if in_keys is None else as_keys(in_keys, len(keys), "in_keys")
        place = dict(zip(keys, read, strict=True))
        shapes = {place[key]: tuple(spaces[key]) for key in keys}
        self.images = tuple(place[key] for key in as_keys(images))
        self.vectors = tuple(place[key] for key in as_keys(vectors))
        self.discrete = {place[key]: count for key, count in (discrete or {}).items() if key in place}
        self.events = {key: shapes[key] for key in self.vectors}
        self.squash, self.vectors_first = squash, vectors_first
        self.out_dim = 0
        self.image = None
        self.vector: MLP | None = None
        if self.images:
            views = {key: shapes[key] for key in self.images}
            self.image = image(views, depth=depth, patch=patch, style=style)
            self.out_dim += self.image.out_dim
        if self.vectors:
            width = sum(vector_width(key, event, self.discrete) for key, event in self.events.items())
            self.vector = MLP(width, units=units, layers=layers, style=style)
            self.out_dim += units
        if not self.out_dim:
            raise SpecError(
                "the encoder has no observation to read: found no image and no vector key, wanted at "
                "least one; add a key to images or vectors"
            )
        self.set_plug(read, as_keys(out_keys, 1, "out_keys"))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the embedding of a TensorDict's observations into it."""
        return tensordict.set(self.out_keys[0], self.encode(tensordict))

    def encode(self, observations: Mapping[Any, Tensor] | TensorDictBase) -> Tensor:
        """Embed observations of any leading dimensions.

        Args:
            observations: under ``in_keys``, ``[*B, C, H, W]`` uint8 (or float in [0, 1]) for images and
                ``[*B, *event]`` float or integer for vectors.

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
