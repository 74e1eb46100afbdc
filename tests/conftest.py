"""Every test draws the same numbers, whatever ran before it; a worker computes on one thread."""

from __future__ import annotations

import os

import pytest
import torch

pytest.register_assert_rewrite("support")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # there is a worker per core


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
