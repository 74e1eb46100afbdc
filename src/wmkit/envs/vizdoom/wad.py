"""PWAD archives and PNG graphics as ZDoom reads them.

A WAD is a 12-byte header ``(b"PWAD", number of lumps, directory offset)``, the lumps one after
another, and a directory of 16-byte entries ``(offset, size, name[8])``, all little-endian.
A sprite's origin (the point of the picture that stands at the actor's feet) travels in a PNG chunk
``grAb`` of two big-endian int32, x and y in pixels from the top left.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

Lump = tuple[str, bytes]


def pack_wad(lumps: Iterable[Lump]) -> bytes:
    """Join named lumps, in order, into one PWAD.

    Args:
        lumps: ``(name, content)``; names have at most 8 characters and may repeat.

    >>> pack_wad([("MAP01", b""), ("TEXTMAP", b"x")])[:12]
    b'PWAD\\x02\\x00\\x00\\x00\\r\\x00\\x00\\x00'
    """
    body, directory = bytearray(), bytearray()
    count = 0
    for name, content in lumps:
        directory += struct.pack("<ii8s", 12 + len(body), len(content), name.encode("ascii"))
        body += content
        count += 1
    return struct.pack("<4sii", b"PWAD", count, 12 + len(body)) + bytes(body) + bytes(directory)


def encode_png(indices: np.ndarray, colors: np.ndarray, origin: tuple[int, int] | None = None) -> bytes:
    """A PNG with a palette: a texture, or with an ``origin`` a sprite.

    Only PNGs with a palette keep their exact colours: the engine rounds others to 5 bits a channel.

    Args:
        indices: uint8 ``[H, W]``; in a sprite, 0 is transparent.
        colors: uint8 ``[256, 3]``.
        origin: ``(x, y)`` in pixels from the top left, or None for a texture.
    """
    image = Image.fromarray(indices, "P")
    image.putpalette(colors.tobytes())
    stream = io.BytesIO()
    if origin is None:
        image.save(stream, "PNG")
        return stream.getvalue()
    image.save(stream, "PNG", transparency=0)
    png = stream.getvalue()
    chunk = b"grAb" + struct.pack(">ii", *origin)
    chunk = struct.pack(">i", 8) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:33] + chunk + png[33:]  # 8 bytes of signature, 25 of IHDR
