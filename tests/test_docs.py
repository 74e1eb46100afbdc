"""What the pages show runs: Python blocks in order, in one namespace; commands and overrides exist."""

from __future__ import annotations

import re

import pytest

from support.pages import PAGES, TREE, code, commands, programs
from wmkit.systems import compose

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page",
    ["docs/tour.md", "README.md", "docs/guides/scorer.md", "docs/howto/torchrl.md", "docs/performance.md"],
)
def test_python_blocks_run(page, capsys):
    text = (TREE / page).read_text(encoding="utf-8")
    names = {"__name__": "page"}
    for match in BLOCK.finditer(text):
        if "(Protocol)" in match[1]:
            continue  # a signature to read
        line = text[: match.start()].count("\n") + 1
        exec(compile("\n" * line + match[1], page, "exec"), names)


@pytest.mark.parametrize(
    "text",
    [
        "```bash\nwmkit train twm size=paper   # a=b\n```\n",
        "Prose.\n\n    wmkit train twm size=paper   # a=b\n",
        "!!! note\n    Text.\n\n        OMP_NUM_THREADS=1 wmkit train twm size=paper\n",
        "!!! note\n    Text.\n\n    ```bash\n    pip install . && wmkit train twm size=paper\n    ```\n",
        "Say `wmkit train twm\nsize=paper`, or `wmkit train` what `wmkit train twm resume=RUN` was.\n",
    ],
)
def test_commands_are_found(text):
    assert list(commands(text)) == [("twm", ["size=paper"])]


def test_a_command_in_the_text_of_a_box_is_no_code():
    assert code("!!! note\n    Text.\n\n    wmkit train twm\n\nText.\n\n    wmkit list\n") == ["wmkit list"]


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_code(page):
    """Below a box an indented line belongs to the box, as running text."""
    text = (TREE / page).read_text(encoding="utf-8")
    begins = re.compile(
        r"([A-Z_]+=\S+ )*(wmkit (train|eval|imagine|list|doctor|affordance)|python|pip|mkdocs) "
    )
    shown = code(text)
    assert [
        line for line in map(str.strip, text.splitlines()) if begins.match(line) and line not in shown
    ] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_compose(page):
    for system, overrides in commands((TREE / page).read_text(encoding="utf-8")):
        config = compose(system, overrides)
        assert config.system == system
        assert config.training.steps > config.training.prefill  # there is something to learn in


@pytest.mark.parametrize("page", PAGES)
def test_benchmarks_take_the_options_that_are_shown(page):
    for words in programs((TREE / page).read_text(encoding="utf-8")):
        if words[0] == "python" and words[1:] and words[1].startswith("benchmarks/"):
            path = TREE / words[1]
            source = (path / "__main__.py" if path.is_dir() else path).read_text(encoding="utf-8")
            for option in [word for word in words if word.startswith("--")]:
                assert f'"{option}"' in source, f"{words[1]} takes no {option}"


def test_jumpy_return_example(capsys):
    source = (TREE / "examples" / "jumpy_return.py").read_text(encoding="utf-8")
    names = {"__name__": "example"}
    exec(compile(source, "jumpy_return.py", "exec"), names)
    names["main"]()
    assert "walking, 21 transitions: 0.5438\njumping,  2 transitions: 0.5438" in capsys.readouterr().out
