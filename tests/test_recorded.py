"""Recorded data: every format gives the same episodes, and what does not fit ends in one sentence."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from support.recorded import (
    LENGTHS,
    convert,
    diffusion,
    film,
    fit,
    lerobot,
    make_replay,
    minari,
    number,
    stable,
    steps,
)
from wmkit.errors import DataError, WmkitError

h5py = pytest.importorskip("h5py", reason="the extra data is not installed")

FORMATS: dict[str, Callable[[Path], Path]] = {
    "Minari": minari,
    "HDF5, flat": lambda path: stable(path.with_suffix(".h5")),
    "Zarr": diffusion,
    "LeRobot 2": lambda path: lerobot(path, False),
    "LeRobot 3": lambda path: lerobot(path, True),
    "replay": make_replay,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_records(name: str, tmp_path: Path):
    fitted = fit(FORMATS[name](tmp_path / "set"))
    assert len(fitted) == 3
    found = sorted(convert(fitted), key=lambda records: float(records[_seen(records)][0]))
    for e, records in enumerate(found):
        n = LENGTHS[e] + 1
        t = torch.arange(n)
        assert len(records) == n
        assert torch.equal(records[_seen(records)][:, 0], torch.tensor([number(e, i) for i in range(n)]))
        action = torch.as_tensor(steps(e)["action"])
        if records["previous_action"].shape[1] == 3:
            assert torch.equal(records["previous_action"][1:].argmax(1), action.long())
        else:  # numbers from 0 to 2, as no one said that they are choices
            assert torch.allclose(records["previous_action"][1:, 0].double(), action - 1)
        assert not records["previous_action"][0].any() and records["reward"][0] == 0
        assert torch.equal(records["reward"][1:, 0], torch.as_tensor(steps(e)["reward"]).float())
        assert torch.equal(records["is_init"][:, 0], t == 0) and torch.equal(
            records["done"][:, 0], t == n - 1
        )
        assert records["terminated"].sum() == (e == 0 and name in ("Minari", "replay"))
        image = next(records[key] for key in ("image", "observation_image") if key in records.keys())
        assert image.dtype == torch.uint8 and image.shape[1] == 3
        scale, loss = (20, 6) if "LeRobot" in name else (1, 0)
        assert (image[:, 0].float().mean((1, 2)) - t * scale).abs().max() <= loss


def _seen(records: TensorDict) -> str:
    return "seen" if "seen" in records.keys() else "observation_seen"


def test_flat_flags_of_ends_cut_episodes_and_a_true_end_keeps_its_step(tmp_path: Path):
    with h5py.File(tmp_path / "d4rl.hdf5", "w") as file:
        file["observations"] = np.arange(12.0)[:, None]
        file["actions"], file["rewards"] = np.zeros((12, 2)), np.arange(12.0)
        file["terminals"] = np.arange(12) == 4
        file["timeouts"] = np.arange(12) == 8
    first, second, third = convert(fit(tmp_path / "d4rl.hdf5"))
    assert first["observation"][:, 0].tolist() == [0, 1, 2, 3, 4, 4]  # what was seen at the end is not there
    assert first["reward"][:, 0].tolist() == [0, 0, 1, 2, 3, 4] and bool(first["terminated"][-1])
    assert second["observation"][:, 0].tolist() == [5, 6, 7, 8] and not second["terminated"].any()
    assert third["observation"][:, 0].tolist() == [9, 10, 11]


def test_minari_s_own_pictures_and_spaces_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = pytest.importorskip("minari")
    from gymnasium.spaces import Box, Discrete

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    image = np.full((5, 64, 64, 3), 200, np.uint8)
    made = {"observations": image, "actions": np.array([1, 0, 1, 1]), "rewards": np.ones(4)}
    made |= {"terminations": np.zeros(4, bool), "truncations": np.arange(4) == 3, "infos": {}}
    buffer = package.data_collector.EpisodeBuffer(**made)
    spaces = {"observation_space": Box(0, 255, (64, 64, 3), np.uint8), "action_space": Discrete(2)}
    package.create_dataset_from_buffers("toys/square-v0", buffer=[buffer], **spaces)
    (records,) = convert(fit(Path("toys/square-v0")))  # by its id
    assert records["pixels"].shape == (5, 3, 64, 64) and (records["pixels"].float() - 200).abs().max() < 3
    assert records["previous_action"].argmax(1).tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize(("skip", "n", "ended"), [(2, 9, False), (4, 9, True), (5, 10, False), (3, 2, True)])
def test_steps_are_skipped_and_actions_joined(skip: int, n: int, ended: bool, tmp_path: Path):
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["observations"] = np.arange(n + 1.0)[:, None]
        file["actions"] = np.stack([np.arange(n) + 1.0, -np.arange(n)], 1)
        file["rewards"] = 10.0 ** np.arange(n)
        file["terminals"] = (np.arange(n) == n - 1) & ended
    got = fit(tmp_path / "one.h5", frame_skip=skip, actions="block").episode(0)
    blocks = -(-n // skip) if ended else n // skip
    assert got.observations["observation"][:, 0].tolist() == [min(i * skip, n) for i in range(blocks + 1)]
    for block in range(blocks):
        taken = [t for t in range(block * skip, (block + 1) * skip) if t < n]
        pairs = [value for t in taken for value in (t + 1.0, -float(t))]
        assert got.actions[block].tolist() == pairs + [0.0] * (2 * skip - len(pairs))
        assert got.rewards is not None and got.rewards[block] == sum(10.0**t for t in taken)
    first = fit(tmp_path / "one.h5", frame_skip=skip).episode(0)
    assert first.actions[:, 0].tolist() == [i * skip + 1.0 for i in range(len(first) - 1)]


def test_keys_are_chosen_renamed_and_pictures_resized(tmp_path: Path):
    path = minari(tmp_path / "set")
    fitted = fit(path, keys=["pixels"], rename={"image": "pixels"}, image_size=4)
    (pixels,) = fitted.observations.values()
    assert pixels.shape == (3, 4, 4) and fitted.episode(0).observations["pixels"].shape == (7, 3, 4, 4)
    with pytest.raises(DataError, match=r"'goal'.*found only image, seen"):
        fit(path, keys=["goal"])


# ---------------------------------------------------------------------------------------- what does not fit


def spoil(change: Callable) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        minari(path)
        with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
            change(file)
        return path

    return make


def put(name: str, value) -> Callable:
    def change(file) -> None:
        del file[name]
        if value is not None:
            file[name] = value

    return change


class Mine:
    """What runs if somebody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled(path: Path) -> Path:
    """A Zarr array whose codec would unpickle."""
    (path / "action").mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    array = {"zarr_format": 2, "shape": [4], "chunks": [4], "dtype": "|O", "fill_value": None, "order": "C"}
    array |= {"filters": [{"id": "pickle", "protocol": 4}], "compressor": None}
    (path / "action/.zarray").write_text(json.dumps(array))
    (path / "action/0").write_bytes(pickle.dumps(np.array([Mine(path / "executed")] * 4, dtype=object)))
    return path


