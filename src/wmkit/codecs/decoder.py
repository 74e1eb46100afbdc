"""Features back to observations: an image half that the page chooses, an MLP for vectors (DreamerV3).

In DreamerV3 images are scored by squared error summed over pixels, float vectors likewise, in symlog
units; before it both were means of normals of unit variance. Classes are scored by cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from wmkit.codecs.images_2023 import ImageDecoder
from wmkit.codecs.vectors import vector_width
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

_NO_MODULES = nn.ModuleDict()


class Decoder(nn.Module):
    """The decoder half of a codec: features in, a prediction for every key out.

    Args:
        in_dim: feature width F.
        spaces: shape of one observation for each key.
        images: image keys, in the encoder's order.
        vectors: vector keys to predict.
        depth: width of the image half, see :class:`~wmkit.codecs.ImageDecoder`.
        patch: see :class:`~wmkit.codecs.ImageDecoder`.
        units: width of the vector MLP.
        layers: depth of the vector MLP.
        image: the image half, called as ``image(in_dim, shapes, depth=..., patch=..., style=...)``.
        discrete: vector keys that hold classes, with the number of them, as in the encoder.
        image_prediction: what is made of an image, called as ``image_prediction(mean, event_dims)``.
        vector_prediction: likewise of a float vector.
        style: norm, activation, bias and initialisation.

    Raises:
        SpecError: an image that the image half does not make.

    >>> import torch
    >>> space = {"pixels": (3, 64, 64)}
    >>> decoder = Decoder(16, space, images=["pixels"], vectors=[], depth=4, units=8, layers=1)
    >>> decoder(torch.zeros(2, 5, 16))["pixels"].mean.shape
    torch.Size([2, 5, 3, 64, 64])
    """

    reads = "feature"
    image: Any

    def __init__(
        self,
        in_dim: int,
        spaces: Mapping[str, Sequence[int]],
        *,
        images: Sequence[str],
        vectors: Sequence[str],
        depth: int,
        patch: int = 1,
        units: int,
        layers: int,
        image: Callable[..., nn.Module] = ImageDecoder,
        discrete: Mapping[str, int] | None = None,
        image_prediction: Callable[[Tensor, int], SquaredError] = SquaredError,
        vector_prediction: Callable[[Tensor, int], SquaredError] = SymlogSquaredError,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        self.images, self.vectors = tuple(images), tuple(vectors)
        self.discrete = dict(discrete or {})
        self.image_prediction, self.vector_prediction = image_prediction, vector_prediction
        self.targets = (*self.images, *self.vectors)
        shapes = {key: spaces[key] for key in self.images}
        self._channels = [shape[0] for shape in shapes.values()]
        self._events = {key: tuple(spaces[key]) for key in self.vectors}
        self.image = image(in_dim, shapes, depth=depth, patch=patch, style=style) if shapes else None
        self.vector = MLP(in_dim, units, layers, style) if self.vectors else None
        widths = {key: vector_width(key, event, self.discrete) for key, event in self._events.items()}
        self.vector_out = nn.ModuleDict(
            {
                _module_name(key): init_output(Linear(units, width), init=style.init)
                for key, width in widths.items()
            }
        )

    def forward(self, features: Tensor | Feature) -> dict[str, SquaredError | Categorical]:
        """Predict every key from features ``[*B, F]``."""
        predictions: dict[str, SquaredError | Categorical] = {}
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


class StateDecoder(Decoder):
    """:class:`Decoder` of the state alone: an autoencoder without history (TWM, STORM)."""

    reads = "state"


def _module_name(key: str) -> str:
    """A key's name among modules: the key itself, unless a ModuleDict takes no such name.

    >>> [_module_name(key) for key in ("position", "arm.angle", "items")]
    ['position', 'arm%2Eangle', 'items%']
    """
    return key.replace(".", "%2E") + "%" * hasattr(_NO_MODULES, key)
