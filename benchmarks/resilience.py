"""What a run survives: kills, bad inputs, strangers' folders, torn files, bad worlds, no disk, a long run.

    python benchmarks/resilience.py --out TRIALS                        # all of it, at most half an hour
    python benchmarks/resilience.py --out TRIALS --quick                # some of it, about two minutes
    python benchmarks/resilience.py --out TRIALS --only kills --kills 500
    python benchmarks/resilience.py --out TRIALS --report               # the page of what is there

Each part has a process of its own, which imports once and forks for each training. A row is written to
TRIALS/PART.jsonl as soon as it is known, and what is there is not tried again: started anew, the command
goes on. Everything is a tiny DreamerV3 (2023) on CartPole-v1, but for the bad worlds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from runs import ONE_THREAD, say

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results" / "resilience.md"
if str(HERE.parent / "tests") not in sys.path:
    sys.path.append(str(HERE.parent / "tests"))  # for support, whose folders and tears are the tests' own

PARTS = {
    "kills": "SIGKILL at random moments",
    "inputs": "overrides that make little sense",
    "hostile": "run folders from strangers",
    "torn": "files torn or falsified",
    "worlds": "environments that go wrong",
    "disk": "a disk that takes no more",
    "soak": "one long run",
}
SILENCE = 240  # seconds without a row after which a part is taken for hanging
QUICK = {"kills": 8, "inputs": 30, "folders": 12, "torn": 8, "limits": 2, "soak": 4000, "minutes": 0.5}
QUICK_WORLDS = ["nan", "reward_none", "shape", "raise", "endless", "hang"]


def tried(part: str) -> Callable[[Any], None]:
    """The function that tries a part; imported here, since workers of environments import this file."""
    from trials import folders, inputs, kills, limits, worlds

    return {
        "kills": kills.run,
        "inputs": inputs.run,
        "hostile": folders.hostile,
        "torn": folders.torn,
        "worlds": worlds.run,
        "disk": limits.disk,
        "soak": limits.soak,
    }[part]


def attempt(part: str, args: argparse.Namespace) -> None:
    """Try a part in a process of its own; where that dies or hangs, a row says so and it goes on."""
    from trials.common import TOKEN, keep, leftover, rows

    os.environ[TOKEN] = token = uuid.uuid4().hex
    now = args.out / f"{part}.now"
    command = [sys.executable, str(HERE / "resilience.py"), *sys.argv[1:], "--inside", part]
    paths = [str(HERE), str(HERE.parent / "tests"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, **ONE_THREAD, TOKEN: token, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    for _ in range(20):
        now.write_text("")
        with (args.out / f"{part}.log").open("a") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                if time.time() - now.stat().st_mtime > SILENCE:
                    process.kill()
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
        if process.returncode == 0:
            break
        name, kept = now.read_text(), {row["id"] for row in rows(args.out, part)}
        if name in kept or not name:
            keep(
                args.out, part, {"id": f"after {name!r}", "tracebacks": 1, "said": "the trial itself failed"}
            )
            break
        hung = time.time() - now.stat().st_mtime > SILENCE
        said = "no answer" if hung else f"the process died with exit code {process.returncode}"
        keep(args.out, part, {"id": name, "tracebacks": 1, "codes": [process.returncode], "said": said})
    if left := leftover():
        keep(args.out, part, {"id": f"afterwards {token[:6]}", "orphans": len(left), "after": True})
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    say(f"{part}: {summary(rows(args.out, part))}")


# ---- the page --------------------------------------------------------------------------------------------


def summary(rows: Iterable[dict]) -> dict[str, Any]:
    """One part in numbers."""
    rows = list(rows)
    kinds = ("records", "lines", "tracebacks", "executions", "orphans")
    numbers: dict[str, Any] = {"tried": sum(1 for row in rows if not row.get("after"))}
    numbers |= {kind: sum(row.get(kind, 0) for row in rows) for kind in kinds}
    codes = Counter(code for row in rows for code in row.get("codes", [row["code"]] if "code" in row else []))
    names = {None: "went on", -9: "killed"}
    ordered = sorted(codes.items(), key=lambda item: -item[1])
    numbers["codes"] = ", ".join(f"{names.get(code, code)}: {n}" for code, n in ordered)
    return numbers


def page(found: dict[str, list[dict]], machine: str) -> str:
    head = [
        "part",
        "tried",
        "records lost",
        "lines lost",
        "tracebacks",
        "executions",
        "exit codes",
        "orphans",
    ]
    table, wrong = [head, ["---"] + ["---:"] * 5 + ["---", "---:"]], []
    for part, rows in found.items():
        numbers = summary(rows)
        cells = ("tried", "records", "lines", "tracebacks", "executions", "codes", "orphans")
        table.append([f"`{part}`: {PARTS[part]}", *(str(numbers[cell]) for cell in cells)])
        for row in rows:
            if any(row.get(kind) for kind in ("records", "lines", "tracebacks", "executions", "orphans")):
                said = " ".join(row.get("said", "").split()).replace("|", "/").replace("`", "'")
                wrong.append(
                    f"* `{part}`, `{_code(row['id'])}`: {_counts(row)}{said and f' `{_code(said)}`'}"
                )
    text = TEXT.replace("MACHINE", machine)
    text = text.replace("TABLE", "\n".join(f"| {' | '.join(row)} |" for row in table))
    text = text.replace("WRONG", "\n".join(wrong) or "Nothing.")
    return text.replace("WORLDS", _worlds(found.get("worlds", []))).replace(
        "SOAK", _soak(found.get("soak", []))
    )


def _code(text: str) -> str:
    """Short enough for a line, and without what Markdown or a machine's folders would add."""
    return "".join(c if c.isprintable() else "?" for c in text)[:160].replace("`", "'").replace("|", "/")


