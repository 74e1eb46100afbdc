"""Numbered records, and a check that a replay holds what was written."""

import torch
from tensordict import TensorDict

from wmkit.data import ReplayStreams


def records(start: int, n: int, *, every: int = 7, zoomed: int = 3) -> TensorDict:
    """n records numbered from start; an episode begins at multiples of `every`."""
    t = torch.arange(start, start + n).view(n, 1)
    flag = t % zoomed == 0
    byte = (t % 251).to(torch.uint8)
    state = torch.nn.functional.one_hot(torch.cat([t % 4, t % 3], 1), 4).flatten(1).float()
    return TensorDict(
        {
            "pixels": byte.view(n, 1, 1, 1).expand(n, 3, 4, 4).clone(),
            "number": t,
            "reward": t.float(),
            "previous_action": torch.ones(n, 2),
            "state": state,
            "belief": torch.rand(n, 5),
            "is_init": t % every == 0,
            "terminated": torch.zeros(n, 1, dtype=torch.bool),
            "done": torch.zeros(n, 1, dtype=torch.bool),
            "is_zoomed": flag,
            "zoomed": {
                "pixels": torch.where(flag.view(n, 1, 1, 1), 255 - byte.view(n, 1, 1, 1), 9).expand(
                    n, 3, 4, 4
                ),
                "score": torch.where(flag, t.float() + 0.5, 9.0),
            },
        },
        [n],
    )


def verify(streams: ReplayStreams) -> None:
    """Everything held is what was written, and the counters agree with it."""
    steps = 0
    for stream in range(streams.num_streams):
        now = streams.windows(1)
        begin, end = int(now.begin[stream]), int(now.end[stream])
        steps += sum(t % 7 != 0 for t in range(end))
        found, want = streams.get(streams.ids(stream)), records(begin, end - begin)
        for key in ("pixels", "number", "reward", "state", "is_init"):
            assert torch.equal(found[key], want[key]), key
        held = found["is_zoomed"]
        assert not (held & ~want["is_zoomed"]).any()
        for key, zero in (("score", 0.0), ("pixels", 0)):
            mask = held.view(-1, *[1] * (want["zoomed", key].ndim - 1))
            assert torch.equal(found["zoomed", key], torch.where(mask, want["zoomed", key], zero)), key
    assert streams.total_steps == steps
