"""Docstrings as they stand in the code, rendered well: roles become code, doctests become fences.

The docstrings are written for someone who reads the source: ``:class:`RSSM``` names a class,
and a ``>>>`` example stands where it helps. Markdown knows neither, so this Griffe extension
rewrites the text before mkdocstrings parses it.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:py:)?(?:class|func|meth|mod|attr|data|exc|obj):`~?([^`]+)`")
LITERAL_BLOCK = re.compile(r"^(?P<text>.*\S)::$")


def roles_to_code(text: str) -> str:
    """``:func:`a.b.c``` and ``:func:`~a.b.c``` both become the last name, as code.

    >>> roles_to_code("Inverse of :func:`~wmkit.functional.symexp`.")
    'Inverse of `symexp`.'
    """
    return ROLE.sub(lambda match: f"`{match[1].rsplit('.', 1)[-1]}`", text)


def fence_doctests(text: str) -> str:
    """Put every run of lines from ``>>>`` to the next blank line into a ``pycon`` fence."""
    lines, fenced, indent = [], False, ""
    in_fence = False
    for line in text.splitlines():
        stripped = line.lstrip()
        if stripped.startswith("```"):
            in_fence = not in_fence
        if not in_fence and not fenced and stripped.startswith(">>>"):
            indent = line[: len(line) - len(stripped)]
            if (
                lines
                and lines[-1].strip()
                and not lines[-1].rstrip().lower().endswith(("example:", "examples:"))
            ):
                lines.append("")
            lines.append(f"{indent}```pycon")
            fenced = True
        if fenced and not stripped:
            lines.append(f"{indent}```")
            fenced = False
        lines.append(line)
    if fenced:
        lines.append(f"{indent}```")
    return "\n".join(lines)


def literal_blocks(text: str) -> str:
    """``Text::`` followed by an indented block is Markdown's indented code after ``Text:``."""
    return "\n".join(
        f"{match['text']}:" if (match := LITERAL_BLOCK.match(line)) else line for line in text.splitlines()
    )


class Docstrings(griffe.Extension):
    """Rewrites every docstring once, after its object was loaded."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by Griffe for modules, classes, functions and attributes."""
        if obj.docstring is not None:
            obj.docstring.value = fence_doctests(literal_blocks(roles_to_code(obj.docstring.value)))

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Leave every object where it is written: names that a room re-exports are not shown twice."""
        for module in [pkg, *_modules(pkg)]:
            module.exports = None
            for name in [name for name, member in module.members.items() if member.is_alias]:
                del module.members[name]


def _modules(module: griffe.Module) -> list[griffe.Module]:
    below = [member for member in module.modules.values() if not member.is_alias]
    return below + [deeper for member in below for deeper in _modules(member)]
