"""Files that were damaged, or that somebody else wrote: one sentence, and nothing outside is touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from wmkit.errors import CheckpointError, NonFiniteLossError
from wmkit.training import checkpoint_files
from wmkit.training.checkpoints import CheckpointStore


def flip(path: Path, place: int) -> None:
    """Turn one bit of a file round."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << place % 8
    path.write_bytes(data)


def old_checkpoint(folder: Path, state: dict) -> None:
    """As they were before there were checksums."""
    folder.mkdir(parents=True)
    torch.save(state, folder / "state.pt")
    (folder / "meta.json").write_text(json.dumps({"step": state["step"], "score": None}))


def test_what_a_checkpoint_holds_comes_back(tmp_path):
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-3)
    layer(torch.ones(1, 3, 5, 5)).sum().backward()
    optimiser.step()
    whole = torch.arange(6.0)
    state = {
        "system": {**layer.state_dict(), "_extra_state": optimiser.state_dict()},
        "shared": [whole, whole, whole[2:4], whole.view(2, 3).T, whole[:0], torch.tensor(3)],
        "odd": {"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}, 3: ("x", None, True, float("inf"))},
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    store = CheckpointStore(tmp_path)
    found = store.load(store.save(1, state))
    assert found["odd"][3] == ("x", None, True, float("inf"))
    leaves, wanted = tree_flatten(found), tree_flatten(state)
    assert leaves[1] == wanted[1]
    for one, other in zip(leaves[0], wanted[0], strict=True):
        assert torch.equal(one, other) if isinstance(other, torch.Tensor) else one == other
    moments = found["system"]["_extra_state"]["state"][0]["exp_avg"]
    assert moments.stride() == layer.weight.stride()
    assert not list(tmp_path.rglob("*.pt"))
    with pytest.raises(TypeError, match="'odd'"):
        store.save(2, {"odd": object()})


@pytest.mark.parametrize("old", [False, True])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, old):
    """One bit of any file, at a hundred places; then the file gone; then all of them."""
    said: list[str] = []
    store = CheckpointStore(tmp_path / "kept", say=said.append)
    for step in (1, 2, 3):
        state = {"step": step, "system": {"weight": torch.full((50,), float(step))}}
        if old:
            old_checkpoint(store.folder / f"step-{step:012d}-000", state)
        else:
            store.save(step, state, score=step / 10)
    newest, before = store.latest(), list(store.steps().values())[-2]
    assert store.load(newest)["step"] == 3 and not said
    kept = {path: path.read_bytes() for path in newest.iterdir() if not (old and path.name == "meta.json")}
    for path, data in kept.items():
        weight = data.find(torch.full((1,), 3.0).numpy().tobytes())  # of an archive, what stands in it
        for place in [weight] if old else range(0, len(data), max(1, len(data) // 40)):
            flip(path, place)
            assert store.latest() == before, (path, place)
            with pytest.raises(CheckpointError, match=newest.name):
                store.load(newest)
            path.write_bytes(data)
        path.unlink()
        assert store.latest() == before
        path.write_bytes(data)
    assert (
        store.latest() == newest and newest.name in said[0] and before.name in said[0] and "\n" not in said[0]
    )

    flip(path, max(weight, 0))
    assert store.latest() == before
    store.save(2, {"step": 2})  # it goes on from there
    assert store.load(store.latest())["step"] == 2 and (store.folder / f"damaged-{newest.name}").is_dir()
    for path in store.folder.glob("step-*"):
        next(path.glob("state.*")).write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        store.latest()
    assert CheckpointStore(tmp_path / "none").latest() is None


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    store = CheckpointStore(tmp_path)
    state = {"system": {"line": {"weight": torch.tensor([1.0, float("nan")])}}}
    with pytest.raises(NonFiniteLossError, match="'system/line/weight'"):
        store.save(1, state)
    assert not list(tmp_path.iterdir())
    folder = tmp_path / "step-000000000001-000"
    folder.mkdir()
    checkpoint_files.write(folder, state, {"step": 1, "score": None})
    with pytest.raises(CheckpointError, match="NaN in tensor 'system/line/weight'"):
        store.load(store.latest())
    shutil.rmtree(folder)
    old_checkpoint(folder, {**state, "step": 1})
    with pytest.raises(CheckpointError, match="NaN in tensor 'system/line/weight'"):
        store.load(store.latest())
