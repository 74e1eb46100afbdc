"""Frame stacks put together when a window is sampled: replay holds single frames.

A stack belongs to one episode: before its first frame stands that frame again, also after a reset
in the middle of a window (TWM, arXiv:2303.07109; jrobine/twm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wmkit.codecs.images import unit_image
from wmkit.errors import ConfigError

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


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
