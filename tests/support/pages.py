"""What the documentation's pages show: code, programs, commands."""

from __future__ import annotations

import re
from pathlib import Path

TREE = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(page.relative_to(TREE)) for page in (TREE / "docs").rglob("*.md"))]


def code(text: str) -> list[str]:
    """Lines of a page that are rendered as code: fenced, or indented by four; in a box by four more."""
    lines, fenced, boxed = [], False, False
    for line in text.splitlines():
        boxed = line.startswith(("!!! ", "??? ")) or (boxed and (line.startswith("    ") or not line.strip()))
        if line.strip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith(" " * (8 if boxed else 4)):
            lines.append(line.strip())
    return lines


def programs(text: str) -> list[list[str]]:
    """Words of every command in a page's code, also between backticks; without settings and comments."""
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S))
    parts = [part for line in [*code(text), *inline] for part in re.split(r" #|&&", line)[:2]]
    words = [re.sub(r"^([A-Z_]+=\S+ )*", "", part.strip()).split() for part in parts]
    return [found for found in words if found]


def commands(text: str):
    """``(system, overrides)`` of every ``wmkit train`` of a page."""
    for words in programs(text):
        if words[:2] == ["wmkit", "train"] and len(words) > 2:
            overrides = [word for word in words[3:] if "=" in word]
            if not any(word.startswith("resume=") or "leaky" in word for word in words):
                yield words[2], overrides
