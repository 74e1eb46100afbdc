"""Pictures that are coded, in a cell of a file or in a video: JPEG, PNG and what PyAV decodes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wmkit.data.recorded.contract import library, reading, refused

FORMATS = ("JPEG", "PNG")
LARGEST_SIDE = 8192


def decode(data: bytes, path: str, what: str) -> np.ndarray:
    """A picture uint8 ``[H, W, 3]``.

    Raises:
        DataError: it is no JPEG or PNG, torn, or larger than ``LARGEST_SIDE``.
    """
    with reading(path, what), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if max(image.size) > LARGEST_SIDE:
            raise refused(
                path, what, f"a picture of {image.size}", f"at most {LARGEST_SIDE} a side", "leave it out"
            )
        return np.asarray(image.convert("RGB"))


def decode_all(cells: Sequence[Any], path: str, what: str) -> np.ndarray:
    """Pictures of one size, uint8 ``[n, H, W, 3]``, from bytes or arrays of them."""
    images = [decode(bytes(cell), path, what) for cell in cells]
    if len({image.shape for image in images}) > 1:
        found = sorted({image.shape[:2] for image in images})[:2]
        raise refused(path, what, f"pictures of sizes {found}", "one size", "leave that episode out")
    return np.stack(images)


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Pictures ``[n, H, W, C]`` as ``[n, side, side, C]``, each new pixel the mean of those it covers."""
    if images.shape[1:3] == (side, side):
        return images
    flat = images[..., 0] if images.shape[-1] == 1 else images
    out = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX)) for image in flat]
    return np.stack(out).reshape(len(images), side, side, images.shape[-1])


class Video:
    """Frames of a video file, read forwards; going back opens it anew.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._av = library("av", "videos")
        self._frames: Iterator[Any] | None = None
        self._container: Any = None
        self._next = 0

    def read(self, start: int, count: int) -> np.ndarray:
        """Frames uint8 ``[count, H, W, 3]``.

        Raises:
            DataError: it has fewer, or is torn.
        """
        path, what = str(self.path), f"frames {start} to {start + count - 1}"
        with reading(path, what):
            if self._frames is None or start < self._next:
                self.close()
                self._container = self._av.open(path, mode="r")
                self._frames, self._next = self._container.decode(video=0), 0
            found = []
            for frame in self._frames:
                if max(frame.width, frame.height) > LARGEST_SIDE:
                    raise refused(
                        path, what, f"{frame.width} x {frame.height}", f"at most {LARGEST_SIDE}", "shrink it"
                    )
                if self._next >= start:
                    found.append(frame.to_ndarray(format="rgb24"))
                self._next += 1
                if len(found) == count:
                    return np.stack(found)
        raise refused(path, what, f"{self._next} frames in all", "as many as there are rows", "restore it")

    def close(self) -> None:
        """Let go of the file."""
        if self._container is not None:
            self._container.close()
        self._frames = self._container = None
