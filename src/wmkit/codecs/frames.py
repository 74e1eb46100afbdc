"""Images of a codec: their units and their sizes, and stacks of frames.

Stacks are put together when a window is sampled: replay holds single frames. A stack belongs to one episode:
before its first frame stands that frame again, also after a reset in the middle of a window (TWM,
arXiv:2303.07109; jrobine/twm).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wmkit.errors import ConfigError, SpecError

IMAGE_SIZE = 64  # of most published codecs
SMALLEST = 16  # side of what is taken for an image where its space does not say so
Shapes = Mapping[Any, Sequence[int]]  # of one observation for each key, a name or a tuple of names
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def unit_image(image: Tensor) -> Tensor:
    """An image as float in [0, 1]; uint8 is divided by 255, float is taken as it is.

    >>> import torch
    >>> unit_image(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([0., 1.])
    """
    return image * (1 / 255) if image.dtype == torch.uint8 else image


def channels_last(shape: Sequence[int]) -> bool:
    """Whether a shape of three dimensions is ``[H, W, C]``: fewer channels than rows and columns.

    >>> channels_last((210, 160, 3)), channels_last((12, 64, 64)), channels_last((5, 5, 5))
    (True, False, False)
    """
    return len(shape) == 3 and shape[2] < min(shape[:2])


def looks_grey(shape: Sequence[int]) -> bool:
    """Whether bytes of this shape are taken for an image without channels, ``[H, W]``; less is a table.

    >>> looks_grey((84, 84)), looks_grey((7, 9)), looks_grey((128,))
    (True, False, False)
    """
    return len(shape) == 2 and min(shape) >= SMALLEST


def check_image(key: Any, shape: Sequence[int]) -> None:
    """Raise :class:`SpecError` unless ``shape`` has three dimensions; its codec checks the size."""
    if len(shape) != 3:
        raise SpecError(
            f"image {key!r} has shape {list(shape)}: wanted [channels, height, width]; turn it so in the "
            f"environment (torchrl.envs.UnsqueezeTransform), or read it as a vector, {as_vector(key)}"
        )


def as_vector(key: Any) -> str:
    """Overrides that have a key read as numbers, when it was taken for an image."""
    return f"observations.images=[] observations.vectors=[{key}]"


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
        check_image(key, shape)
        if shape[1] != shape[2] or not accepts(shape[1]):
            raise _refuse(key, shape, wanted, [other for other in shapes if other != key])
        sides[key] = shape[1]
    if len(set(sides.values())) > 1:
        found = ", ".join(f"{key!r} with {side}" for key, side in sides.items())
        raise SpecError(
            f"images differ in size: found {found}, wanted one size, as they are joined along channels; "
            f"resize them ({_resizing(max(sides.values()))}), or leave some out by "
            f"observations.images=[{next(iter(sides))}]"
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


def _refuse(key: Any, shape: Sequence[int], wanted: str, others: Sequence[Any]) -> SpecError:
    size, turn = f" of {shape[1]} x {shape[2]} pixels", ""
    if channels_last(shape):
        size, turn = "", "put channels first (torchrl.envs.PermuteTransform) and "
    leave = f"leave it out by observations.images=[{', '.join(map(str, others))}]"
    if not others:
        leave = f"read it as a vector, {as_vector(key)}"
    return SpecError(
        f"image {key!r}{size} has shape {list(shape)}: wanted {wanted}; {turn}resize it "
        f"({_resizing(IMAGE_SIZE)}), or {leave}"
    )


def _resizing(side: int) -> str:
    """What makes images of another size, wherever they come from."""
    return (
        f"env.resize={side} with env=gymnasium, env.image_size or env.options.image_size={side} of what is "
        "drawn, torchrl.envs.Resize elsewhere"
    )


class FrameStack:
    """The last frames as channels of one image, oldest first.

    Args:
        count: frames of a stack; one leaves images as they are.
        grey: turn RGB images into one channel of brightness; others stay.

    Raises:
        ConfigError: ``count`` is not positive.

    >>> FrameStack(4, grey=True).shapes({"pixels": (3, 64, 64)})
    {'pixels': (4, 64, 64)}
    """

    def __init__(self, count: int = 1, grey: bool = False) -> None:
        if count < 1:
            raise ConfigError(f"count is {count}: wanted 1 or more; correct count")
        self.count, self.grey = count, grey

    def shapes(self, images: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """Shapes of single frames to shapes of stacks."""
        return {key: (self.count * self._channels(shape), *shape[1:]) for key, shape in images.items()}

    def frame(self, image: Tensor) -> Tensor:
        """One frame ``[*B, C, H, W]``, uint8 or in [0, 1], to float in [0, 1], grey where asked for."""
        image = unit_image(image)
        if not self.grey or image.shape[-3] != 3:
            return image
        red, green, blue = image.split(1, -3)
        return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue

    def window(self, image: Tensor, is_init: Tensor) -> Tensor:
        """Stacks of a window.

        Args:
            image: ``[B, T, C, H, W]`` single frames.
            is_init: ``[B, T, 1]`` bool, which of them start an episode.

        Returns:
            ``[B, T, count*C, H, W]`` float in [0, 1]. Before the window's first frame stands that frame.

        >>> image = torch.arange(4.0).view(1, 4, 1, 1, 1) / 4
        >>> is_init = torch.tensor([False, False, True, False]).view(1, 4, 1)
        >>> FrameStack(3).window(image, is_init).squeeze() * 4
        tensor([[0., 0., 0.],
                [0., 0., 1.],
                [2., 2., 2.],
                [2., 2., 3.]])
        """
        frames = self.frame(image)
        if self.count == 1:
            return frames
        rows, steps = frames.shape[:2]
        time = torch.arange(steps, device=frames.device)
        first = torch.where(is_init.squeeze(-1), time, 0).cummax(1).values  # [B, T] start of the episode
        row = torch.arange(rows, device=frames.device).unsqueeze(1)
        past = [frames[row, torch.maximum(time - back, first)] for back in reversed(range(self.count))]
        return torch.cat(past, -3)

    def push(self, recent: Tensor, image: Tensor, is_init: Tensor) -> Tensor:
        """The stack of a new frame.

        Args:
            recent: ``[E, count*C, H, W]`` the stack before it.
            image: ``[E, C, H, W]`` the frame.
            is_init: ``[E]`` bool, it starts an episode.

        Returns:
            ``[E, count*C, H, W]``.

        >>> recent, image = torch.tensor([0.1, 0.2]).view(1, 2, 1, 1), torch.full((1, 1, 1, 1), 0.3)
        >>> FrameStack(2).push(recent, image, torch.tensor([False])).flatten()
        tensor([0.2000, 0.3000])
        """
        frame = self.frame(image)
        pushed = torch.cat([recent[:, frame.shape[-3] :], frame], -3)
        return torch.where(is_init.view(-1, 1, 1, 1), frame.repeat(1, self.count, 1, 1), pushed)

    def newest(self, stack: Tensor, channels: int) -> Tensor:
        """The newest frame ``[*B, channels, H, W]`` of stacks, a grey one in every channel."""
        own = stack.shape[-3] // self.count
        frame = stack[..., -own:, :, :]
        return frame if own == channels else frame.expand(*frame.shape[:-3], channels, *frame.shape[-2:])

    def _channels(self, shape: Sequence[int]) -> int:
        return 1 if self.grey and shape[0] == 3 else shape[0]
