"""The order of the rooms: a room imports only from the rooms below it, lazily or not."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import wmkit

ROOT = Path(wmkit.__file__).parent
RANK = {room: rank for rank, room in enumerate(wmkit.ROOMS)}  # 0 is the roof
# Importable from everywhere; they import no room.
FREE = {"arguments", "errors", "places", "plug", "registry"}
ABOVE = {"__init__", "__main__", "_builtins"}  # the lazy front door and the table of names


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted wmkit name) of every import in a file, at any depth of nesting."""
    parts = ("wmkit", *path.relative_to(ROOT).with_suffix("").parts)
    package = parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = ".".join((*package[: len(package) - node.level + 1], *filter(None, [node.module])))
            else:
                base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            names = [str(node.args[0].value)] if called == "import_module" else []
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "wmkit")


def room_of(dotted: str) -> str:
    """The room (or free module) a dotted name belongs to; ``wmkit.build`` lives in systems."""
    name = dotted.split(".")[1] if "." in dotted else "wmkit"
    return wmkit._ATTRIBUTES.get(name, f"wmkit.{name}").split(".")[1]


def test_every_module_stands_in_a_known_room():
    found = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    assert found <= {*RANK, *FREE, *ABOVE}, "a new subpackage needs its place in wmkit.ROOMS"
    assert set(RANK) <= found


def test_rooms_import_only_from_below():
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        here = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if here in ABOVE:
            continue
        for line, dotted in imports(path):
            there = room_of(dotted)
            allowed = (
                there in FREE or there == "__version__" or RANK.get(there, -1) >= RANK.get(here, len(RANK))
            )
            if here == "registry" and dotted == "wmkit._builtins":
                allowed = True
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {here} imports {dotted}")
    assert not wrong, "\n".join(wrong)


def test_tests_share_through_support_only():
    """No test module imports another: what two of them need stands in tests/support."""
    folder = Path(__file__).parent
    own = {path.stem for path in folder.glob("*.py")}
    for path in sorted(folder.rglob("*.py")):
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").split(".")[0])
        assert not imported & own, f"{path.relative_to(folder)} imports {imported & own}"


def run(code: str) -> str:
    """Run ``code`` in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_wmkit_is_light():
    heavy = "torch torchrl tensordict hydra omegaconf numpy vizdoom timm transformers matplotlib typer rich"
    code = f"""
import sys, wmkit
wmkit.available("backbone"); wmkit.available("system"); wmkit.available("scorer")
print(*[name for name in {heavy.split()!r} if name in sys.modules])
"""
    assert run(code) == ""


@pytest.mark.parametrize("room", ["fast", "functional", "nn"])
def test_lowest_rooms_need_neither_torchrl_nor_tensordict(room):
    code = f"""
import sys, importlib, pkgutil
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torchrl", "tensordict"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Refuse())
package = importlib.import_module("wmkit.{room}")
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
print("ok")
"""
    assert run(code) == "ok"


def test_lazy_names_resolve_and_unknown_ones_do_not():
    assert wmkit.functional.__name__ == "wmkit.functional"
    assert wmkit.__version__
    assert set(wmkit.__all__) <= set(dir(wmkit))
    with pytest.raises(AttributeError, match="no attribute 'buidl'"):
        _ = wmkit.buidl
