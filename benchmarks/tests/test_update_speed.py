"""Update benchmarks: the plain side's networks and arithmetic, what a command line refuses, the GPU suite."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

BENCHMARKS = Path(__file__).parents[1]
OPTIONS = {"size": "1m", "obs": "vision", "codec": "pooled", "batch": "2", "length": "8", "keep": "both"}
DEFAULTS = {"size": "1m", "obs": "proprio", "batch": 16, "length": 64, "keep": "ours", "compile": False}
ALWAYS = {"system", "threads", "repeats", "warm_up", "json"}


@pytest.fixture
def plain() -> ModuleType:
    before = torch.distributions.Distribution._validate_args
    import token_update_plain

    torch.distributions.Distribution.set_default_validate_args(before)
    yield token_update_plain
    sys.modules.pop("token_update_plain")


class Counter(TorchDispatchMode):
    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_plain_networks_have_the_published_parameters(plain: ModuleType) -> None:
    twm, storm = plain.PlainTWM(1, 1), plain.PlainSTORM(1, 1)
    parts = [(twm.encoder,), (twm.decoder,), (twm.dynamics,), (twm.actor,), (twm.critic,)]
    counts = [3_126_992, 5_107_540, 10_782_466, 1_322_002, 1_313_281]
    assert [parameters(*part) for part in parts] == counts
    assert [parameters(x) for x in (storm.model, storm.actor, storm.critic)] == [
        16_513_155,
        1_059_858,
        1_181_439,
    ]


@pytest.mark.parametrize(
    ("system", "official"),
    [
        ("twm", (10.79, 2.285, 0.2475)),
        ("storm", (419 / 16, 1.43, 220 / 1024)),
    ],  # GFLOP of a window and of a start
)
def test_plain_updates_do_the_official_arithmetic(
    plain: ModuleType, system: str, official: tuple[float, ...]
) -> None:
    for (name, piece), wanted in zip(plain.pieces(system, 1, 4).items(), official, strict=True):
        with Counter() as counter:
            piece()
        found = counter.total / 1e9 / (1 if name == "world model" else 4)
        assert found == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--against", "plain"], "dreamer_v3 cannot be compared with 'plain': wanted torchrl"),
        (["--system", "twm", "--against", "torchrl"], "twm cannot be compared with 'torchrl': wanted plain"),
        (
            ["--system", "twm", "--batch", "16", "--compile"],
            "as published, but found --batch and --compile: ",
        ),
        (["--system", "storm", "--obs", "proprio"], "storm runs as published, but found --obs: wanted none "),
        *((["--system", "twm", f"--{name}", x], f"found --{name}: ") for name, x in OPTIONS.items()),
        (["--codec", "pooled"], "--codec was given without an image: wanted --obs vision"),
    ],
)
def test_what_a_system_does_not_have_is_refused(
    options: list[str],
    wanted: str,
    plain: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    speed = importlib.import_module("update_speed")
    monkeypatch.setattr(sys, "argv", ["update_speed.py", *options])
    with pytest.raises(SystemExit) as stopped:
        speed.arguments()
    assert stopped.value.code == 2 and wanted in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--system", "twm"], {"against": "plain"}),
        (["--system", "storm", "--against", "nothing", "--repeats", "2"], {"against": "nothing"}),
        ([], {**DEFAULTS, "against": "torchrl"}),
        (["--batch", "2", "--compile"], {**DEFAULTS, "batch": 2, "compile": True, "against": "torchrl"}),
        (["--obs", "vision"], {**DEFAULTS, "obs": "vision", "codec": "pooled", "against": "torchrl"}),
    ],
)
def test_settings_are_those_that_are_used(
    options: list[str], kept: dict[str, object], plain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = importlib.import_module("update_speed")
    monkeypatch.setattr(sys, "argv", ["update_speed.py", *options])
    found = vars(speed.arguments())
    assert {k: v for k, v in found.items() if k not in ALWAYS} == kept and found.keys() >= ALWAYS


LINES = {  # a tiny real run adds what makes it short
    "--system dreamer_v3 --size 1m --obs proprio --against torchrl --json": "--batch 2 --length 3",
    "--json --system twm": "--against nothing",
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("path", ["", "numbers.json"])
def test_json_alone_is_all_that_is_printed_and_a_path_is_written(
    line: str,
    path: str,
    plain: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    speed = importlib.import_module("update_speed")

    def measured(args: object, *_: object) -> dict[str, float]:
        print("| table |")
        return {"ratio": 0.3}

    monkeypatch.setattr(speed, "run", measured)
    monkeypatch.setattr(speed.token_update_speed, "run", measured)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["update_speed.py", *line.replace("--json", f"--json {path}").split()])
    speed.main()
    printed = capsys.readouterr()
    if path:
        assert printed.out == "| table |\n" and json.loads(Path(path).read_text()) == {"ratio": 0.3}
    else:
        assert json.loads(printed.out) == {"ratio": 0.3} and printed.err == "| table |\n"
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("line", "short"), LINES.items())
def test_the_numbers_of_a_run_are_json(line: str, short: str) -> None:
    command = f"update_speed.py {line} {short} --repeats 1 --warm-up 0 --threads 1"
    done = subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["settings"]["system"] in line and "| wmkit, " in done.stderr
    sides = result.get("update_wall_ms") or result["seconds"]
    assert all(len(times) == 1 for times in sides.values())


@pytest.mark.slow
def test_the_gpu_suite_measures_both_sides_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cells without a code generator, in processes of their own; their file, their table, going on."""
    suite, out = importlib.import_module("gpu_suite"), tmp_path / "gpu_suite.json"
    monkeypatch.chdir(tmp_path)
    options = ["--device", "cpu", "--tiny", "--repeats", "1", "--warm-up", "1"]  # no --json: there is a file
    options += ["--skip-done", "--only", "dreamer_v3", "proprio", "eager"]
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", *options])
    suite.main()
    record = json.loads(out.read_text())
    cells = record["cells"]
    assert list(cells) == [f"{side}/dreamer_v3/1m/proprio/eager/float32" for side in ("wmkit", "torchrl")]
    for cell in cells.values():
        assert cell["status"] == "ok", cell
        assert 0 < cell["fastest"] <= cell["milliseconds"] <= cell["slowest"] and cell["in_a_row"] > 0
        assert 0 < cell["first_update_s"] <= cell["ready_s"] and cell["peak_memory_gib"] is None
    counts = [cell["parameters"] for cell in cells.values()]
    assert record["tiny"] and counts[0] == counts[1]
    first, second = record["verdicts"][:2]
    assert "target 6 ms" in first and "of TorchRL's best" in first and "not measured" in second
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"written to {out}"
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {9}
    assert [row[2].strip() for row in rows] == ["side", "---", "torchrl", "wmkit"]
    assert all(float(row[5]) > 0 for row in rows[2:])
    monkeypatch.setattr(suite, "start", lambda *_: pytest.fail("a cell that is there was run again"))
    before = out.read_text()
    suite.main()
    assert out.read_text() == before
