"""A wmkit plug-in: a backbone, a head and a system that uses both.

Install this folder (``pip install ./examples/plugin``) and ``wmkit list system`` shows ``leaky_dreamer``,
``wmkit list backbone`` shows ``leaky`` for every system; ``wmkit train leaky_dreamer`` trains it.
"""

from __future__ import annotations

from pathlib import Path

from wmkit import registry


def register() -> None:
    """Called by wmkit when it first looks a name up; parts are imported when a page uses them."""
    registry.register("backbone", "leaky", "leaky_dreamer.backbone:LeakyIntegrator")
    registry.register("head", "rewarded", "leaky_dreamer.head:RewardedHead")
    registry.add_pages(Path(__file__).parent / "conf")
