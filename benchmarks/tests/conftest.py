"""The benchmarks' own tests, run by hand: ``pytest benchmarks/tests``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where a script finds its neighbours
