"""Train two systems by name and compare them: what ``wmkit train`` does, from Python.

LS-Imagine and LS-Imagine without jumps differ by one override. The ``smoke`` preset passes
through every stage in under a minute each and learns nothing; use ``quick`` to see learning.

    python examples/train_by_name.py
    python examples/train_by_name.py quick
"""

from __future__ import annotations

import sys

from wmkit.systems import compose
from wmkit.training import train

VARIANTS = {
    "with jumps": [],
    "without jumps": ["controller.hooks.gate.prob=0.0"],
}


def main(preset: str = "smoke") -> None:
    """Train every variant with the same seed and print where the reports are."""
    for name, overrides in VARIANTS.items():
        config = compose("ls_imagine", [f"preset={preset}", "seed=0", *overrides])
        config.run_dir = f"runs/example-{preset}-{name.replace(' ', '-')}"
        summary = train(config)
        print(f"{name}: {summary.steps} steps, success {summary.success_rate}, {summary.run}/report.html")


if __name__ == "__main__":
    main(*sys.argv[1:2])
