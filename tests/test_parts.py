"""The table of parts and systems is that of the pages."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_table_is_that_of_the_pages() -> None:
    page = runpy.run_path(str(ROOT / "benchmarks" / "parts.py"))["page"]
    assert (ROOT / "docs" / "parts.md").read_text(encoding="utf-8") == page()
