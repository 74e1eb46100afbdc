"""Pictures of the embedded worlds, drawn with numpy: one texel is 4 map units, 16 texels a block.

Textures are uint8 ``[64, 64, 3]`` (a block face, each texel 4 pixels wide, so that one pixel is one
map unit). Sprites are uint8 ``[H, W, 4]`` in texels, standing on their last row; the actors scale them
by 4. Everything comes from fixed seeds: the same pictures in every world.

The engine shows 256 colours and never shades them. They are dealt out among the kinds of actors, each
kind's marked in the low bits of red: a frame holds the exact mask of every kind, and the engine need not
render its labels buffer, which would cost as much as the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from wmkit.envs.vizdoom.tasks import ACTORS

Color = tuple[int, int, int]
TEXEL = 4  # map units

GRASS, DIRT, STONE, SAND, WATER = (
    (96, 158, 58),
    (134, 96, 67),
    (125, 125, 125),
    (222, 208, 150),
    (48, 96, 220),
)
OAK_BARK, BIRCH_BARK, OAK_LEAF, BIRCH_LEAF = (104, 80, 48), (216, 214, 206), (44, 104, 28), (92, 142, 62)
WOOL, SKIN, IRON, CLIFF = (236, 236, 232), (206, 160, 142), (216, 160, 116), (96, 98, 104)


def _noise(shape: tuple[int, int], color: Color, spread: float, seed: int) -> np.ndarray:
    """Texels ``[h, w, 3]`` of one colour with brightness noise of standard deviation ``spread``."""
    grain = np.random.default_rng(seed).normal(0, spread, shape)[..., None]
    return np.clip(np.asarray(color) + grain, 0, 255)


def _sprite(shape: tuple[int, int]) -> np.ndarray:
    return np.zeros((*shape, 4), np.uint8)


def _paint(canvas: np.ndarray, mask: np.ndarray, color: Color, spread: float, seed: int) -> None:
    """Fill ``mask`` ``[h, w]`` of an RGBA canvas with grainy ``color``."""
    texels = _noise(canvas.shape[:2], color, spread, seed)
    canvas[mask, :3] = texels[mask].astype(np.uint8)
    canvas[mask, 3] = 255


def _box(canvas: np.ndarray, x: int, y: int, w: int, h: int, color: Color, spread: float, seed: int) -> None:
    mask = np.zeros(canvas.shape[:2], bool)
    mask[y : y + h, x : x + w] = True
    _paint(canvas, mask, color, spread, seed)


def _shade(canvas: np.ndarray, rows: slice, columns: slice, factor: float) -> None:
    part = canvas[rows, columns, :3]
    canvas[rows, columns, :3] = np.clip(part * factor, 0, 255).astype(np.uint8)


def _face(texels: np.ndarray) -> np.ndarray:
    return texels.repeat(TEXEL, 0).repeat(TEXEL, 1).astype(np.uint8)  # [64, 64, 3]


@cache
def textures() -> dict[str, np.ndarray]:
    """Floors, walls and sky by their 8-letter names."""
    grass = _noise((16, 16), GRASS, 9, 1)
    dirt = _noise((16, 16), DIRT, 11, 2)
    side = dirt.copy()
    fringe = np.random.default_rng(3).integers(2, 5, 16)  # grass hanging over a dirt wall
    for column, depth in enumerate(fringe):
        side[:depth, column] = grass[:depth, column]
    stone = _noise((16, 16), STONE, 9, 4)
    cliff = _noise((16, 16), CLIFF, 8, 5)
    cliff[7::8] *= 0.8
    cliff[:8, 5] *= 0.8
    cliff[8:, 12] *= 0.8
    water = _noise((16, 16), WATER, 6, 6)
    water[3::6, 2:9] += 30
    water[5::6, 9:14] += 22
    return {
        "WMGRASS": _face(grass),
        "WMDIRT": _face(side),
        "WMSOIL": _face(dirt),
        "WMSTONE": _face(stone),
        "WMCLIFF": _face(cliff),
        "WMSAND": _face(_noise((16, 16), SAND, 7, 7)),
        "WMWATER": _face(np.clip(water, 0, 255)),
        "WMSKY": _sky(),
    }


def _sky(width: int = 256, height: int = 128) -> np.ndarray:
    """Pale at the horizon, blue above, with square clouds; ``[height, width, 3]``."""
    t = np.linspace(0, 1, height)[:, None, None]
    sky = np.broadcast_to(
        (1 - t) * np.array([110, 164, 246.0]) + t * np.array([186, 214, 252.0]), (height, width, 3)
    )
    sky = sky.copy()
    rng = np.random.default_rng(8)
    for _ in range(16):
        w, h = rng.integers(3, 8) * 6, rng.integers(1, 3) * 4
        x, y = rng.integers(0, width - w), rng.integers(20, height - 40)
        sky[y : y + h, x : x + w] = 246
    return sky.astype(np.uint8)


def _tree(bark: Color, leaf: Color, seed: int, birch: bool = False) -> np.ndarray:
    canvas = _sprite((54, 36))
    _box(canvas, 13, 20, 10, 34, bark, 9, seed)
    if birch:  # dark scars on pale bark
        for x, y in ((14, 38), (19, 42), (15, 46), (20, 50), (18, 36)):
            _box(canvas, x, y, 3, 1, (70, 66, 60), 4, seed)
    else:
        canvas[24:, 15::3, :3] = (canvas[24:, 15::3, :3] * 0.72).astype(np.uint8)
    _shade(canvas, slice(20, 54), slice(20, 23), 0.75)
    rng = np.random.default_rng(seed)
    for x, y, w, h in ((8, 0, 20, 12), (0, 8, 36, 22)):
        _box(canvas, x, y, w, h, leaf, 13, seed + 1)
    rows, columns = np.arange(30)[:, None], np.arange(36)[None]
    border = (rows > 26) | (columns < 2) | (columns > 33)
    canvas[:30][border & (rng.random((30, 36)) < 0.4)] = 0  # ragged edge
    canvas[:30, :, :3] = (canvas[:30, :, :3] * np.where(rng.random((30, 36, 1)) < 0.2, 0.7, 1)).astype(
        np.uint8
    )
    _shade(canvas, slice(22, 30), slice(0, 36), 0.8)
    if birch:
        _box(canvas, 13, 30, 10, 1, (170, 168, 160), 3, seed)
    return canvas


def _sheep(view: str, step: int) -> np.ndarray:
    """``view`` is ``"front"``, ``"side"`` (facing left) or ``"back"``; ``step`` 0 or 1 swings the legs."""
    canvas = _sprite((17, 24 if view == "side" else 14))
    if view == "side":
        legs = (7, 18) if step == 0 else (9, 16)
        for x in legs:
            _box(canvas, x, 12, 3, 5, SKIN, 6, 21)
        _box(canvas, 5, 3, 18, 10, WOOL, 8, 22)
        _shade(canvas, slice(10, 13), slice(5, 23), 0.82)
        _box(canvas, 0, 1, 7, 7, SKIN, 6, 23)
        _box(canvas, 2, 0, 6, 3, WOOL, 6, 24)
        canvas[4, 2, :3] = 20
    else:
        for x in (2, 9):
            _box(canvas, x, 12, 3, 5 - (step if x == 2 else 0), SKIN, 6, 21)
        _box(canvas, 0, 2, 14, 11, WOOL, 8, 25)
        _shade(canvas, slice(10, 13), slice(0, 14), 0.82)
        if view == "front":
            _box(canvas, 3, 1, 8, 8, SKIN, 6, 26)
            _box(canvas, 3, 0, 8, 3, WOOL, 6, 27)
            canvas[4, (4, 9), :3] = 20
    return canvas


def _cube(face: np.ndarray, top: np.ndarray) -> np.ndarray:
    """A block seen a little from above: the front face under a foreshortened, brighter top."""
    size, depth = face.shape[1], 5
    canvas = _sprite((face.shape[0] + depth, size))
    canvas[:depth, :, :3] = np.clip(top[:depth] * 1.18, 0, 255)
    canvas[depth:, :, :3] = face
    canvas[..., 3] = 255
    canvas[0, :2, 3] = canvas[0, -2:, 3] = 0
    canvas[1, :1, 3] = canvas[1, -1:, 3] = 0
    return canvas


def _ore() -> np.ndarray:
    face, top = _noise((17, 20), STONE, 8, 31), _noise((5, 20), STONE, 8, 32)
    for x, y, w, h in (
        (2, 2, 4, 3),
        (11, 1, 5, 3),
        (6, 7, 5, 3),
        (14, 8, 4, 3),
        (2, 12, 4, 3),
        (10, 13, 5, 2),
    ):
        face[y : y + h, x : x + w] = _noise((h, w), IRON, 10, x)
        face[y + h - 1, x : x + w] *= 0.75
    top[1:3, 4:8] = top[2:4, 13:16] = IRON
    return _cube(face, top)


def _sand() -> np.ndarray:
    """A heap of sand blocks: three below, one on top."""
    canvas = _sprite((19, 32))
    block = _cube(_noise((9, 16), SAND, 7, 41), _noise((5, 16), SAND, 5, 42))
    block[-1, :, :3] = (block[-1, :, :3] * 0.85).astype(np.uint8)
    block[5:, -1, :3] = (block[5:, -1, :3] * 0.85).astype(np.uint8)
    for x, y in ((8, 0), (0, 5), (16, 5)):
        area = canvas[y : y + 14, x : x + 16]
        np.copyto(area, block, where=block[..., 3:] > 0)
    return canvas


def _water() -> np.ndarray:
    """A round stone-rimmed basin, brim-full, with a blue spring rising from it."""
    canvas = _sprite((18, 34))
    y, x = np.mgrid[:18, :34]
    ellipse = ((x - 16.5) / 17) ** 2 + ((y - 12) / 5.6) ** 2
    _paint(canvas, ellipse <= 1, STONE, 9, 51)
    _paint(canvas, (ellipse <= 1) & (y > 13), (100, 100, 102), 8, 52)
    _paint(canvas, ((x - 16.5) / 14.5) ** 2 + ((y - 11) / 3.8) ** 2 <= 1, WATER, 8, 53)
    _box(canvas, 13, 2, 8, 10, (70, 130, 240), 10, 54)
    _box(canvas, 15, 0, 4, 9, (150, 196, 255), 8, 55)
    _box(canvas, 11, 4, 12, 2, (110, 164, 250), 8, 56)
    return canvas


def _flower(petal: Color, seed: int) -> np.ndarray:
    canvas = _sprite((8, 6))
    _box(canvas, 2, 3, 1, 5, (40, 110, 30), 5, seed)
    _box(canvas, 1, 0, 4, 4, petal, 8, seed + 1)
    _box(canvas, 2, 1, 2, 2, (250, 220, 80), 4, seed + 2)
    return canvas


def _lump(shape: tuple[int, int], color: Color, spread: float, seed: int) -> np.ndarray:
    """A flat-bottomed half ellipse: bushes and rocks."""
    canvas = _sprite(shape)
    h, w = shape
    y, x = np.mgrid[:h, :w]
    _paint(canvas, ((x - (w - 1) / 2) / (w / 2)) ** 2 + ((y - h) / h) ** 2 <= 1, color, spread, seed)
    _shade(canvas, slice(h * 2 // 3, h), slice(0, w), 0.8)
    return canvas


@cache
def sprites() -> dict[str, np.ndarray]:
    """Sprite lumps by name: 4 letters, a frame and a rotation (0: the same from everywhere)."""
    pictures = {
        "WOAKA0": _tree(OAK_BARK, OAK_LEAF, 11),
        "WBIRA0": _tree(BIRCH_BARK, BIRCH_LEAF, 14, birch=True),
        "WOREA0": _ore(),
        "WSNDA0": _sand(),
        "WWATA0": _water(),
        "WREDA0": _flower((206, 44, 40), 61),
        "WYELA0": _flower((236, 196, 48), 64),
        "WBUSA0": _lump((9, 15), (58, 122, 44), 14, 67),
        "WROKA0": _lump((8, 14), (140, 140, 142), 9, 68),
    }
    for frame, step in (("A", 0), ("B", 1)):
        for rotations, view in (
            ("1", "front"),
            ("2{0}8", "side"),
            ("3{0}7", "side"),
            ("4{0}6", "side"),
            ("5", "back"),
        ):
            pictures[f"WSHP{frame}{rotations.format(frame)}"] = _sheep(view, step)
    return pictures


# How many of the 255 visible colours belong to whom, in the order of their codes: the low three bits
# of red. No colour of one kind of actor appears anywhere else, so a frame carries its own masks.
SHARES = {"land": 110, "tree": 40, "water": 20, "sand": 16, "sheep": 24, "ore": 25, "plant": 20}
CODES = {kind: code for code, kind in enumerate(SHARES)}
CODE_BITS = 7


@dataclass(frozen=True)
class Paint:
    """The pictures in palette indices, and the palette.

    Attributes:
        colors: uint8 ``[256, 3]``; index 0 is transparent in sprites.
        textures: uint8 ``[H, W]`` indices by lump name.
        sprites: uint8 ``[H, W]`` indices by lump name.
    """

    colors: np.ndarray
    textures: dict[str, np.ndarray]
    sprites: dict[str, np.ndarray]


@cache
def paint() -> Paint:
    """Choose each share's colours from its own pictures and express the pictures in them."""
    kinds = {actor.sprite: actor.kind for actor in ACTORS.values()}
    pictures = {name: ("land", picture) for name, picture in textures().items()}
    pictures |= {name: (kinds[name[:4]], picture) for name, picture in sprites().items()}
    colors = np.zeros((256, 3), np.uint8)
    out: dict[str, np.ndarray] = {}
    first = 1
    for kind, count in SHARES.items():
        mine = {name: picture for name, (owner, picture) in pictures.items() if owner == kind}
        found = _choose(list(mine.values()), count, CODES[kind])  # [count or fewer, 3]
        colors[first : first + len(found)] = found
        for name, picture in mine.items():
            distance = ((picture[..., None, :3].astype(int) - found.astype(int)) ** 2).sum(
                -1
            )  # [H, W, count]
            opaque = picture[..., 3] > 0 if picture.shape[2] == 4 else True
            out[name] = np.where(opaque, distance.argmin(-1) + first, 0).astype(np.uint8)
        first += count
    return Paint(colors, {name: out[name] for name in textures()}, {name: out[name] for name in sprites()})


def _choose(pictures: list[np.ndarray], count: int, code: int) -> np.ndarray:
    """At most ``count`` colours for ``pictures``, red ending in ``code``; uint8 ``[n, 3]``."""
    pixels = np.concatenate(
        [a[a[..., -1] > 0][:, :3] if a.shape[2] == 4 else a.reshape(-1, 3) for a in pictures]
    )
    chosen = Image.fromarray(pixels[None]).quantize(count, Image.Quantize.MEDIANCUT, kmeans=2)
    found = np.array(chosen.getpalette(), float).reshape(-1, 3)[:count]
    found[:, 0] = np.clip(np.round((found[:, 0] - code) / 8), 0, 31) * 8 + code
    return found.astype(np.uint8)


def kind_mask(frame: np.ndarray, kind: str) -> np.ndarray:
    """Exactly the pixels of a kind of actor, bool ``[1, H, W]``, from a frame uint8 ``[3, H, W]``."""
    return (frame[:1] & CODE_BITS) == CODES[kind]


def colour_lumps() -> tuple[bytes, bytes]:
    """PLAYPAL (the same 14 times: no red flash of pain) and COLORMAP (34 times: no darkening)."""
    return paint().colors.tobytes() * 14, bytes(range(256)) * 34
