"""Frames and maps as inline images (data URIs)."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

# Dark to bright, perceptually even enough for a heat map; anchors at equal distances.
_ANCHORS = np.array(
    [(0, 0, 4), (64, 10, 103), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)]
)


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


def channels_last(images: Any) -> np.ndarray:
    """Images ``[..., 3, H, W]``, uint8 or float in [0, 1], to uint8 ``[..., H, W, 3]``."""
    array = images.detach().cpu().numpy() if hasattr(images, "detach") else np.asarray(images)
    if array.dtype != np.uint8:
        array = np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return np.moveaxis(array, -3, -1)