def _counts(row: dict) -> str:
    kinds = ("records", "lines", "tracebacks", "executions", "orphans")
    return ", ".join(f"{kind} {row[kind]}" for kind in kinds if row.get(kind))


def _worlds(rows: list[dict]) -> str:
    ends = {0: "went on to its end", 2: "stopped in a sentence", None: "did not end"}
    table = ["| what goes wrong | the run |", "| --- | --- |"]
    for row in rows:
        if not row.get("after"):
            table.append(f"| `{row['id']}` | {ends.get(row['code'], row['code'])} |")
    return "\n".join(table)


def _soak(rows: list[dict]) -> str:
    for row in rows:
        if "memory" in row:
            start, end, most = row["memory"]
            return (
                "A training that plays, and learns once in 80 steps, until it was done or stopped in time:\n"
                f"{row['steps']:,} records; {start:,.0f} MB resident after a tenth of them, "
                f"{end:,.0f} MB at the end, {most:,.0f} MB at most (without the pages of files)."
            )
    return "Not run."


TEXT = """# What a run survives

TABLE

    python benchmarks/resilience.py --out TRIALS     # all of it: 200 kills, 300 overrides, 100,000 steps
    python benchmarks/resilience.py --out TRIALS --report

The table counts what was run for this page.
*Records lost*: replay had taken them, and they were gone (of worlds: or they do not show their step).
*Lines lost*: ends of episodes in replay without their line in `episodes.jsonl`, or lines without their end.
*Tracebacks*: any end that is neither a success nor one sentence. *Executions*: marks that a stranger's code
left, modules it got imported, secrets it got told, files that opening it changed. *Orphans*: processes alive
15 seconds after their trainer. `went on`: an override that was taken, whose training was stopped in time.

## Long

SOAK

## Worlds

WORLDS

## What went wrong

WRONG

When this was first run, six of the overrides ended in a traceback (a part as `training.time_limit`, a list or
text as a learner's `clip`, `size.layers` of 0), and `env.timeout` was refused. Those are mended, and
their rows were tried again.

## How

Everything is a tiny DreamerV3 (2023) on CartPole-v1, but for the worlds. One training is killed while it
starts (a third of the kills) or while it plays and learns, every twentieth with environments in processes of
their own; then it is counted, and taken up again. The disk is not full but takes no file beyond a size
(`RLIMIT_FSIZE`). Strangers' folders and torn files are those of the tests (`tests/support`).

Machine: MACHINE.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where rows and runs lie")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; all of them by default")
    parser.add_argument("--quick", action="store_true", help="about two minutes")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--inputs", type=int, default=300)
    parser.add_argument("--folders", type=int, default=1000, help="hostile folders, at most")
    parser.add_argument("--torn", type=int, default=60)
    parser.add_argument("--worlds", action="append", help="a world; all of them by default")
    parser.add_argument("--limits", type=int, default=7, help="sizes that files may have on a full disk")
    parser.add_argument("--soak", type=int, default=100_000, help="steps")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which the soak is stopped")
    parser.add_argument("--report", action="store_true", help="write the page of what is there")
    parser.add_argument("--machine", default="two cores of an Intel Xeon, shared with other programs")
    parser.add_argument("--inside", choices=PARTS, help=argparse.SUPPRESS)
    quick = {**QUICK, "worlds": QUICK_WORLDS} if "--quick" in sys.argv else {}
    parser.set_defaults(**quick)
    args = parser.parse_args()
    args.out = args.out.resolve()
    if args.inside:
        from trials.common import Trial

        tried(args.inside)(Trial(args.inside, args.out, args))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        for part in args.only or PARTS:
            attempt(part, args)
        return
    paths = {part: args.out / f"{part}.jsonl" for part in PARTS}
    found = {
        p: [json.loads(line) for line in f.read_text().splitlines()] for p, f in paths.items() if f.is_file()
    }
    PAGE.write_text(page(found, args.machine))
    say(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
