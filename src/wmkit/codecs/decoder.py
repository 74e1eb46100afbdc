"""Features back to observations: an image half, chosen by name, beside an MLP for vectors.

In DreamerV3 images are scored by squared error summed over pixels, and so are float vectors, in symlog
units; before it both were means of normals of unit variance. Classes are scored by cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from wmkit.codecs.convolutional import ConvolutionalImageDecoder
from wmkit.codecs.images import Shapes
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
from wmkit.plug import Plug, as_keys

_NO_MODULES = nn.ModuleDict()


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
