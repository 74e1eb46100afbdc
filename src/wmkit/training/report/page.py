"""Writes report.html from what lies in a run directory; nothing else is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from omegaconf import OmegaConf

from wmkit.errors import WmkitError
from wmkit.training.report import imagined, sections
from wmkit.training.report.evidence import (
    NAMES,
    gather_evidence,
    not_drawn,
    read_evidence,
    read_notes,
    tell,
)
from wmkit.training.report.verdict import Verdict, verdict
from wmkit.training.run import RunDirectory

Say = Callable[[str], None]

ORDER = {
    "Learning": sections.curves,
    "Affordance maps": sections.affordance,
    "Imagined and real": sections.imagination,
    "Jumps": sections.jumps,
    "Losses": sections.losses,
}

RECORDS = ("What was learned", "Headline numbers")  # read all that the run recorded, before evidence is


def write_report(run: RunDirectory, say: Say = tell) -> Path:
    """Write ``report.html``: one file, pictures inside, opens without a network.

    A section that cannot be drawn is replaced by a sentence, which ``say`` is told too.

    Returns:
        Its path.

    Raises:
        CheckpointError: the run's records are damaged.
    """
    template = Template((files(__package__) / "page.html").read_text(encoding="utf-8"))
    env = str(OmegaConf.select(run.config, "env.name") or "")
    found = _attempt(RECORDS[0], partial(verdict, run), say)
    learned = found if isinstance(found, Verdict) else Verdict(found)
    page = template.substitute(
        title=escape(f"{run.config.get('system', 'system')} on {env.rsplit('/', 1)[-1]}".replace("_", " ")),
        subtitle=escape(f"{run.path.name}, seed {run.config.get('seed', 0)}"),
        learned=escape(learned.sentence),
        grounds=f'<p class="grounds">{escape(learned.grounds)}</p>' if learned.grounds else "",
        cards=_attempt(RECORDS[1], partial(sections.cards, run), say, "<p>{}</p>"),
        sections="\n".join(filter(None, _sections(run, say))),
        config=escape(OmegaConf.to_yaml(run.config, resolve=True)),
    )
    path = run.path / "report.html"
    temporary = path.with_name(f".report-{os.getpid()}.html")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def make_report(
    run: RunDirectory,
    system: Any,
    evaluation: Any,
    memory: Any,
    device: Any,
    affordance: Any,
    say: Say = tell,
) -> None:
    """:func:`gather_evidence`, then :func:`write_report`, at the end of a run; nothing is raised."""
    try:
        gather_evidence(run, system, evaluation, memory, device, affordance, say)
        write_report(run, say)
    except Exception as error:
        say(not_drawn("report.html", error))


def drawn(path: str | Path, *, trust: bool = False) -> str:
    """What a run's report shows of imagination, in words; or why it shows nothing.

    Args:
        path: the run directory.
        trust: see :meth:`RunDirectory.open`.
    """
    run = RunDirectory.open(path, trust=trust)
    data = read_evidence(run, "imagination")
    if data is not None:
        return imagined.contents(data)
    return read_notes(run).get("imagination", "nothing: no episode was recorded")


def _sections(run: RunDirectory, say: Say) -> list[str]:
    notes = _attempt("notes.json", partial(read_notes, run), say)
    told = {NAMES[name]: text for name, text in notes.items()} if isinstance(notes, dict) else {}
    made = []
    for title, make in ORDER.items():
        text = _attempt(title, partial(make, run), say, sections.section(title, "{}", ""))
        if title in told:  # what was found before, or nothing at all
            text = text or sections.section(title, escape(_capital(told[title])) + ".", "")
        made.append(text)
    return made


def _attempt(name: str, make: Callable[[], Any], say: Say, frame: str = "{}") -> Any:
    """What ``make`` returns, or in ``frame`` the sentence that says why it does not."""
    try:
        return make()
    except Exception as error:
        if isinstance(error, WmkitError) and name in RECORDS:  # a sentence of its own, for the command
            raise
        sentence = not_drawn(name, error)
        say(sentence)
        return frame.replace("{}", escape(sentence))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
