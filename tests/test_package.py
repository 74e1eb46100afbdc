"""What is shipped: docstrings, and the wheel's contents."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import wmkit

ROOT = Path(wmkit.__file__).parent
TREE = Path(__file__).parent.parent


def tracked_files() -> list[Path]:
    """The project's own files: git's list where there is one, a walk otherwise."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=TREE, capture_output=True, text=True
    )
    if listed.returncode == 0 and listed.stdout:
        return [TREE / name for name in listed.stdout.splitlines() if (TREE / name).is_file()]
    folders = ("src", "tests", "docs", "examples", "benchmarks")
    return [path for folder in folders for path in (TREE / folder).rglob("*") if path.is_file()]


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """Run an interpreter in ``cwd`` with ``path`` in front of ``sys.path``; return its output."""
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_public_module_says_what_it_is():
    silent = [
        str(path.relative_to(ROOT))
        for path in sorted(ROOT.rglob("*.py"))
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, silent


def test_no_path_of_one_machine_in_the_tree():
    machine_path = re.compile(r"(?<![\w.~$}])/(?:work|root|home|tmp|Users)/[A-Za-z]")
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(TREE)}: {match[0]}" for match in machine_path.finditer(text)]
    assert not found, found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=TREE)
    return next(folder.glob("wmkit-*.whl"))


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package(wheel):
    on_disk = {
        path.relative_to(ROOT.parent).as_posix()
        for path in ROOT.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert on_disk <= names, f"not shipped: {sorted(on_disk - names)}"
    assert "wmkit/py.typed" in names
    assert any(name.startswith("wmkit/systems/") and name.endswith(".yaml") for name in names)
    assert "wmkit = wmkit.cli:main" in points


@pytest.mark.slow
def test_wheel_works_from_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    where = python("-c", "import wmkit; print(wmkit.__file__)", cwd=empty, path=site)
    assert Path(where.strip()).is_relative_to(site)
    listed = python("-m", "wmkit", "list", "system", cwd=empty, path=site)
    assert "ls_imagine" in listed and "dreamer_v3_2023" in listed
    assert not list(empty.iterdir())


HIDDEN = """
import sys
from importlib.machinery import PathFinder

names, find = set(sys.argv.pop(1).split(",")), PathFinder.find_spec
hidden = lambda name, *rest: None if name.split(".")[0] in names else find(name, *rest)
PathFinder.find_spec = staticmethod(hidden)
from wmkit.cli import main
main()
"""
EXTRAS = (
    "transformers,open_clip_torch,open_clip,ale_py,crafter,craftground,dm_control,mujoco,minigrid,h5py,zarr,pyarrow,av,"
    "gym_pusht,pytest,hypothesis,hatchling,mkdocs,ruff,mypy"
)


def test_the_main_job_runs_without_any_extra(tmp_path: Path) -> None:
    """Nothing but the core: list, doctor, and a run that is trained, checkpointed, evaluated and reported."""
    tomllib = pytest.importorskip("tomllib")
    page = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [name for each in page["optional-dependencies"].values() for name in each]
    wanted = {re.split(r"[\[>=]", name)[0].replace("-", "_") for name in named}
    assert wanted - {"wmkit", "pytest_xdist", "mkdocs_material", "mkdocstrings"} <= set(EXTRAS.split(","))
    script = tmp_path / "hidden.py"
    script.write_text(HIDDEN, encoding="utf-8")
    python("-c", "import wmkit", cwd=tmp_path)
    for command in (
        ["list"],
        ["doctor"],
        ["train", "dreamer_v3", "preset=smoke", "env=gymnasium", "training.steps=200", "run_dir=run"],
    ):
        out = python(str(script), EXTRAS, *command, cwd=tmp_path)
        assert out
    assert (tmp_path / "run" / "report.html").is_file()
