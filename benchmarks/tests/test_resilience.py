"""The smallest sample of each part of resilience.py; what is there is not tried again."""

from __future__ import annotations

import struct
from argparse import Namespace
from pathlib import Path

import pytest
from resilience import PARTS, page, summary, tried
from trials.common import Trial, lost, rows
from trials.folders import whole

from support.torn import replica

SMALL = Namespace(kills=2, inputs=3, folders=2, torn=2, worlds=["raise"], limits=1, soak=200, minutes=0.3)
TRIED = {"kills": 3, "inputs": 3, "hostile": 2, "torn": 2, "worlds": 1, "disk": 1, "soak": 1}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trials")


@pytest.mark.parametrize("part", PARTS)
def test_the_smallest_sample_loses_nothing(part: str, out: Path) -> None:
    trial = Trial(part, out, SMALL)
    tried(part)(trial)
    found = rows(out, part)
    numbers = summary(found)
    assert numbers.pop("tried") == TRIED[part] and numbers.pop("codes")
    assert not any(numbers.values()), found
    tried(part)(trial)
    assert rows(out, part) == found
    assert f"`{part}`" in page({part: found}, "this one") and "Nothing." in page({part: found}, "this one")


def test_what_is_lost_is_counted(out: Path, tmp_path: Path) -> None:
    copy = replica(whole(Trial("torn", out, SMALL)), tmp_path / "run")
    assert lost(copy)["lines"] == 0 and lost(copy)["held"] > 60
    lines = (copy / "episodes.jsonl").read_text().splitlines(keepends=True)
    for wrong in (lines[1:], [*lines, lines[0]]):
        (copy / "episodes.jsonl").write_text("".join(wrong))
        assert lost(copy)["lines"] == 1
    copy.with_suffix(".safe").write_bytes(struct.pack("q", lost(copy)["held"] + 3))
    assert lost(copy)["records"] == 3
