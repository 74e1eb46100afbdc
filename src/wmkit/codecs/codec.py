"""Observations to embeddings, features back to observations: an image half, chosen by name, beside an MLP.

The MLP is for vectors: floats, squashed or not, and classes as one-hot. In DreamerV3 (arXiv:2301.04104;
danijar/dreamerv3 e3f0224) images are scored by squared error summed over pixels, and so are float vectors, in
symlog units; before it both were means of normals of unit variance. Classes are scored by cross-entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from wmkit.codecs.convolutional import ConvolutionalImageDecoder, ConvolutionalImageEncoder
from wmkit.codecs.frames import Shapes, unit_image
from wmkit.errors import SpecError
from wmkit.functional import symlog
from wmkit.nn import (
    MLP,
    STYLE_2023,
    Categorical,
    Feature,
    LayerStyle,
    Linear,
    SquaredError,
    SymlogSquaredError,
    init_output,
)
from wmkit.plug import Plug, as_keys

_NO_MODULES = nn.ModuleDict()


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


class Decoder(Plug):
    """The decoder half of a codec: features in, a prediction for every key out (arXiv:2301.04104).

    Args:
        in_dim: width F of the features: the sum of the widths of all that ``in_keys`` names.
        spaces: shape of one observation for each key, a name or, for a nested key, a tuple of names.
        images: image keys, in the encoder's order.
        vectors: vector keys to predict.
        depth: width of the image half, see :class:`~wmkit.codecs.ConvolutionalImageDecoder`.
        patch: see :class:`~wmkit.codecs.ConvolutionalImageDecoder`.
        units: width of the vector MLP.
        layers: depth of the vector MLP.
        image: the image half, called as ``image(in_dim, shapes, depth=..., patch=..., style=...)``.
        discrete: vector keys that hold classes, with the number of them, as in the encoder.
        image_prediction: what is made of an image, called as ``image_prediction(mean, event_dims)``.
        vector_prediction: what is made of a float vector, called in the same way.
        style: norm, activation, bias and initialisation.
        in_keys: what is read, side by side; ``["state"]`` makes an autoencoder without history (TWM, STORM).
        out_keys: where the means go, if not to ``("predicted", KEY)``: images first, then vectors.

    Attributes:
        targets: the keys that are predicted, images first.

    Raises:
        SpecError: an image that the image half does not make.
        ConfigError: not as many ``out_keys`` as observations.

    >>> from tensordict import TensorDict
    >>> decoder = Decoder(
    ...     16, {"pixels": (3, 64, 64)}, images=["pixels"], vectors=[], depth=4, units=8, layers=1
    ... )
    >>> decoder.predict(torch.zeros(2, 5, 16))["pixels"].mean.shape
    torch.Size([2, 5, 3, 64, 64])
    >>> latent = TensorDict({"state": torch.zeros(2, 5, 12), "belief": torch.zeros(2, 5, 4)}, [2, 5])
    >>> decoder(latent)["predicted", "pixels"].shape
    torch.Size([2, 5, 3, 64, 64])
    """

    image: Any

    def __init__(
        self,
        in_dim: int,
        spaces: Shapes,
        *,
        images: Sequence[NestedKey],
        vectors: Sequence[NestedKey],
        depth: int,
        patch: int = 1,
        units: int,
        layers: int,
        image: Callable[..., nn.Module] = ConvolutionalImageDecoder,
        discrete: Mapping[Any, int] | None = None,
        image_prediction: Callable[[Tensor, int], SquaredError] = SquaredError,
        vector_prediction: Callable[[Tensor, int], SquaredError] = SymlogSquaredError,
        style: LayerStyle = STYLE_2023,
        in_keys: Sequence[NestedKey] = ("state", "belief"),
        out_keys: Sequence[NestedKey] | None = None,
    ) -> None:
        super().__init__()
        self.images, self.vectors = tuple(as_keys(images)), tuple(as_keys(vectors))
        self.discrete = dict(discrete or {})
        self.image_prediction, self.vector_prediction = image_prediction, vector_prediction
        self.targets = (*self.images, *self.vectors)
        shapes = {key: spaces[key] for key in self.images}
        self._channels = [shape[0] for shape in shapes.values()]
        self._events = {key: tuple(spaces[key]) for key in self.vectors}
        self.image = image(in_dim, shapes, depth=depth, patch=patch, style=style) if shapes else None
        self.vector = MLP(in_dim, units=units, layers=layers, style=style) if self.vectors else None
        widths = {key: vector_width(key, event, self.discrete) for key, event in self._events.items()}
        self.vector_out = nn.ModuleDict(
            {
                _module_name(key): init_output(Linear(units, width), init=style.init)
                for key, width in widths.items()
            }
        )
        predicted = [("predicted", key) for key in self.targets] if out_keys is None else out_keys
        self.set_plug(in_keys, as_keys(predicted, len(self.targets), "out_keys"))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the mean of every prediction from a TensorDict's features into it."""
        features = torch.cat([tensordict.get(key) for key in self.in_keys], -1)
        for key, prediction in zip(self.out_keys, self.predict(features).values(), strict=True):
            tensordict.set(key, prediction.mean)
        return tensordict

    def predict(self, features: Tensor | Feature) -> dict[Any, SquaredError | Categorical]:
        """Predict every key from features ``[*B, F]``, whose parts are in the order of ``in_keys``.

        Returns:
            A prediction for each of :attr:`targets`, its mean ``[*B, *shape]`` (``[*B, *shape, classes]`` of
            classes).
        """
        predictions: dict[Any, SquaredError | Categorical] = {}
        if self.image is not None:
            dense = features if isinstance(features, Tensor) else features.dense
            image = self.image(dense.flatten(0, -2)).unflatten(0, dense.shape[:-1])
            for key, part in zip(self.images, image.split(self._channels, -3), strict=True):
                predictions[key] = self.image_prediction(part, 3)
        if self.vector is not None:
            hidden = self.vector(features)
            for key, event in self._events.items():
                out = self.vector_out[_module_name(key)](hidden)
                if key in self.discrete:
                    logits = out.unflatten(-1, (*event, self.discrete[key]))
                    predictions[key] = Categorical(logits, len(event))
                else:
                    predictions[key] = self.vector_prediction(out.view(*out.shape[:-1], *event), len(event))
        return predictions


