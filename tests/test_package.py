"""What is shipped: docstrings, the wheel's contents, and parts that other packages add."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import wmkit

ROOT = Path(wmkit.__file__).parent
TREE = Path(__file__).parent.parent
PLUGIN = TREE / "examples" / "plugin"


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


def install_plugin(site: Path) -> None:
    """Lay ``examples/plugin`` into ``site`` as an installer would: its module and its metadata."""
    info = site / "leaky_backbone-0.1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(PLUGIN / "leaky_backbone.py", site)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky-backbone\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[wmkit.plugins]\nleaky = leaky_backbone:register\n")


def test_a_system_trains_with_the_backbone_of_another_package(tmp_path):
    install_plugin(tmp_path / "site")
    code = """
import torch
from torchrl.data import Composite, OneHot, UnboundedDiscrete
import wmkit
assert "leaky" in wmkit.available("backbone"), wmkit.available("backbone")
spec = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))
torch.manual_seed(0)
small = ["backbone=leaky", "size.depth=4", "size.deter=16", "batch.size=2", "batch.length=4"]
small += ["learning_rate.world_model=3.0e-3"]
system = wmkit.build("ls_imagine", observation_spec=spec, action_spec=OneHot(3), overrides=small)
batch = system.example_batch()
losses = [system.update(batch)["loss_world_model"] for _ in range(10)]
assert losses[-1] < losses[0] - 2, losses
print(type(system.world_model.dynamics.short.backbone).__module__)
"""
    printed = python("-c", code, cwd=tmp_path, path=tmp_path / "site")
    assert printed.split() == ["leaky_backbone"]
    assert "leaky" not in wmkit.available("backbone")  # it was installed for that interpreter only


def test_a_broken_name_suggests_its_neighbour():
    with pytest.raises(wmkit.errors.ConfigError, match="did you mean 'gru'"):
        wmkit.registry.resolve("backbone", "gruu")


def test_every_listed_part_can_be_imported():
    for kind in wmkit.registry.KINDS:
        for name in wmkit.available(kind):
            assert callable(wmkit.registry.resolve(kind, name)), (kind, name)
