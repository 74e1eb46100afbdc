"""A wmkit run's own replay, or that of another, as recorded data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from wmkit.data.layout import LATENTS
from wmkit.data.recorded.contract import Column, Episode, refused
from wmkit.data.streams import ReplayStreams

FLAGS = ("previous_action", "reward", "is_init", "terminated", "done", *LATENTS, "success", "step_count")


def find_replay(path: Path) -> Path | None:
    """The replay of a run folder, or the folder itself; None of another folder."""
    return next((one for one in (path, path / "replay") if (one / "schema.json").is_file()), None)


class ReplaySource:
    """Episodes of replay streams, behind the contract of :class:`~wmkit.data.recorded.contract.Source`.

    Latents are left behind: another system's are of no use.

    Args:
        folder: of the replay.

    Raises:
        CheckpointError: what lies there is damaged.
        DataError: no episode, or no actions.
    """

    kind = "wmkit replay"

    def __init__(self, folder: Path) -> None:
        self.path = str(folder)
        self._streams = ReplayStreams.open(folder)
        fields = {f.key[0]: f for f in self._streams.fields() if len(f.key) == 1}
        skip = {*FLAGS, *(name for name in fields if name.startswith(("jump", "is_")))}
        self.observations = {
            key: Column(key, f.shape, _numpy(f.dtype)) for key, f in sorted(fields.items()) if key not in skip
        }
        if "previous_action" not in fields or not self.observations:
            found = ", ".join(fields) or "nothing"
            raise refused(
                self.path,
                "its records",
                f"the keys {found}",
                "previous_action and observations",
                "take a run's",
            )
        self.action = Column("action", fields["previous_action"].shape, np.dtype(np.float32), encoded=True)
        self.rewards = "reward" in fields
        self._spans = [span for stream in range(self._streams.num_streams) for span in self._cut(stream)]
        if not self._spans:
            raise refused(
                self.path, "its records", "no episode of two records", "one at least", "collect more"
            )
        self.lengths = [len(ids) for ids in self._spans]

    def _cut(self, stream: int) -> list[torch.Tensor]:
        """Ids of each episode of a stream."""
        ids = self._streams.ids(stream)
        if not len(ids):
            return []
        starts = self._streams.get(ids, keys=["is_init"])["is_init"].view(-1)
        starts[0] = True
        borders = [*starts.nonzero().view(-1).tolist(), len(ids)]
        return [ids[a:b] for a, b in pairwise(borders) if b - a > 1]

    def episode(self, index: int, keys: Sequence[str] | None = None) -> Episode:
        """One episode, read now."""
        chosen = [key for key in self.observations if keys is None or key in keys]
        flags = ("previous_action", "terminated", *["reward"] * self.rewards)
        records = self._streams.get(self._spans[index], keys=[*chosen, *flags])
        seen = {key: records[key].numpy() for key in chosen}
        rewards = records["reward"][1:, 0].numpy() if self.rewards else None
        ended = bool(records["terminated"][-1].any()) if "terminated" in records.keys() else False
        return Episode(seen, records["previous_action"][1:].numpy(), rewards, ended)

    def actions(self, index: int) -> np.ndarray:
        """The actions of one episode."""
        return self._streams.get(self._spans[index], keys=["previous_action"])["previous_action"][1:].numpy()


def _numpy(dtype: torch.dtype) -> np.dtype:
    return torch.zeros(0, dtype=dtype).numpy().dtype
