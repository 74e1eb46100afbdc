"""Frames and maps as inline images (data URIs)."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

# Dark to bright, perceptually even enough for a heat map; anchors at equal distances.
_ANCHORS = np.array(
    [(0, 0, 4), (64, 10, 103), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)]
)

_LINE = 2  # between frames of one picture, in its pixels


def heat(values: np.ndarray) -> np.ndarray:
    """Map ``[H, W]`` in [0, 1] to colours, uint8 ``[H, W, 3]``.

    >>> heat(np.array([[0.0, 1.0]]))[0].tolist()
    [[0, 0, 4], [252, 255, 164]]
    """
    place = np.clip(values.astype(np.float64), 0, 1) * (len(_ANCHORS) - 1)
    channels = [np.interp(place, np.arange(len(_ANCHORS)), _ANCHORS[:, c]) for c in range(3)]
    return np.round(np.stack(channels, -1)).astype(np.uint8)


def overlay(frame: np.ndarray, values: np.ndarray, strength: float = 0.75) -> np.ndarray:
    """A map over its frame: opaque where the map is high, the greyed frame where it is low.

    Args:
        frame: uint8 ``[H, W, 3]``.
        values: ``[H, W]`` in [0, 1].
        strength: opacity where the map is 1.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    values = np.clip(values.astype(np.float32), 0, 1)[..., None]
    grey = frame.astype(np.float32).mean(-1, keepdims=True) * 0.55 + frame.astype(np.float32) * 0.25
    alpha = 0.25 + (strength - 0.25) * values
    return (alpha * heat(values[..., 0]) + (1 - alpha) * grey).astype(np.uint8)


def outline_mask(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The frame dimmed outside an object mask ``[H, W]``, which stands out in its own colours."""
    dim = (frame.astype(np.float32) * 0.35).astype(np.uint8)
    return np.where(mask[..., None], np.maximum(frame, (frame * 0.4 + 150).astype(np.uint8)), dim)


def image(pixels: np.ndarray, *, photo: bool = False, **attributes: Any) -> str:
    """An ``<img>`` with the picture inside.

    Args:
        pixels: uint8 ``[H, W, 3]``, or ``[H, W, 1]`` in grey.
        photo: JPEG instead of PNG, for large frames.
        attributes: further HTML attributes.

    >>> image(np.zeros((2, 2, 1), np.uint8))[:26]
    '<img src="data:image/png;b'
    """
    buffer = io.BytesIO()
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    kind = "jpeg" if photo else "png"
    picture.save(buffer, format=kind, **({"quality": 88} if photo else {"optimize": True}))
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    extra = "".join(f' {name.rstrip("_")}="{value}"' for name, value in attributes.items())
    return f'<img src="data:image/{kind};base64,{data}" alt=""{extra}>'


def channels_last(images: Any, limits: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Images ``[..., C, H, W]``, of any type and number of channels, to uint8 ``[..., H, W, C]``.

    Args:
        images: uint8 as they are; others are scaled.
        limits: what becomes 0 and 255 of those; see :func:`limits_of`. NaN becomes 0.

    >>> channels_last(np.array([[[-1.0, 0.0, 0.5, 1.0]]])).ravel().tolist()
    [0, 0, 128, 255]
    """
    array = _numpy(images)
    if array.dtype != np.uint8:
        low, high = limits
        scaled = (array.astype(np.float32) - low) / ((high - low) or 1.0)
        array = np.round(np.clip(np.nan_to_num(scaled), 0, 1) * 255).astype(np.uint8)
    return np.moveaxis(array, -3, -1)


def limits_of(images: Any) -> tuple[float, float]:
    """Between which values images lie: 0 and 1, but for numbers outside, which are taken from least to most.

    >>> limits_of(np.array([0.2, 0.9])), limits_of(np.array([-3.0, 9.0, np.inf]))
    ((0.0, 1.0), (-3.0, 9.0))
    """
    array = _numpy(images)
    if array.dtype == np.uint8:
        return 0.0, 255.0
    finite = array[np.isfinite(array)].astype(np.float64)
    if not finite.size or (finite.min() >= 0 and finite.max() <= 1):
        return 0.0, 1.0
    return float(finite.min()), float(finite.max())


def tiled(picture: np.ndarray, limit: int = 16) -> np.ndarray:
    """A picture of any number of channels as one that can be seen.

    Three channels are colours and one is grey. A multiple of three is that many coloured frames, any other
    number that many grey ones; they are laid out in rows with white lines between, the newest last.

    Args:
        picture: uint8 ``[H, W, C]``.
        limit: frames at most, the last ones.

    Returns:
        uint8 ``[H', W', 3]``, or 1 channel in grey.

    >>> [tiled(np.zeros((64, 64, c), np.uint8)).shape for c in (1, 2, 3, 4, 12)]
    [(64, 64, 1), (64, 130, 1), (64, 64, 3), (130, 130, 1), (130, 130, 3)]
    """
    height, width, channels = picture.shape
    own = 3 if channels % 3 == 0 else 1
    frames = np.moveaxis(picture.reshape(height, width, channels // own, own), 2, 0)[-limit:]
    columns = math.ceil(math.sqrt(len(frames)))
    rows = -(-len(frames) // columns)
    high, wide = height + _LINE, width + _LINE
    sheet = np.full((rows * high, columns * wide, own), 255, np.uint8)
    for index, frame in enumerate(frames):
        top, left = index // columns * high, index % columns * wide
        sheet[top : top + height, left : left + width] = frame
    return sheet[:-_LINE, :-_LINE]


def reduced(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture ``[H, W, C]``, uint8 of 1 or 3 channels, no wider and no higher than ``side``."""
    factor = side / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = (max(round(picture.shape[1] * factor), 1), max(round(picture.shape[0] * factor), 1))
    grey = picture.shape[-1] == 1
    small = Image.fromarray(picture[..., 0] if grey else picture).resize(size, Image.Resampling.BOX)
    return np.asarray(small)[..., None] if grey else np.asarray(small)


def _numpy(values: Any) -> np.ndarray:
    return (
        values.detach().float().cpu().numpy()
        if getattr(values, "is_floating_point", bool)()
        else (np.asarray(values.detach().cpu() if hasattr(values, "detach") else values))
    )
