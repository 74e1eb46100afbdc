"""The layout of things: one seeded map of the embedded worlds, and the WAD that holds many of them.

A map is a square meadow under a sky, walled by a cliff, with soil and gravel patches, in the full
world also plateaus one block high, and actors placed by rejection sampling. It is written as UDMF text
(namespace ``zdoom``); the engine builds the BSP itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from wmkit.envs.vizdoom import art
from wmkit.envs.vizdoom.tasks import ACTORS, KINDS, Task
from wmkit.envs.vizdoom.wad import Lump, encode_png, pack_wad

FIRST_NUMBER = 20001  # editor numbers of our actors
Box = tuple[int, int, int, int, str, int]  # x, y, width, height, floor texture, elevation
WALK = 28  # map units that one step forward covers


@dataclass(frozen=True)
class World:
    """The numbers of a world size; lengths in map units.

    Attributes:
        name: ``small`` or ``full``.
        side: length of the square meadow.
        max_steps: default time limit.
        others: how many actors of each kind that is not the goal.
        plants: how many flowers, bushes and rocks.
        patches: flat patches of soil and gravel.
        plateaus: raised blocks.
        nearest: least distance from the start to a goal.
    """

    name: str
    side: int
    max_steps: int
    others: int
    plants: int
    patches: int
    plateaus: int
    nearest: int


WORLDS = {
    "small": World("small", side=512, max_steps=30, others=0, plants=5, patches=2, plateaus=0, nearest=160),
    "full": World("full", side=4096, max_steps=1000, others=4, plants=40, patches=8, plateaus=8, nearest=900),
}


@dataclass(frozen=True)
class Layout:
    """One generated map.

    Attributes:
        textmap: UDMF source.
        goals: ``(actor, x, y)`` of every goal as placed.
    """

    textmap: str
    goals: tuple[tuple[str, float, float], ...]


def generate(task: Task, world: World, distractors: int, rng: np.random.Generator) -> Layout:
    """Draw a map of ``world`` for ``task``, with ``distractors`` actors of each other kind.

    Trees make the scenery: where they are distractors there are three times as many.
    """
    half = world.side // 2
    taken: list[tuple[float, float, float]] = []  # x, y, radius

    def place(radius: float, gap: float, margin: float = 64, near: float = 0) -> tuple[int, int]:
        """A free spot; the gap shrinks as tries fail, so that a crowded map still gets its actors."""
        for attempt in range(400):
            room = gap * max(0.0, 1 - attempt / 300)
            edge = int(half - margin - radius)
            x, y = rng.integers(-edge, edge, 2).tolist()
            far = math.hypot(x - start[0], y - start[1])
            if far >= near * (1 - attempt / 800) and all(
                math.hypot(x - a, y - b) > radius + r + room for a, b, r in taken
            ):
                break
        taken.append((x, y, radius))
        return x, y

    start = rng.integers(-half + 160, half - 160, 2).tolist()
    taken.append((*start, 64))
    plateaus = [
        (*place(size * 0.75, 128), size) for size in (rng.integers(2, 5, world.plateaus) * 64).tolist()
    ]
    things = []
    for name in rng.choice(task.actors, task.goals[world.name]).tolist():
        things.append((name, *place(ACTORS[name].radius, 192, near=world.nearest)))
    placed = tuple(things)
    for kind in KINDS:
        names = [actor.name for actor in ACTORS.values() if actor.kind == kind]
        count = 0 if kind == task.kind else distractors * (3 if kind == "tree" else 1)
        for name in rng.choice(names, count).tolist():
            things.append((name, *place(ACTORS[name].radius, 160)))
    plants = [actor.name for actor in ACTORS.values() if actor.kind == "plant"]
    for name in rng.choice(plants, world.plants).tolist():
        things.append((name, *place(ACTORS[name].radius, 48)))
    # Patches lie flat and never overlap: one per cell of a coarse grid, clear of the plateaus.
    patches: list[Box] = []
    cells = [
        (cx, cy) for cx in range(-half + 64, half - 383, 320) for cy in range(-half + 64, half - 383, 320)
    ]
    for index in rng.permutation(len(cells)).tolist():
        if len(patches) == world.patches:
            break
        x, y = cells[index]
        w, h = (rng.integers(2, 5, 2) * 64).tolist()
        if all(
            abs(x + w / 2 - a) > (w + s) / 2 + 16 or abs(y + h / 2 - b) > (h + s) / 2 + 16
            for a, b, s in plateaus
        ):
            patches.append((x, y, w, h, str(rng.choice(["WMSOIL", "WMSTONE"])), 0))
    raised = [(int(a - s // 2), int(b - s // 2), s, s, "WMGRASS", 32) for a, b, s in plateaus]
    text = _textmap(half, patches + raised, things, (*start, int(rng.integers(0, 360))))
    return Layout(text, placed)


def _textmap(
    half: int,
    boxes: Sequence[Box],
    things: Sequence[tuple[str, int, int]],
    start: tuple[int, int, int],
) -> str:
    """UDMF of a square room with rectangular sectors in it."""
    out = ['namespace="zdoom";']

    def block(name: str, **fields: object) -> None:
        body = "".join(f"{key}={json.dumps(value)};" for key, value in fields.items())
        out.append(f"{name}{{{body}}}")

    def sector(floor: str, height: int) -> None:
        block(
            "sector",
            heightfloor=height,
            heightceiling=192,
            texturefloor=floor,
            textureceiling="F_SKY1",
            lightlevel=255,
        )

    sector("WMGRASS", 0)
    corners = [
        (-half, -half),
        (-half, half),
        (half, half),
        (half, -half),
    ]  # clockwise: the front faces inwards
    for x, y in corners:
        block("vertex", x=float(x), y=float(y))
    for i in range(4):
        block("linedef", v1=i, v2=(i + 1) % 4, sidefront=i, blocking=True)
        block("sidedef", sector=0, texturemiddle="WMCLIFF")
    sides = 4
    for number, (x, y, w, h, floor, height) in enumerate(boxes, 1):
        sector(floor, height)
        first = 4 * number
        for a, b in (
            (x, y),
            (x + w, y),
            (x + w, y + h),
            (x, y + h),
        ):  # counterclockwise: the front faces outwards
            block("vertex", x=float(a), y=float(b))
        for i in range(4):
            block(
                "linedef",
                v1=first + i,
                v2=first + (i + 1) % 4,
                sidefront=sides,
                sideback=sides + 1,
                twosided=True,
            )
            block("sidedef", sector=0, texturebottom="WMDIRT")
            block("sidedef", sector=number)
            sides += 2
    flags = {f"skill{i}": True for i in range(1, 6)} | {"single": True}
    block("thing", x=float(start[0]), y=float(start[1]), angle=start[2], type=1, **flags)
    numbers = {name: FIRST_NUMBER + i for i, name in enumerate(ACTORS)}
    for index, (name, x, y) in enumerate(things):
        block("thing", x=float(x), y=float(y), angle=index * 45 % 360, type=numbers[name], **flags)
    return "\n".join(out)


PLAYER = """\
actor WmPlayer : PlayerPawn
{
  Player.DisplayName "Explorer"
  Player.JumpZ 9
  Player.ForwardMove @walk@, @walk@
  Player.SideMove @side@, @side@
  Speed 1
  Health 100
  Radius 16
  Height 56
  Mass 1000
  +NODAMAGE
  +NOSKIN
  States
  {
  Spawn:
    TNT1 A -1
    Stop
  See:
    TNT1 A 1
    TNT1 A 1 A_ChangeVelocity(0, 0, velz, 2)
    Goto See+1
  Pain:
  Death:
    TNT1 A 1
    Goto Spawn
  }
}
"""

MAPINFO = """\
gameinfo
{
  playerclasses = "WmPlayer"
}
"""

MAP = """\
map MAP%02d "World"
{
  sky1 = "WMSKY", 0
  allowjump
  nocrouch
  aircontrol = 1.0
}
"""


def _decorate() -> str:
    """The actors, one property per line: on one line they crash the engine."""
    # Velocity is cleared every tic, so that a step is one thrust: 0.78 or 0.75 units at multiplier 1.
    out = [PLAYER.replace("@walk@", f"{WALK / 0.78125:.4f}").replace("@side@", f"{WALK / 0.75:.4f}")]
    for index, actor in enumerate(ACTORS.values()):
        moving = actor.kind == "sheep"
        properties = [
            f"Radius {actor.radius}",
            f"Height {actor.height}",
            f"XScale {art.TEXEL}",
            f"YScale {art.TEXEL}",
            *(["+SOLID"] if actor.solid else []),
            *(["Speed 3", "Mass 1000", "MaxStepHeight 8"] if moving else []),
        ]
        states = (
            [f"{actor.sprite} A 6 A_Wander", f"{actor.sprite} B 6 A_Wander", "Loop"]
            if moving
            else [f"{actor.sprite} A -1", "Stop"]
        )
        lines = [f"actor {actor.name} {FIRST_NUMBER + index}", "{", *(f"  {p}" for p in properties)]
        lines += ["  States", "  {", "  Spawn:", *(f"    {s}" for s in states), "  }", "}"]
        out.append("\n".join(lines) + "\n")
    return "\n".join(out)


@cache
def _shared_lumps() -> tuple[Lump, ...]:
    """Actors, colours and pictures, the same in every WAD."""
    paint = art.paint()
    lumps = [
        ("DECORATE", _decorate().encode()),
        *zip(("PLAYPAL", "COLORMAP"), art.colour_lumps(), strict=True),
    ]
    textures = ((name, encode_png(a, paint.colors)) for name, a in paint.textures.items())
    lumps += [("TX_START", b""), *textures, ("TX_END", b"")]
    sprites = (
        (name, encode_png(a, paint.colors, (a.shape[1] // 2, a.shape[0])))
        for name, a in paint.sprites.items()
    )
    lumps += [("S_START", b""), *sprites, ("S_END", b"")]
    return tuple(lumps)


def wad(layouts: Sequence[Layout]) -> bytes:
    """A PWAD with the layouts as MAP01, MAP02, … (at most 99)."""
    maps: list[Lump] = []
    for number, layout in enumerate(layouts, 1):
        maps += [(f"MAP{number:02d}", b""), ("TEXTMAP", layout.textmap.encode()), ("ENDMAP", b"")]
    info = MAPINFO + "".join(MAP % number for number in range(1, len(layouts) + 1))
    return pack_wad([*maps, ("MAPINFO", info.encode()), *_shared_lumps()])