def linked(path: Path) -> Path:
    other = stable(path.with_name("other.h5"))
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["actions"] = h5py.ExternalLink(str(other), "action")
        file["observations"] = np.zeros((4, 2))
    return path.with_suffix(".h5")


def circular(path: Path) -> Path:
    minari(path)
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        file["episode_0/again"] = file["/"]
    return path


def torn(path: Path) -> Path:
    path = stable(path.with_suffix(".h5"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    return path


def words(path: Path) -> Path:
    path = path.with_suffix(".h5")
    path.write_text("not at all")
    return path


def short_film(path: Path) -> Path:
    lerobot(path, True)
    film(path / "videos/observation.image/chunk-000/file-000.mp4", np.zeros((5, 32, 32, 3), np.uint8))
    return path


def outside(path: Path) -> Path:
    """A LeRobot folder whose metadata name a file elsewhere."""
    lerobot(path, False)
    said = json.loads((path / "meta/info.json").read_text())
    said["features"]["../../x"] = {"dtype": "video", "shape": [3, 32, 32]}
    said["features"]["observation.image"]["dtype"] = "float32"
    (path / "meta/info.json").write_text(json.dumps(said))
    return path


ACTIONS, SEEN = "episode_1/actions", "episode_1/observations/seen"
BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no actions": (spoil(put(ACTIONS, None)), "'action' of '/episode_1'"),
    "text as actions": (spoil(put(ACTIONS, np.array([b"left"] * 9))), "'action' of '/episode_1'"),
    "too few actions": (spoil(put(ACTIONS, np.zeros(3, np.int64))), r"'actions' of episode 1.*3 rows"),
    "another dtype": (spoil(put(SEEN, np.zeros((10, 1), np.int64))), "'seen' of episode 1"),
    "another shape": (spoil(put(SEEN, np.zeros((10, 2), np.float32))), "'seen' of episode 1"),
    "unequal keys": (spoil(put(SEEN, None)), "keys of episode 1: found image"),
    "NaN": (spoil(put(SEEN, np.full((10, 1), np.nan, np.float32))), r"'seen' of episode 1.*nan"),
    "NaN reward": (spoil(put("episode_1/rewards", np.full(9, np.inf))), r"'reward' of episode 1.*inf"),
    "a choice too many": (spoil(put(ACTIONS, np.full(9, 7))), "choices from 0 to 7"),
    "torn": (torn, "set.h5"),
    "no HDF5": (words, "set.h5"),
    "a link to another file": (linked, "link to another file"),
    "a circle of links": (circular, "in a circle"),
    "pickle": (pickled, "codec 'pickle'"),
    "a short video": (short_film, "file-000.mp4"),
    "a path as a key": (outside, "x"),
    "an empty folder": (lambda path: path.mkdir() or path, "no known format"),
    "nothing": (lambda path: path / "nowhere", "not there"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_ends_in_one_sentence(name: str, tmp_path: Path):
    make, wanted = BROKEN[name]
    if name == "pickle":
        pytest.importorskip("zarr")
    path = make(tmp_path / "set")
    with pytest.raises(WmkitError, match=wanted) as caught:
        convert(fit(path))
    sentence = str(caught.value)
    assert "\n" not in sentence and "wanted" in sentence and "set" in sentence
    assert not (tmp_path / "set/executed").exists()


@pytest.mark.parametrize("cut", [10, 100, 1000, 5000])
def test_a_file_that_is_cut_anywhere_is_read_or_refused(cut: int, tmp_path: Path):
    path = minari(tmp_path / "set")
    file = path / "data/main_data.hdf5"
    file.write_bytes(file.read_bytes()[:-cut])
    try:
        found = convert(fit(path))
    except WmkitError as error:
        assert "main_data.hdf5" in str(error)
    else:
        assert len(found) == 3
