"""The same three episodes in every format of recorded data; every number in them says when it was made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from wmkit.data import ReplayStreams
from wmkit.data.recorded import DataSettings, Fitted, open_recorded
from wmkit.data.recorded.convert import read_actions, records_of, specs

h5py = pytest.importorskip("h5py", reason="the extra data is not installed")

LENGTHS = (6, 9, 4)  # transitions of each episode


def number(episode: int, t: int) -> float:
    return 100.0 * episode + t


def steps(episode: int, extra: int = 0) -> dict[str, np.ndarray]:
    """An episode whose every number says when it was made; ``extra`` observations after the last action."""
    n = LENGTHS[episode]
    t = np.array([number(episode, i) for i in range(n)])
    seen = np.array([number(episode, i) for i in range(n + extra)])
    image = np.zeros((n + extra, 8, 8, 3), np.uint8)
    image[..., 0] = np.arange(n + extra)[:, None, None]  # red counts
    return {"seen": seen[:, None].astype(np.float32), "image": image, "action": t % 3, "reward": t + 1}


def minari(path: Path) -> Path:
    """As Minari lays it out: a group for each episode, one observation more than actions."""
    (path / "data").mkdir(parents=True)
    with h5py.File(path / "data" / "main_data.hdf5", "w") as file:
        for e in range(3):
            group, made = file.create_group(f"episode_{e}"), steps(e, extra=1)
            group["observations/seen"], group["observations/image"] = made["seen"], made["image"]
            group["actions"], group["rewards"] = made["action"].astype(np.int64), made["reward"]
            ends = np.arange(LENGTHS[e]) == LENGTHS[e] - 1
            group["terminations"], group["truncations"] = ends & (e == 0), ends & (e != 0)
            group["infos/seen"] = made["seen"] * 0
    said = {"data_format": "hdf5", "action_space": json.dumps({"type": "Discrete", "n": 3, "start": 0})}
    (path / "data" / "metadata.json").write_text(json.dumps(said))
    return path


def flat(create: Callable) -> None:
    """One array a key, over the rows of all episodes; nothing is done in an episode's last row."""
    made = [steps(e, extra=1) for e in range(3)]
    for one in made:
        one["action"], one["reward"] = np.append(one["action"], np.nan), np.append(one["reward"], 0)
    for key in made[0]:
        create(key, data=np.concatenate([one[key] for one in made]))


def stable(path: Path) -> Path:
    """As stable-worldmodel lays it out: rows, ``ep_len`` and ``ep_offset``."""
    with h5py.File(path, "w") as file:
        flat(file.create_dataset)
        rows = np.array(LENGTHS) + 1
        file["ep_len"], file["ep_offset"] = rows, np.cumsum([0, *rows[:-1]])
    return path


def diffusion(path: Path) -> Path:
    """As diffusion policy lays it out: Zarr, ``meta/episode_ends``."""
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(path), mode="w")
    flat(root.create_group("data").create_array)
    root.create_group("meta").create_array("episode_ends", data=np.cumsum(np.array(LENGTHS) + 1))
    return path


def lerobot(path: Path, packed: bool) -> Path:
    """As LeRobot lays it out, version 2 or 3: Parquet tables and videos."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("av")
    tables, frames, told, begin = [], [], [], 0
    for e in range(3):
        made = steps(e, extra=1)
        rows = LENGTHS[e] + 1
        tables.append(
            arrow.table(
                {
                    "observation.seen": arrow.array(made["seen"].tolist(), arrow.list_(arrow.float32())),
                    "action": np.append(made["action"], 0.0).astype(np.float32)[:, None].tolist(),
                    "next.reward": np.append(made["reward"], 0.0).astype(np.float32),
                    "episode_index": np.full(rows, e),
                }
            )
        )
        frames.append(np.repeat(np.repeat(made["image"][:, :1, :1] * 20, 32, 1), 32, 2))
        place = {"chunk_index": 0, "file_index": 0, "from_timestamp": begin / 10}
        told.append({"episode_index": e} | {f"videos/observation.image/{k}": v for k, v in place.items()})
        begin += rows
    data, videos = path / "data/chunk-000", path / "videos"
    data.mkdir(parents=True)
    if packed:
        parquet.write_table(arrow.concat_tables(tables), data / "file-000.parquet")
        film(videos / "observation.image/chunk-000/file-000.mp4", np.concatenate(frames))
        (path / "meta/episodes/chunk-000").mkdir(parents=True)
        parquet.write_table(arrow.Table.from_pylist(told), path / "meta/episodes/chunk-000/file-000.parquet")
    else:
        (path / "meta").mkdir()
        for e in range(3):
            parquet.write_table(tables[e], data / f"episode_{e:06d}.parquet")
            film(videos / f"chunk-000/observation.image/episode_{e:06d}.mp4", frames[e])
    features = {
        "observation.image": {
            "dtype": "video",
            "shape": [3, 32, 32],
            "names": ["channels", "height", "width"],
        },
        "observation.seen": {"dtype": "float32", "shape": [1]},
        "action": {"dtype": "float32", "shape": [1]},
        "next.reward": {"dtype": "float32", "shape": [1]},
        "episode_index": {"dtype": "int64", "shape": [1]},
    }
    info = {"codebase_version": "v3.0" if packed else "v2.1", "fps": 10, "features": features}
    (path / "meta/info.json").write_text(json.dumps(info))
    return path


def film(path: Path, frames: np.ndarray) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 32, 32, "yuv420p", 4_000_000
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))


def make_replay(path: Path) -> Path:
    streams = ReplayStreams(path, num_streams=2, capacity=100)
    for e in range(3):
        made, n = steps(e, extra=1), LENGTHS[e] + 1
        first = torch.arange(n)[:, None] == 0
        action = torch.zeros(n, 3)
        action[1:] = nn.functional.one_hot(torch.as_tensor(made["action"]).long(), 3).float()
        reward = torch.cat([torch.zeros(1), torch.as_tensor(made["reward"]).float()])[:, None]
        records = {"seen": torch.as_tensor(made["seen"]), "previous_action": action, "reward": reward}
        records["image"] = torch.as_tensor(made["image"]).permute(0, 3, 1, 2)
        records |= {"is_init": first, "done": first.flip(0), "terminated": first.flip(0) & (e == 0)}
        streams.extend(TensorDict(records, [n]), stream=e % 2)
    return path


def fit(path: Path, **settings) -> Fitted:
    return Fitted(open_recorded(path), DataSettings(str(path), **settings))


def convert(fitted: Fitted, num_actions: int | None = None) -> list[TensorDict]:
    code, shown = read_actions(fitted, num_actions), dict(specs(fitted).items())
    return [records_of(fitted, index, code, shown) for index in range(len(fitted))]
