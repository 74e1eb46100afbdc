"""The command line: ``wmkit train | eval | imagine | report | affordance fit | list | doctor``.

Heavy imports happen inside the commands, so that ``wmkit --help`` answers at once.
"""

from __future__ import annotations

from wmkit.cli.app import app, main

__all__ = ["app", "main"]
