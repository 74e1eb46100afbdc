"""Every system still computes what it computed when :mod:`support.golden` recorded it, fast or plain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from support import golden
from wmkit import fast

FILES = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def single_threaded() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_case_was_recorded() -> None:
    assert {path.stem for path in FILES.glob("*.npz")} == set(golden.CASES)


@pytest.mark.parametrize("short_cuts", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("name", golden.CASES)
def test_nothing_has_changed(name: str, short_cuts: bool) -> None:
    case, kept = golden.CASES[name], golden.load(FILES / f"{name}.npz")
    with nullcontext() if short_cuts else fast.disabled():
        found = golden.run(case)
    differences = golden.off(golden.compare(found, kept, case.system))
    lines = [f"{one.phase}: {one.name} {one.what or f'is off by {one.share:.1e}'}" for one in differences]
    assert not lines, "\n".join([f"{len(lines)} recorded tensors differ, the worst are", *lines[:12]])
