"""Writes report.html from what lies in a run directory; nothing else is read."""

from __future__ import annotations

import os
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from omegaconf import OmegaConf

from wmkit.training.report import sections
from wmkit.training.run import RunDirectory

ORDER = (sections.curves, sections.affordance, sections.imagination, sections.jumps, sections.losses)


def write_report(run: RunDirectory) -> Path:
    """Write ``report.html``: one file, pictures inside, opens without a network.

    Returns:
        Its path.
    """
    template = Template((files(__package__) / "page.html").read_text(encoding="utf-8"))
    env = str(OmegaConf.select(run.config, "env.name") or "")
    page = template.substitute(
        title=escape(f"{run.config.get('system', 'system')} on {env.rsplit('/', 1)[-1]}".replace("_", " ")),
        subtitle=escape(f"{run.path.name}, seed {run.config.get('seed', 0)}"),
        cards=sections.cards(run),
        sections="\n".join(filter(None, (make(run) for make in ORDER))),
        config=escape(OmegaConf.to_yaml(run.config, resolve=True)),
    )
    path = run.path / "report.html"
    temporary = path.with_name(f".report-{os.getpid()}.html")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path
