"""MkDocs hooks: pages list the results and the exported names there are, so that adding one needs no edit."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

RESULTS = "<!-- list of results -->"
EXPORTS = re.compile(r"<!-- exports of (?P<module>[\w.]+) -->")


def _title(page: Path) -> str:
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            return line[2:].strip()
    return page.stem.replace("_", " ")


def _results(config: Any) -> list[tuple[str, str]]:
    docs = Path(config["docs_dir"])
    return [(_title(page), page.relative_to(docs).as_posix()) for page in sorted(docs.glob("results/*.md"))]


def on_config(config: Any) -> Any:
    """Append every page of ``docs/results`` to the Results entry of the navigation."""
    docs = Path(config["docs_dir"])
    pages: list[Any] = ["results.md", *({title: path} for title, path in _results(config))]
    if (docs / "performance.md").exists():
        pages.append({"Performance": "performance.md"})
    for entry in config["nav"]:
        if "Results" in entry:
            entry["Results"] = pages
    return config


def _exports(match: re.Match[str], root: Path) -> str:
    """The names in ``__all__`` of a room, read without importing it."""
    source = root.joinpath("src", *match["module"].split("."), "__init__.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            names = [item.value for item in ast.walk(node) if isinstance(item, ast.Constant)]
            return f"Importable from `{match['module']}`: " + ", ".join(f"`{name}`" for name in names) + "."
    return ""


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Fill in the lists of result pages and of exported names."""
    links = [f"- [{title}]({path})" for title, path in _results(config)]
    markdown = markdown.replace(RESULTS, "\n".join(links) or "No results are published yet.")
    return EXPORTS.sub(lambda match: _exports(match, Path(config["docs_dir"]).parent), markdown)
