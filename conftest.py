"""For all tests and doctests: the same random numbers whatever ran before, and workers for a whole run."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

pytest.register_assert_rewrite("support")
collect_ignore_glob = ["tests/support/*_game.py"]  # programs that tests start

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # there is a worker per core
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that a test starts


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker per core, eight at most; none for files named by hand, where starting them takes longer."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """The same seeds before a test; what PyTorch keeps for the whole process is afterwards as before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
