"""A run directory: one folder that holds everything a training run leaves behind.

    config.yaml      the configuration, enough to rebuild the system; what refers to another key still does
    metrics.jsonl    one JSON object per line: step, stage, wall (seconds), numbers; a score's protocol
    episodes.jsonl   one line per finished episode: step, stage, return, length, success (null without a flag)
                     and in Crafter the achievements it unlocked
                     (both: frames, which is step times action repeat, where an action is held for several)
    tensorboard/     the same numbers for TensorBoard
    checkpoints/     see :mod:`wmkit.training.checkpoints`
    replay/          see :class:`wmkit.data.ReplayStreams`
    records.json     of a run that learns from recorded data, see :mod:`wmkit.training.records`
    affordance/      frames, labels and the fitted affordance model
    evidence/        arrays that the report draws (maps, imagined roll-outs, spans)
    report.html      self-contained, opens without a network
    .lock            while a process trains the run
    .episodes.owed   while records of an episode's end are written, see :mod:`wmkit.training.owed`

Lines are appended whole and flushed, so a killed run loses at most the line being written;
who appends to a run that was opened first cuts a half-written last line off. Reading leaves every file
as it is, so a run can be looked at while it goes on.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from wmkit.data.files import is_count, is_number, need
from wmkit.errors import CheckpointError, ConfigError
from wmkit.systems.pages import name_targets
from wmkit.systems.trust import check_references, check_trust, read_untrusted
from wmkit.training.older_runs import upgraded
from wmkit.training.protocol import EvaluationProtocol, frames_per_step

CONTENTS = (
    "config.yaml",
    "metrics.jsonl",
    "episodes.jsonl",
    "tensorboard",
    "checkpoints",
    "replay",
    "records.json",
    "affordance",
    "evidence",
    "report.html",
)

EVERY_LINE = {"step", "stage"}


class RunDirectory:
    """The files of one run, opened for appending.

    Use :meth:`create` or :meth:`creating` for a new run and :meth:`open` for one that exists.

    Args:
        path: the folder.
        config: the whole configuration.

    >>> import tempfile
    >>> from omegaconf import OmegaConf
    >>> folder = tempfile.mkdtemp()
    >>> config = {"system": "toy", "env": {"name": "counting"}, "training": {}, "run_dir": folder + "/r"}
    >>> run = RunDirectory.create(OmegaConf.create(config))
    >>> run.log(10, "train", {"loss/total": 0.5})
    >>> run.episode(10, "train", {"return": 1.0, "length": 7, "success": True})
    >>> run.close()
    >>> [line["loss/total"] for line in RunDirectory.open(folder + "/r").metrics()]
    [0.5]
    """

    def __init__(self, path: Path, config: DictConfig) -> None:
        self.path = Path(path)
        self.config = config
        self._started = time.monotonic()
        self._wall_before = 0.0
        self._tensorboard: Any = None
        self._made: list[Path] = []
        self._unmended: set[str] = set()

    @classmethod
    def create(cls, config: DictConfig) -> RunDirectory:
        """Make the folder (``run_dir``, or ``runs/<system>-<env>-<time>-s<seed>``) and write ``config.yaml``.

        Raises:
            ConfigError: the folder already holds a run or a part of one, or cannot be made.
        """
        path = Path(str(config.get("run_dir") or _unused(Path("runs") / default_name(config))))
        try:
            found = [name for name in CONTENTS if (path / name).exists()]
        except (OSError, ValueError) as error:  # too long, or no name at all
            raise ConfigError(
                f"run directory {str(path)[:60]!r} cannot be made: found {_reason(error)}, wanted the name "
                "of a folder; choose another run_dir"
            ) from error
        if found:
            raise ConfigError(
                f"run directory {str(path)!r} is taken: found {found[0]} in it, wanted a folder without "
                f"one; go on with that run by resume={path}, or choose another run_dir"
            )
        run = cls(path, config)
        run._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.write_config()
        except OSError as error:
            raise ConfigError(
                f"run directory {str(path)!r} cannot be made: found {error.strerror}, wanted a folder "
                "that can be written to; choose another run_dir"
            ) from error
        return run

    @classmethod
    @contextmanager
    def creating(cls, config: DictConfig) -> Iterator[RunDirectory]:
        """:meth:`create` for a ``with`` block: one that fails before it wrote anything leaves no folder."""
        run = cls.create(config)
        try:
            yield run
        except BaseException:
            run._withdraw()
            raise

    def _withdraw(self) -> None:
        """Remove what :meth:`create` made, if it holds no file but the configuration."""
        parts = [self.path / name for name in CONTENTS if (self.path / name).exists()]
        files = [path for part in parts for path in (part, *part.rglob("*")) if not path.is_dir()]
        if files != [self.path / "config.yaml"]:
            return
        files[0].unlink()
        for folder in parts[1:]:
            shutil.rmtree(folder)
        with suppress(OSError):  # others' files are in it
            for folder in self._made:
                folder.rmdir()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training this run inside the ``with`` block.

        Raises:
            CheckpointError: one does.
        """
        if fcntl is None:
            yield
            return
        path = self.path / ".lock"
        with path.open("w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):  # else the disk knows no locks
                    raise CheckpointError(
                        f"run {str(self.path)!r} is being trained: found another process that writes to it, "
                        "wanted none; wait until it ends, or stop it"
                    ) from error
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def check_writable(self) -> None:
        """Fail before work is done whose results could not be kept.

        Raises:
            CheckpointError: the folder or a log in it cannot be written to.
        """
        for path in (self.path, self.path / "metrics.jsonl", self.path / "episodes.jsonl"):
            if path.exists() and not os.access(path, os.W_OK):
                raise CheckpointError(
                    f"{str(path)!r} cannot be written to: found no permission, wanted it for scores and the "
                    "report; change it, or copy the run to another place"
                )

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        trust: bool = False,
        given: Collection[str] = (),
        config: DictConfig | None = None,
    ) -> RunDirectory:
        """Open the run at ``path``; nothing in it changes until it is written to.

        Args:
            path: the folder.
            trust: let its ``config.yaml`` name code of any package, modules of environments and variables of
                your environment; what it names is executed, as you.
            given: keys that are overridden next, of which nothing is asked.
            config: goes before the folder's own, which is not read.

        Raises:
            CheckpointError: no run lies there, or its files are damaged.
            ConfigError: its configuration names more than known parts, see :mod:`wmkit.systems.trust`.
        """
        path = Path(path)
        try:
            there = (path / "config.yaml").is_file()
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"run directory {str(path)[:60]!r} cannot be opened: found {_reason(error)}, wanted a folder "
                "that `wmkit train` made; check the path"
            ) from error
        if not there:
            raise CheckpointError(
                f"run directory {str(path)!r} cannot be opened: found no config.yaml, wanted a folder that "
                "`wmkit train` made; check the path"
            )
        if config is None:
            config = _load(path / "config.yaml")
            what = f"run {str(path)!r}"
            if not trust:
                check_references(config, what, given)
            config = upgraded(config)
            name_targets(config)
            if not trust:
                check_trust(config, what, given)
        run = cls(path, config)
        run._unmended = {"metrics.jsonl", "episodes.jsonl"}
        last = next(reversed(list(run.metrics())), None)
        run._wall_before = float(last.get("wall", 0.0)) if last else 0.0
        return run

    def write_config(self) -> None:
        """Write ``config.yaml`` anew (after a resume with further overrides)."""
        temporary = self.path / ".config.yaml.tmp"
        OmegaConf.save(self.config, temporary)
        temporary.replace(self.path / "config.yaml")

    def folder(self, name: str) -> Path:
        """A sub-folder of the run, made on first use."""
        path = self.path / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def wall(self) -> float:
        """Seconds spent on this run, earlier sessions included."""
        return self._wall_before + time.monotonic() - self._started

    @cached_property
    def _repeat(self) -> int:
        return frames_per_step(self.config)

    @property
    def unit(self) -> str:
        """What a step of this run is, in words."""
        if self.config.get("data") is None:
            return "environment steps"
        live = OmegaConf.select(self.config, "data.live", default=False)
        return "updates from records, then environment steps" if live else "updates from records"

    def frames(self, step: int) -> dict[str, int]:
        """``frames`` of so many steps, those of the emulator; empty where a step is a frame."""
        return {"frames": step * self._repeat} if self._repeat > 1 else {}

    def log(self, step: int, stage: str, numbers: Mapping[str, float], **notes: Any) -> None:
        """Append one line to ``metrics.jsonl`` and the same numbers to TensorBoard.

        Args:
            step: environment steps so far (or the stage's own step for stages without an environment).
            stage: ``affordance``, ``prefill``, ``train``, ``evaluate`` or ``final``.
            numbers: name to float; names with a slash are grouped by TensorBoard. NaN is written as null.
            **notes: JSON for the line alone.
        """
        clean = {name: _number(value) for name, value in numbers.items()}
        frames = {} if stage == "affordance" else self.frames(step)
        self.append(
            "metrics.jsonl",
            {"step": step, **frames, "stage": stage, "wall": round(self.wall, 3), **clean, **notes},
        )
        writer = self._writer()
        for name, value in {**frames, **clean}.items():
            if value is not None:
                writer.log_scalar(name if "/" in name else f"{stage}/{name}", value, step=step)

    def score(self, step: int, stage: str, numbers: Mapping[str, float], protocol: Mapping[str, Any]) -> None:
        """:meth:`log` an evaluation's means as ``eval/...``; the line also holds its ``protocol``."""
        self.log(step, stage, {f"eval/{name}": value for name, value in numbers.items()}, protocol=protocol)

    def episode(self, step: int, stage: str, record: Mapping[str, Any]) -> None:
        """Append one finished episode to ``episodes.jsonl``."""
        self.append("episodes.jsonl", self.episode_line(step, stage, record))

    def episode_line(self, step: int, stage: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """The line of a finished episode."""
        return {"step": step, **self.frames(step), "stage": stage, **record}

    def metrics(self, stage: str | None = None) -> Iterator[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, oldest first."""
        return _read(self.path / "metrics.jsonl", stage)

    def episodes(self, stage: str | None = None) -> Iterator[dict[str, Any]]:
        """The lines of ``episodes.jsonl``, oldest first."""
        return _read(self.path / "episodes.jsonl", stage)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.experiment.close()
            self._tensorboard = None

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Append a line of JSON to a log."""
        self._append(name, json.dumps(line) + "\n")

    def mended(self, name: str) -> int:
        """Bytes of a log, after a half-written last line of a killed process was cut off."""
        self._append(name, "")
        return (self.path / name).stat().st_size

    def _append(self, name: str, text: str) -> None:
        path = self.path / name
        with path.open("a", encoding="utf-8") as file:
            _lock(file)  # until it is closed: another process may be in the middle of a line
            if name in self._unmended:
                _cut_partial_line(path)
                self._unmended.discard(name)
            file.write(text)

    def _writer(self) -> Any:
        if self._tensorboard is None:
            from torchrl.record import TensorboardLogger

            self._tensorboard = TensorboardLogger(exp_name="tensorboard", log_dir=str(self.path))
        return self._tensorboard


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def default_name(config: DictConfig) -> str:
    """``<system>-<env>-<timestamp>-s<seed>`` with the slashes of the environment's name left out."""
    data = str(OmegaConf.select(config, "data.path") or "env").rstrip("/")
    env = str(OmegaConf.select(config, "env.name") or data).rsplit("/", 1)[-1]
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return f"{config.get('system', 'system')}-{env}-{stamp}-s{config.get('seed', 0)}"


def _unused(path: Path) -> Path:
    """``path``, or the first of ``path-2``, ``path-3``, ... that is not there."""
    names = (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in itertools.count(1))
    return next(name for name in names if not name.exists())


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _load(path: Path) -> DictConfig:
    found: Any = None
    try:
        found = read_untrusted(path.read_text(encoding="utf-8"))
    except ConfigError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from error
    except Exception:  # YAML's own, which vary; the sentence below
        pass
    if not isinstance(found, DictConfig) or not {"system", "env", "training"} <= found.keys():
        raise CheckpointError(
            f"{str(path)!r} cannot be read: found no configuration in it, wanted what `wmkit train` wrote; "
            "restore it"
        )
    return found


def _read(path: Path, stage: str | None) -> Iterator[dict[str, Any]]:
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise CheckpointError(
            f"{str(path)!r} cannot be read: found no file of that name, wanted lines of JSON; move what is "
            "there away"
        )
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith("\n"):
                return
            line: Any = None
            with suppress(ValueError, RecursionError):
                line = json.loads(text)
            advice = f"delete that line, number {number} of {str(path)!r}"
            if not isinstance(line, dict) or not line.keys() >= EVERY_LINE:
                raise CheckpointError(
                    f"line {number} of {str(path)!r} cannot be read: found {text[:40].strip()!r}, wanted "
                    f"a JSON object with {', '.join(sorted(EVERY_LINE))}; delete that line"
                )
            for name, value in line.items():
                wanted = _wanted(path.name, name, value)
                need(not wanted, f"{name!r} in line {number} of {str(path)!r}", value, wanted, advice)
            if stage is None or line["stage"] == stage:
                yield line


def _wanted(file: str, name: str, value: Any) -> str:
    """What a value of a log should be, in words; empty where it is that."""
    if name in ("step", "frames"):
        return "" if is_count(value) else "a whole number"
    if name == "stage":
        return "" if isinstance(value, str) else "a word"
    if name == "wall":
        return "" if is_number(value) and value >= 0 else "seconds"
    if name == "protocol":
        return "" if EvaluationProtocol.fits(value) else "the rules of an evaluation"
    if name == "achievements" and file == "episodes.jsonl":
        return (
            ""
            if isinstance(value, list) and all(isinstance(one, str) for one in value)
            else "a list of words"
        )
    if file == "episodes.jsonl":  # a return may be NaN, and the success true or false
        return "" if value is None or isinstance(value, (bool, float)) or is_number(value) else "a number"
    return "" if value is None or is_number(value) else "a number or null"


def _lock(file: Any) -> None:
    """Make other processes that append wait, where the system and its disk can."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)


def _cut_partial_line(path: Path) -> None:
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
