"""report.html: what a run learned, to look at rather than to read.

evidence.py   after training: arrays of maps, imagined roll-outs and spans -> RUN/evidence/*.npz
page.py       from the run's files alone: report.html, self-contained
sections.py   one function per section; a section without data is left out
charts.py     line charts and scatters as inline SVG
pictures.py   frames and maps as inline images
page.html     the frame around it
"""

from __future__ import annotations

from wmkit.training.report.evidence import gather_evidence
from wmkit.training.report.page import write_report

__all__ = ["gather_evidence", "write_report"]