def _module_name(key: NestedKey) -> str:
    """A key's name among modules: the key itself, unless a ModuleDict takes no such name.

    >>> [_module_name(key) for key in ("position", "arm.angle", "items", ("agent", "speed"))]
    ['position', 'arm%2Eangle', 'items%', 'agent%2Fspeed']
    """
    name = key if isinstance(key, str) else "%2F".join(key)
    return name.replace(".", "%2E") + "%" * hasattr(_NO_MODULES, name)


def vector_width(key: NestedKey, shape: Sequence[int], discrete: Mapping[Any, int]) -> int:
    """How many numbers a vector key is for a network.

    Args:
        key: its name, or tuple of names.
        shape: of one observation.
        discrete: number of classes of every key that holds classes.

    >>> vector_width("speed", (), {}), vector_width("grid", (2, 3), {})
    (1, 6)
    >>> vector_width("inventory", (2,), {"inventory": 5})
    10
    """
    return math.prod(shape) * discrete.get(key, 1)


def flat_vector(
    x: Tensor,
    shape: Sequence[int],
    classes: int | None = None,
    squash: Callable[[Tensor], Tensor] | None = symlog,
) -> Tensor:
    """A vector observation as a network reads it.

    Args:
        x: ``[*B, *shape]``, float or integer. A float of -inf is one that is missing and becomes zero.
        shape: of one observation.
        classes: how many; a value outside, as -1 where there is none, becomes zeros.
        squash: what is done to numbers; none takes them as they are, uint8 as /255.

    Returns:
        ``[*B, D]`` float.

    >>> flat_vector(torch.tensor([[0, 2]]), (2,), 3)
    tensor([[1., 0., 0., 0., 0., 1.]])
    >>> flat_vector(torch.tensor([[0.0, -1.0, -torch.inf]]), (3,))
    tensor([[ 0.0000, -0.6931,  0.0000]])
    """
    lead = x.ndim - len(shape)
    if classes is None:
        x = unit_image(x).float() if squash is None else squash(x.float())
        x = x.nan_to_num(math.nan, math.inf, 0.0)  # what is broken stays broken
        return x.unsqueeze(-1).flatten(lead)
    return (x.unsqueeze(-1) == torch.arange(classes, device=x.device)).float().flatten(lead)
