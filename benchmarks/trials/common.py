"""What all parts use: a trial's rows, trainings in forked processes, what a run was told is safe."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from wmkit.cli import app
from wmkit.data import ReplayStreams
from wmkit.training.owed import NAME as OWED
from wmkit.training.owed import settle
from wmkit.training.run import RunDirectory

TOKEN = "WMKIT_RESILIENCE"  # an environment variable that names all processes of one part
SYSTEM = "dreamer_v3_2023"
TINY = [
    *("env=gymnasium", "env.name=CartPole-v1", "preset=smoke", "threads=1", "training.report=false"),
    *("size.units=16", "size.layers=1", "size.deter=32", "size.groups=2", "size.classes=4", "size.hidden=16"),
    *("batch.size=2", "batch.length=8", "controller.horizon=3", "training.time_limit=null"),
]
LIMIT = 500  # steps after which CartPole-v1 truncates; nothing else here does but kills and faults
STAGES = ("prefill", "train")  # whose episodes are kept
SHORT = ["training.steps=64", "training.prefill=32", "training.final_episodes=1"]


@dataclass
class Trial:
    """One part: where it lies, what was asked for, and its rows, which are kept as they come."""

    part: str
    out: Path
    options: Namespace

    @property
    def folder(self) -> Path:
        return self.out / self.part

    def begin(self, name: str) -> bool:
        """Whether this one is still to be tried; it is then the one to blame if the process dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.out / f"{self.part}.now").write_text(name)
        return all(row["id"] != name for row in rows(self.out, self.part))

    def keep(self, name: str, **found: Any) -> None:
        keep(self.out, self.part, {"id": name, **found})


def keep(out: Path, part: str, row: dict) -> None:
    text = json.dumps(row).replace(f"{out}{os.sep}", "")  # where it lay is no result
    with (out / f"{part}.jsonl").open("a") as file:
        file.write(text + "\n")


def rows(out: Path, part: str) -> list[dict]:
    path = out / f"{part}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


class Late(BaseException):
    """Longer than it may take; nobody's ``except Exception`` swallows it."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def call(*arguments: object, seconds: float = 20) -> dict[str, Any]:
    """`wmkit` with these arguments, in this process: its exit code, tracebacks, and what it said.

    An exit code of None means that it went on until the time was over.
    """
    try:
        with within(seconds):
            result = CliRunner().invoke(app, list(map(str, arguments)))
    except Late:
        return {"code": None, "tracebacks": 0, "said": ""}
    return {"code": result.exit_code, **judged(result.exit_code, result.output, result.exception)}


def judged(code: int | None, text: str, error: BaseException | None = None) -> dict[str, Any]:
    """Whether an end is one: done, or refused in a sentence. Else it counts as a traceback."""
    raw = error is not None and not isinstance(error, SystemExit)
    sentence = any(line.startswith("wmkit: ") for line in text.splitlines())
    wrong = raw or "Traceback" in text or (code not in (0, 130) and not sentence)
    said = next((line for line in text.splitlines() if line.startswith("wmkit: ")), "")
    return {"tracebacks": int(wrong), "said": (repr(error) if raw else said or text[-300:] * wrong)[:300]}


# ---- trainings in processes of their own ----------------------------------------------------------------


def start(folder: Path, *arguments: str, limit: int | None = None) -> int:
    """Fork `wmkit` with these arguments; its id. FOLDER.log has its output, FOLDER.safe what is safe.

    Args:
        folder: of the run.
        limit: bytes that no file may grow beyond.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        _acknowledge(folder.with_suffix(".safe"))
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        app(list(arguments), prog_name="wmkit")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def end(pid: int, folder: Path, seconds: float) -> dict[str, Any]:
    """Wait for a training; one that goes on is killed and has an exit code of None."""
    deadline = time.monotonic() + seconds
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            kill(pid)
            return {"code": None, "tracebacks": 0, "said": "did not end"}
        time.sleep(0.02)
    code = os.waitstatus_to_exitcode(found[1])
    return {"code": code, **judged(code, folder.with_suffix(".log").read_text())}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _acknowledge(path: Path) -> None:
    """Write how many records replay has ever taken whenever it has taken some."""
    handle, extend = os.open(path, os.O_RDWR | os.O_CREAT), ReplayStreams.extend

    def counted(self: ReplayStreams, *args: Any, **keywords: Any) -> Any:
        index = extend(self, *args, **keywords)
        os.pwrite(handle, struct.pack("q", int(self.windows(1).end.sum())), 0)
        return index

    ReplayStreams.extend = counted


def safe(folder: Path) -> int:
    """Records that a run was told are safe."""
    path = folder.with_suffix(".safe")
    data = path.read_bytes() if path.is_file() else b""
    return struct.unpack("q", data)[0] if len(data) == 8 else 0


def lost(folder: Path, limit: int = LIMIT) -> dict[str, int]:
    """What a run that ended somehow lacks: records that were safe; lines without ends, ends without lines.

    An episode that a kill cut is closed by the next start as truncated, and has no line.
    """
    if not (folder / "replay" / "schema.json").is_file():
        return {"records": safe(folder), "lines": 0, "held": 0}
    streams = ReplayStreams.open(folder / "replay")
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("config.yaml", "episodes.jsonl", OWED):
            if (folder / name).is_file():
                shutil.copy(folder / name, Path(temporary) / name)
        run = RunDirectory.open(temporary, trust=True)  # our own
        settle(run, streams.stream_steps)  # as a resumed run does
        lines = Counter(e["length"] for e in run.episodes() if e["stage"] in STAGES and "cut" not in e)
    terminated, limited = Counter[int](), Counter[int]()  # episodes by length
    for stream in range(streams.num_streams):
        records = streams.get(streams.ids(stream))
        begin = 0
        for t in (records["done"] | records["is_init"]).flatten().nonzero().flatten().tolist():
            begin = t if records["is_init"][t] else begin
            terminated[t - begin] += int(records["terminated"][t])
            limited[t - begin] += int(records["done"][t] > records["terminated"][t]) * (t - begin == limit)
    missing = (terminated - lines).total() + (lines - terminated - limited).total()
    held = int(streams.windows(1).end.sum())
    return {"records": max(0, safe(folder) - held), "lines": missing, "held": held}


def leftover(*, seconds: float = 15) -> list[int]:
    """Other processes of this part that are alive after some time."""
    deadline, token = time.monotonic() + seconds, os.environ.get(TOKEN)
    if not token:
        return []
    while found := [pid for pid in _pids() if pid != os.getpid() and _has(pid, f"{TOKEN}={token}".encode())]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return found


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _has(pid: int, text: bytes) -> bool:
    with contextlib.suppress(OSError):
        return text in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False
