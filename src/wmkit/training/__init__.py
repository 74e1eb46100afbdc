"""Training: collect, replay, update, evaluate, save, report.

run.py               the run directory and its logs
checkpoints.py       whole or absent, newest two and the best
checkpoint_files.py  safetensors, JSON and a checksum of each
owed.py              lines of episodes that no kill loses
trainer.py           the recipe; read this first
keeping.py           what a checkpoint holds, and how a run is taken up again
worlds.py            environments brought back to where they were
settings.py          what a run is told, as typed values
parts.py             how a configuration becomes environments, system and replay
affordance_stage.py  scorer, random frames, labels, U-Net
collect.py           TorchRL's collector over batched environments
devices.py           acting with weights on another device than the environments'
evaluate.py          one record per reset
reopen.py            a run that is there: load it, evaluate it, report on it
released.py          weights that were published: evaluate them
memory.py            replay and jump pairs
guard.py             NaN and infinity, without a synchronisation per update
schedule.py          ratios, intervals, deadlines, interrupts
protocol.py          the rules a score was made under
progress.py          one bar per stage
report/              report.html
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmkit.training.affordance_stage import fit_only
    from wmkit.training.protocol import EvaluationProtocol
    from wmkit.training.released import evaluate_released
    from wmkit.training.reopen import load_run, revisit
    from wmkit.training.report import write_report
    from wmkit.training.run import RunDirectory
    from wmkit.training.trainer import Summary, Trainer, train

_HOMES = {
    "EvaluationProtocol": "protocol",
    "RunDirectory": "run",
    "Summary": "trainer",
    "Trainer": "trainer",
    "evaluate_released": "released",
    "fit_only": "affordance_stage",
    "load_run": "reopen",
    "revisit": "reopen",
    "train": "trainer",
    "write_report": "report",
}

__all__ = [
    "EvaluationProtocol",
    "RunDirectory",
    "Summary",
    "Trainer",
    "evaluate_released",
    "fit_only",
    "load_run",
    "revisit",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
