"""An episode in one file, with all that the game said: how somebody with Minecraft shows what it is like.

A zip archive of three kinds of members, nothing of which executes:

    recording.json     format, version, task, simulator, sizes, where it was made
    steps.jsonl        a line per moment, the reset first: ``action`` (pressed keys, or eight numbers; null),
                       ``raw`` (the game's JSON, as it came), ``reward``, ``success``, ``over``
    frames/00000.png   the picture of each moment, 160 x 256, RGB

``raw`` is the contract between Malmo and MineDojo; :func:`missing` says which of its keys a moment lacks.
"""

from __future__ import annotations

import io
import json
import platform
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from wmkit.envs.minedojo.observations import Report
from wmkit.envs.minedojo.tasks import HEIGHT, WIDTH
from wmkit.errors import ConfigError

FORMAT, VERSION = "wmkit minecraft recording", 1
MOST_MOMENTS, MOST_BYTES = 10_000, 4 * 2**20
SLOTS = 41  # 36 of the inventory, 4 of armour, 1 of the other hand
DEMANDED = ("inventory", "nearby_crafting_table", "nearby_furnace", "xpos", "ypos", "zpos")
"""Without these MineDojo's handlers raise."""

DEFAULTED = (
    *(
        "life",
        "armor",
        "food",
        "saturation",
        "xp",
        "air",
        "is_sleeping",
        "yaw",
        "pitch",
        "biome_id",
        "sea_level",
    ),
    *(
        "light_level",
        "sky_light_level",
        "sun_brightness",
        "rainfall",
        "temperature",
        "can_see_sky",
        "is_raining",
    ),
)
"""Without these they take a default."""

SLOT = {
    "name": str,
    "variant": int,
    "quantity": int,
    "max_durability": int | float,
    "cur_durability": int | float,
}


@dataclass(frozen=True)
class Moment:
    """One line of a recording.

    Attributes:
        action: that led here; None at the reset.
        raw: what the game said.
        reward: of the simulator.
        success: of the simulator.
        over: whether it ended the episode.
        frame: uint8 ``[3, 160, 256]``.
    """

    action: Any
    raw: dict[str, Any]
    reward: float
    success: bool
    over: bool
    frame: np.ndarray


class Recorder:
    """Writes a recording, moment by moment; use it in a ``with`` block.

    Args:
        path: of the file.
        task: that is played.
        simulator: its name and version, and what else is known.

    Raises:
        ConfigError: there is such a file already.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "episode.zip")
    >>> report = Report(np.zeros((3, 160, 256), np.uint8), {}, raw={"life": 20})
    >>> with Recorder(path, "harvest_sand", {"name": "none"}) as recorder:
    ...     recorder.add(None, report)
    >>> [moment.raw for moment in Recording.open(path).moments()]
    [{'life': 20}]
    """

    def __init__(self, path: Path, task: str, simulator: Mapping[str, Any]) -> None:
        try:
            self._archive = zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED)
        except FileExistsError as error:
            raise ConfigError(
                f"recording {str(path)!r} is there already: wanted a new file; choose another name"
            ) from error
        self._lines: list[str] = []
        self._head = {
            "format": FORMAT,
            "version": VERSION,
            "task": task,
            "simulator": dict(simulator),
            "height": HEIGHT,
            "width": WIDTH,
            "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        }

    def add(self, action: Any, report: Report) -> None:
        """The next moment: what was done and what came of it."""
        picture = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(report.frame.transpose(1, 2, 0))).save(picture, "png")
        self._archive.writestr(_frame(len(self._lines)), picture.getvalue(), zipfile.ZIP_STORED)
        line = {"action": action, "raw": report.raw or {}, "reward": report.reward}
        self._lines.append(json.dumps({**line, "success": report.success, "over": report.over}))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._archive.writestr("steps.jsonl", "".join(line + "\n" for line in self._lines))
        self._archive.writestr(
            "recording.json", json.dumps({**self._head, "moments": len(self._lines)}, indent=1)
        )
        self._archive.close()


class Recording:
    """A recording that was opened: ``head`` and its moments.

    Args:
        path: of the file.
        head: what ``recording.json`` says.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path, self.head = path, head

    @classmethod
    def open(cls, path: Path) -> Recording:
        """Read the head.

        Raises:
            ConfigError: it is no recording, or of a later version.
        """
        with _readable(path), zipfile.ZipFile(path) as archive:
            head = json.loads(_member(archive, "recording.json"))
            if head["format"] != FORMAT or head["version"] != VERSION:
                raise ValueError(f"format {head['format']!r} {head['version']!r}")
            if not 0 < int(head["moments"]) <= MOST_MOMENTS:
                raise ValueError(f"{head['moments']!r} moments")
            if [head["height"], head["width"]] != [HEIGHT, WIDTH]:
                raise ValueError(f"pictures of {head['height']} x {head['width']}")
        return cls(path, head)

    def moments(self) -> Iterator[Moment]:
        """Moments in order.

        Raises:
            ConfigError: one is missing or torn.
        """
        with (
            _readable(self.path),
            zipfile.ZipFile(self.path) as archive,
            archive.open("steps.jsonl") as lines,
        ):
            for index in range(int(self.head["moments"])):
                line = json.loads(lines.readline(MOST_BYTES))
                with Image.open(io.BytesIO(_member(archive, _frame(index))), formats=("png",)) as image:
                    if image.size != (WIDTH, HEIGHT):
                        raise ValueError(f"a picture of {image.size}")
                    frame = np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy()
                if not isinstance(line["raw"], dict):
                    raise ValueError("a moment without the game's values")
                yield Moment(
                    line["action"],
                    line["raw"],
                    float(line["reward"]),
                    bool(line["success"]),
                    bool(line["over"]),
                    frame,
                )


def missing(raw: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What a moment lacks of the contract: what MineDojo demands, and what it takes a default for.

    >>> missing({"inventory": [], "xpos": 0.0})[0]
    ['inventory of 41 slots', 'nearby_crafting_table', 'nearby_furnace', 'ypos', 'zpos']
    """
    demanded = [key for key in DEMANDED if key not in raw]
    slots = raw.get("inventory")
    if slots is not None:
        own = [s for s in slots if isinstance(s, Mapping) and s.get("inventory") == "inventory"]
        if len(own) != SLOTS:
            demanded.insert(0, f"inventory of {SLOTS} slots")
        wrong = {key for slot in own for key, kind in SLOT.items() if not isinstance(slot.get(key), kind)}
        demanded += [f"inventory's {key}" for key in sorted(wrong)]
    return demanded, [key for key in DEFAULTED if key not in raw]


def _frame(index: int) -> str:
    return f"frames/{index:05d}.png"


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MOST_BYTES:
        raise ValueError(f"{name} is large")
    return archive.read(name)


class _readable:
    """What goes wrong while a recording is read, as one sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        caught = (OSError, ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile, SyntaxError)
        if isinstance(error, caught) and not isinstance(error, ConfigError):
            raise ConfigError(
                f"recording {str(self.path)!r} cannot be read: found {type(error).__name__}: {error}, wanted "
                "what `wmkit minedojo record` writes; record it again"
            ) from error
