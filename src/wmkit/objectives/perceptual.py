"""What a picture looks like to a network that has seen others (Zhang et al. 2018, arXiv:1801.03924).

The LPIPS distance on VGG16 features, which IRIS's tokenizer is trained with. Nothing is downloaded: the
weights are those of a file. Without one the term is left out, and the page says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.dynamics import WorldModel
from wmkit.errors import ConfigError
from wmkit.objectives.objective import Objective, Scene, Score, Term, episode_ends

# Convolutions of VGG16 by their place in torchvision's ``features``; a stage ends before each pooling.
_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_WIDTHS = (64, 128, 256, 512, 512)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]


class Perceptual(Objective):
    """``perceptual``: the LPIPS distance of images and reconstructions; it teaches the ``representation``.

    Args:
        weights: of ``perceptual``.
        path: a file of :func:`torch.save` with a flat mapping: ``features.N.weight`` and ``.bias`` as
            torchvision names VGG16's, ``linK.model.1.weight`` as the package ``lpips`` names its five
            vectors. None leaves the term out.
        key: of the image.
        dropout: of the squared differences, while learning: 0.5 as released IRIS has it by accident.
        outside: put the epsilon of the norms outside of their root, whose gradient is then not a number where
            all features of a position are zero (released).
        ends: whether the last records of episodes are scored.
        world_model: what is trained; :meth:`attach` gives it later.

    Raises:
        ConfigError: no such file, or one without these weights.
    """

    groups = ("representation",)

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        path: str | None = None,
        key: str = "pixels",
        dropout: float = 0.0,
        outside: bool = False,
        ends: bool = False,
        world_model: WorldModel | None = None,
    ) -> None:
        self.key, self.dropout, self.outside, self.ends = key, dropout, outside, ends
        self._weights = None if path is None else _read(Path(path))
        super().__init__(weights, world_model)

    def weigh(self, world_model: WorldModel) -> dict[str, float]:
        """None without a file."""
        return {} if self._weights is None else dict(self.given)

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """``perceptual``, where there is a file."""
        return () if self._weights is None else ("perceptual",)

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        if self._weights is None:
            return {}
        batch, shown = scene.batch, scene.decoded[self.key].mean
        target = batch[self.key] * (1 / 255) if batch[self.key].dtype == torch.uint8 else batch[self.key]
        distance = self.distance(2 * target.flatten(0, 1) - 1, 2 * shown.flatten(0, 1) - 1)
        mask = None if self.ends else ~episode_ends(batch).squeeze(-1)
        return {"perceptual": Term(distance.unflatten(0, shown.shape[:2]), mask, "representation")}

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Of images ``[N, 3, H, W]`` in [-1, 1]: ``[N]``."""
        weights = {name: weight.to(x.device) for name, weight in (self._weights or {}).items()}
        total = x.new_zeros(len(x))
        for k, (a, b) in enumerate(zip(_features(x, weights), _features(y, weights), strict=True)):
            difference = F.dropout((self._unit(a) - self._unit(b)).square(), self.dropout)
            total = total + F.conv2d(difference, weights[f"lin{k}.model.1.weight"]).mean((1, 2, 3))
        return total

    def _unit(self, x: Tensor) -> Tensor:
        """Features of norm one at each position."""
        squares = x.square().sum(1, keepdim=True)
        return x / (squares.sqrt() + 1e-10) if self.outside else x / (squares + 1e-20).sqrt()


def _features(image: Tensor, weights: Mapping[str, Tensor]) -> list[Tensor]:
    """What VGG16 makes of images ``[N, 3, H, W]`` in [-1, 1], before each of its poolings."""
    shift, scale = (image.new_tensor(numbers).view(1, 3, 1, 1) for numbers in (_SHIFT, _SCALE))
    x, found = (image - shift) / scale, []
    for k, stage in enumerate(_STAGES):
        x = F.max_pool2d(x, 2) if k else x
        for place in stage:
            name = f"features.{place}"
            x = F.relu(F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1))
        found.append(x)
    return found


def _read(path: Path) -> dict[str, Tensor]:
    """The weights of a file, checked."""
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise ConfigError(
            f"path of the perceptual loss is {str(path)!r}, which cannot be read: {error}; wanted weights "
            "of VGG16 and LPIPS saved by torch.save, or null"
        ) from error
    before, shapes = 3, dict[str, tuple[int, ...]]()
    for k, (stage, width) in enumerate(zip(_STAGES, _WIDTHS, strict=True)):
        for place in stage:
            name = f"features.{place}"
            shapes |= {f"{name}.weight": (width, before, 3, 3), f"{name}.bias": (width,)}
            before = width
        shapes[f"lin{k}.model.1.weight"] = (1, width, 1, 1)
    arrays = found.items() if isinstance(found, dict) else ()
    has = {name: tuple(x.shape) for name, x in arrays if isinstance(x, Tensor)}
    if missing := [name for name, shape in shapes.items() if has.get(name) != shape]:
        raise ConfigError(
            f"path of the perceptual loss is {str(path)!r}: found no {missing[0]} of shape "
            f"{list(shapes[missing[0]])}, wanted the names of torchvision's VGG16 and of lpips in one "
            "mapping; join the two files"
        )
    return {name: found[name].float() for name in shapes}
