"""Images of a codec: their units and their sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wmkit.errors import ConfigError, SpecError

IMAGE_SIZE = 64  # of most published codecs
Shapes = Mapping[Any, Sequence[int]]  # of one observation for each key, a name or a tuple of names


def unit_image(image: Tensor) -> Tensor:
    """An image as float in [0, 1]; uint8 is divided by 255, float is taken as it is.

    >>> import torch
    >>> unit_image(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([0., 1.])
    """
    return image * (1 / 255) if image.dtype == torch.uint8 else image


def check_image(key: Any, shape: Sequence[int]) -> None:
    """Raise :class:`SpecError` unless ``shape`` has three dimensions; its codec checks the size."""
    if len(shape) != 3:
        raise _refuse(key, shape, "[channels, height, width]")


def image_side(shapes: Shapes, accepts: Callable[[int], bool], wanted: str) -> int:
    """The side that all images have.

    Args:
        shapes: ``[C, H, W]`` of each image key.
        accepts: whether a side can be taken.
        wanted: the shapes that can be, for messages.

    Raises:
        SpecError: an image is not square, not of a side that is accepted, or not of the others'.

    >>> image_side({"pixels": (3, 96, 96)}, lambda side: side == 96, "[channels, 96, 96]")
    96
    """
    sides = {}
    for key, shape in shapes.items():
        if len(shape) != 3 or shape[1] != shape[2] or not accepts(shape[1]):
            raise _refuse(key, shape, wanted)
        sides[key] = shape[1]
    if len(set(sides.values())) > 1:
        found = ", ".join(f"{key!r} with {side}" for key, side in sides.items())
        raise SpecError(
            f"images differ in size: found {found}, wanted one size, as they are joined along channels; "
            "resize them (torchrl.envs.Resize)"
        )
    return next(iter(sides.values()))


def channels(shapes: Shapes) -> int:
    """Channels of all images together.

    >>> channels({"affordance": (1, 64, 64), "pixels": (3, 64, 64)})
    4
    """
    return sum(shape[0] for shape in shapes.values())


def check_patch(patch: int) -> None:
    """Raise :class:`ConfigError` unless ``patch`` is 1, 2, 4 or 8."""
    if patch not in (1, 2, 4, 8):
        raise ConfigError(f"patch is {patch}: wanted 1, 2, 4 or 8; correct patch")


def _refuse(key: Any, shape: Sequence[int], wanted: str) -> SpecError:
    return SpecError(
        f"image {key!r} has shape {list(shape)}: wanted {wanted}; "
        "resize it (torchrl.envs.Resize) and put channels first (torchrl.envs.ToTensorImage)"
    )
