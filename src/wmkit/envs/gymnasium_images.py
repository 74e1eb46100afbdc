"""Pictures among gymnasium's observations, as networks read them: ``[C, H, W]``, bytes or from 0 to 1.

    shape      [H, W, C] with fewer channels than rows and columns is turned, [H, W] of bytes gets a channel,
               the frames of a stack [S, ...] become channels
    numbers    scaled by the bounds that their space states: whole ones to bytes where 256 values are enough
    size       as it is, or what ``resize`` says

Arrays of three dimensions smaller than a picture, such as 7 x 7 x 3, stay as they are unless resized.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gymnasium.spaces import Box, Space
from PIL import Image

from wmkit.codecs.frames import SMALLEST, channels_last, looks_grey

Read = Callable[[np.ndarray], np.ndarray]


def fit_picture(space: Box, resize: int | None = None) -> tuple[Box, Read] | None:
    """What makes a picture of an array of ``space``, and the space of that; None of what is no picture.

    >>> space, read = fit_picture(Box(0, 255, (96, 80, 3), np.uint8), resize=64)
    >>> space.shape, read(np.zeros((96, 80, 3), np.uint8)).shape
    ((3, 64, 64), (3, 64, 64))
    """
    turn, shape = _turned(space.shape)
    if len(shape) != 3 or 0 in shape or (resize is None and min(shape[1:]) < SMALLEST):
        return None
    grey = len(space.shape) == 2
    if grey and not _bytes(space):
        return None
    scale, dtype, high = _scaled(space)
    if resize is not None and dtype in (np.uint8, np.float32):
        shape = (shape[0], resize, resize)

        def read(array: np.ndarray) -> np.ndarray:
            return resized(scale(turn(array)), resize)

    else:

        def read(array: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(scale(turn(array)))

    if high is None:  # without finite bounds: as it is
        return Box(space.low.min(), space.high.max(), shape, dtype.type), read
    return Box(0, high, shape, dtype.type), read


def turned(space: Box, fitted: Space) -> bool:
    """Whether :func:`fit_picture` put the channels of ``space`` first, besides what it did to its size."""
    shape = fitted.shape or ()
    return len(shape) == 3 and (len(space.shape) != 3 or space.shape[0] != shape[0])


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """A square ``[C, side, side]`` of ``[C, H, W]`` bytes or float32, by Pillow's bilinear filter."""
    if image.shape[1:] == (side, side):
        return np.ascontiguousarray(image)
    planes = (Image.fromarray(np.ascontiguousarray(plane)) for plane in image)
    return np.stack([np.asarray(plane.resize((side, side), Image.Resampling.BILINEAR)) for plane in planes])


def _turned(shape: tuple[int, ...]) -> tuple[Read, tuple[int, ...]]:
    """What puts channels first, and the shape of that; of what is no picture, as it is."""
    if looks_grey(shape):
        return lambda array: array[None], (1, *shape)
    if channels_last(shape):
        return lambda array: array.transpose(2, 0, 1), (shape[2], *shape[:2])
    if len(shape) == 4:  # a stack of pictures
        turn, one = _turned(shape[1:])
        if len(one) == 3 and one[0] < min(one[1:]) and min(one[1:]) >= SMALLEST:
            whole = (shape[0] * one[0], *one[1:])
            return lambda array: np.stack([turn(frame) for frame in array]).reshape(whole), whole
    return lambda array: array, shape


def _bytes(space: Box) -> bool:
    return space.dtype == np.uint8 and not space.low.any() and bool((space.high == 255).all())


def _scaled(space: Box) -> tuple[Read, np.dtype, int | None]:
    """What brings numbers to bytes or to 0 to 1, their type then and their upper bound (None: none)."""
    low, high = (float(edge) for edge in (space.low.min(), space.high.max()))
    if space.dtype == np.uint8 and high > 127:  # bytes of a picture, whether or not all are used
        return lambda array: array, np.dtype(np.uint8), 255
    whole = space.dtype.kind in "iub"
    wide = high - low
    if not 0 < wide < (2**31 if whole else 1e30):
        if not whole:
            return lambda array: array.astype(np.float32), np.dtype(np.float32), None
        return lambda array: array, np.dtype(space.dtype), None
    if whole and low == 0 and high == 255:
        return lambda array: array.astype(np.uint8), np.dtype(np.uint8), 255
    if whole and wide < 256:
        return (
            lambda array: (
                ((array.astype(np.int64) - int(low)) * 255 // int(wide)).clip(0, 255).astype(np.uint8)
            ),
            np.dtype(np.uint8),
            255,
        )
    if not whole and low >= 0 and high <= 1:
        return lambda array: array.astype(np.float32, copy=False), np.dtype(np.float32), 1
    return (
        lambda array: ((array.astype(np.float64) - low) / wide).clip(0, 1).astype(np.float32),
        np.dtype(np.float32),
        1,
    )
