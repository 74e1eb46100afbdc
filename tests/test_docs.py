"""The pages run: every Python block of the tour and of the README, in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TREE = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["docs/tour.md", "README.md", "docs/guides/scorer.md"])
def test_python_blocks_run(page, capsys):
    text = (TREE / page).read_text(encoding="utf-8")
    names = {"__name__": "page"}
    for match in BLOCK.finditer(text):
        if "(Protocol)" in match[1]:
            continue  # a signature to read
        line = text[: match.start()].count("\n") + 1
        exec(compile("\n" * line + match[1], page, "exec"), names)


def test_jumpy_return_example(capsys):
    source = (TREE / "examples" / "jumpy_return.py").read_text(encoding="utf-8")
    names = {"__name__": "example"}
    exec(compile(source, "jumpy_return.py", "exec"), names)
    names["main"]()
    assert "walking, 21 transitions: 0.5438\njumping,  2 transitions: 0.5438" in capsys.readouterr().out
