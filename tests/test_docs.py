"""The pages run: every Python block of the tour and of the README, in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wmkit.systems import compose

TREE = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(str(page.relative_to(TREE)) for page in (TREE / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", ["docs/tour.md", "README.md", "docs/guides/scorer.md", "docs/performance.md"]
)
def test_python_blocks_run(page, capsys):
    text = (TREE / page).read_text(encoding="utf-8")
    names = {"__name__": "page"}
    for match in BLOCK.finditer(text):
        if "(Protocol)" in match[1]:
            continue  # a signature to read
        line = text[: match.start()].count("\n") + 1
        exec(compile("\n" * line + match[1], page, "exec"), names)


def commands(text: str):
    """``(system, overrides)`` of every ``wmkit train`` line in the fenced blocks of a page."""
    for line in re.findall(r"^wmkit train (\S+)(.*)$", text, re.MULTILINE):
        overrides = [word for word in line[1].partition("#")[0].split() if "=" in word]
        if not any(word.startswith("resume=") or word == "backbone=leaky" for word in overrides):
            yield line[0], overrides


@pytest.mark.parametrize("page", PAGES)
def test_commands_compose(page):
    for system, overrides in commands((TREE / page).read_text(encoding="utf-8")):
        config = compose(system, overrides)
        assert config.system == system
        assert config.training.steps > config.training.prefill  # there is something to learn in


def test_switches_back_to_the_released_code_exist():
    text = (TREE / "docs" / "systems" / "ls_imagine.md").read_text(encoding="utf-8")
    switches = [switch for switch in re.findall(r"`(\+?[a-z_]+\.[\w.]+=[\w.]+)`", text)]
    assert len(switches) > 8
    for switch in switches:
        compose("ls_imagine", [switch])


def test_jumpy_return_example(capsys):
    source = (TREE / "examples" / "jumpy_return.py").read_text(encoding="utf-8")
    names = {"__name__": "example"}
    exec(compile(source, "jumpy_return.py", "exec"), names)
    names["main"]()
    assert "walking, 21 transitions: 0.5438\njumping,  2 transitions: 0.5438" in capsys.readouterr().out
