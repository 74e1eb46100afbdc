"""Features back to observations (DreamerV3 of 2023, arXiv:2301.04104v1).

A linear layer to ``4 x 4``, four transposed convolutions of halving width, mean plus 0.5,
no sigmoid; squared error summed over pixels. Vectors are predicted in symlog units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from wmkit.codecs.encoder import GRID, stage_widths
from wmkit.functional import symlog
from wmkit.nn import MLP, ChannelNorm, DoublingConv, SquaredError, init_hidden, init_output


class ImageDecoder(nn.Module):
    """Features ``[N, F]`` to images ``[N, C, 64, 64]`` in [0, 1] units.

    Args:
        in_dim: feature width F.
        channels: of all image keys together.
        depth: width of the last hidden stage, as in the encoder.
        patch: side of the blocks of pixels written as one position, as in the encoder.

    >>> import torch
    >>> ImageDecoder(16, 4, 8)(torch.zeros(2, 16)).shape
    torch.Size([2, 4, 64, 64])
    """

    def __init__(self, in_dim: int, channels: int, depth: int, patch: int = 1) -> None:
        super().__init__()
        widths = stage_widths(depth, patch)[::-1]
        self.linear = init_output(nn.Linear(in_dim, GRID**2 * widths[0]))
        self.layers = nn.Sequential()
        for before, after in pairwise(widths):
            self.layers.extend([init_hidden(DoublingConv(before, after)), ChannelNorm(after), nn.SiLU()])
        last = DoublingConv(widths[-1], channels * patch**2, bias=True, offset=0.5, patch=patch)
        self.layers.append(init_output(last))

    def forward(self, features: Tensor) -> Tensor:
        """``[N, F] -> [N, C, 64, 64]``."""
        grid = self.linear(features).unflatten(-1, (GRID, GRID, -1))  # [N, 4, 4, widths[0]]
        return self.layers(grid.permute(0, 3, 1, 2))


class Decoder(nn.Module):
    """The decoder half of a codec: features in, a prediction for every key out.

    Args:
        in_dim: feature width F.
        spaces: shape of one observation for each key.
        images: image keys, in the encoder's order.
        vectors: vector keys to predict.
        depth: see :class:`ImageDecoder`.
        patch: see :class:`ImageDecoder`.
        units: width of the vector MLP.
        layers: depth of the vector MLP.

    >>> import torch
    >>> space = {"pixels": (3, 64, 64)}
    >>> decoder = Decoder(16, space, images=["pixels"], vectors=[], depth=4, units=8, layers=1)
    >>> decoder(torch.zeros(2, 5, 16))["pixels"].mean.shape
    torch.Size([2, 5, 3, 64, 64])
    """

    reads = "feature"

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
    ) -> None:
        super().__init__()
        self.images, self.vectors = tuple(images), tuple(vectors)
        self.targets = (*self.images, *self.vectors)
        self._channels = [spaces[key][0] for key in self.images]
        self.image = ImageDecoder(in_dim, sum(self._channels), depth, patch) if self.images else None
        self.vector = MLP(in_dim, units, layers) if self.vectors else None
        self.vector_out = nn.ModuleDict(
            {k: init_output(nn.Linear(units, spaces[k][-1])) for k in self.vectors}
        )

    def forward(self, features: Tensor) -> dict[str, SquaredError]:
        """Predict every key from features ``[*B, F]``."""
        predictions: dict[str, SquaredError] = {}
        if self.image is not None:
            lead = features.shape[:-1]
            image = self.image(features.flatten(0, -2)).unflatten(0, lead)
            for key, part in zip(self.images, image.split(self._channels, -3), strict=True):
                predictions[key] = SquaredError(part, 3)
        if self.vector is not None:
            hidden = self.vector(features)
            for key in self.vectors:
                predictions[key] = SymlogSquaredError(self.vector_out[key](hidden), 1)
        return predictions


class SymlogSquaredError(SquaredError):
    """Squared error in symlog units; :attr:`mean` stays in symlog units.

    >>> import torch
    >>> SymlogSquaredError(torch.zeros(1, 1), 1).loss(torch.zeros(1, 1))
    tensor([0.])
    """

    def loss(self, target: Tensor) -> Tensor:
        """Squared error to ``symlog(target)``; ``[*B]``."""
        return super().loss(symlog(target.float()))
