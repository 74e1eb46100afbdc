"""report.html: what a run learned, to look at rather than to read.

verdict.py    from the run's files alone: one sentence on what was learned, decided by numbers
evidence.py   after training: arrays of maps, imagined roll-outs and spans -> RUN/evidence/*.npz
page.py       from the run's files alone: report.html, self-contained
sections.py   one function per section; a section without data is left out
imagined.py   the section of what was imagined: strips of any image key, curves of vectors
charts.py     line charts and scatters as inline SVG
pictures.py   frames of any number of channels, and maps, as inline images
page.html     the frame around it

Drawing ends no run: what fails becomes one sentence, in the report and on the terminal.
"""

from __future__ import annotations

from wmkit.training.report.evidence import gather_evidence
from wmkit.training.report.page import drawn, make_report, write_report
from wmkit.training.report.verdict import learned

__all__ = ["drawn", "gather_evidence", "learned", "make_report", "write_report"]
