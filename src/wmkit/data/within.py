"""Windows that lie within one episode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from wmkit.data.samplers import Windows
from wmkit.data.streams import ReplayStreams
from wmkit.errors import SpecError


class WithinEpisodes:
    """Every window that lies within one episode is equally likely, with replacement.

    What follows is read once; records that are written later are looked through before the next draw.

    Args:
        streams: whose windows are drawn.

    >>> from tensordict import TensorDict
    >>> streams = ReplayStreams(num_streams=1, capacity=10)
    >>> init = torch.tensor([1, 0, 0, 1, 0, 0, 0], dtype=torch.bool)[:, None]
    >>> _ = streams.extend(TensorDict({"is_init": init, "done": ~init}, [7]), stream=0)
    >>> sampler = WithinEpisodes(streams)
    >>> sorted(set(sampler.draw(streams.windows(3), 100, torch.Generator()).tolist()))
    [0, 3, 4]
    """

    def __init__(self, streams: ReplayStreams) -> None:
        self._streams = streams
        self._starts: list[Tensor] = [torch.zeros(0, dtype=torch.int64)] * streams.num_streams  # positions
        self._seen = [0] * streams.num_streams

    def episodes(self, windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
        """Stream, first position and records of every episode that is held, int64 ``[E]`` each."""
        found = []
        for stream, (begin, end) in enumerate(zip(windows.begin.tolist(), windows.end.tolist(), strict=True)):
            first = max(self._seen[stream], begin)
            if end > first:
                ids = windows.ids(torch.tensor(stream), torch.arange(first, end))
                new = self._streams.get(ids, keys=["is_init"])["is_init"].view(-1).nonzero().view(-1) + first
                self._starts[stream] = torch.cat([self._starts[stream], new])
                self._seen[stream] = end
            gone = int((self._starts[stream] <= begin).sum()) - 1  # whose episodes were evicted whole
            starts = self._starts[stream] = self._starts[stream][max(gone, 0) :]
            if end == begin:
                continue
            firsts = starts.clamp_min(begin)
            if not len(firsts) or int(firsts[0]) > begin:  # the rest of an episode whose start is gone
                firsts = torch.cat([torch.tensor([begin]), firsts])
            stops = torch.cat([firsts[1:], torch.tensor([end])])
            found.append((torch.full_like(firsts, stream), firsts, stops - firsts))
        if not found:
            return (torch.zeros(0, dtype=torch.int64),) * 3
        streams, firsts, lengths = (torch.cat(parts) for parts in zip(*found, strict=True))
        return streams, firsts, lengths

    def draw(self, windows: Windows, batch_size: int, generator: Generator) -> Tensor:
        """int64 ``[batch_size]`` ids; SpecError where no episode is long enough."""
        streams, firsts, lengths = self.episodes(windows)
        count = (lengths - windows.length + 1).clamp_min(0)
        total = int(count.sum())
        if total == 0:
            longest = int(lengths.max()) if len(lengths) else 0
            raise SpecError(
                f"replay has no window within one episode: found {longest} records in its longest episode, "
                f"wanted {windows.length}; set batch.length lower, or data.windows=across"
            )
        rank = torch.randint(total, (batch_size,), generator=generator)
        last = count.cumsum(0)
        chosen = torch.searchsorted(last, rank, right=True)
        return windows.ids(streams[chosen], firsts[chosen] + rank - (last - count)[chosen])

    def state_dict(self) -> dict[str, Any]:
        """Empty: replay says where episodes begin."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
