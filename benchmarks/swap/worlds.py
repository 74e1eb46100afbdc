"""Data that is collected once, a world model learnt from it, and how far ahead it sees."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import TransformedEnv
from torchrl.envs.transforms import InitTracker

from swap import equal
from wmkit.data import to_sequence
from wmkit.envs import make_env

KEYS = ("pixels", "previous_action", "reward", "is_init", "terminated", "done")
OVERRIDES = ["preset=quick", "size=tiny"]


class World(NamedTuple):
    """An environment to collect from."""

    env: str
    records: int
    options: dict[str, Any]


WORLDS = {
    "vizdoom": World(
        "vizdoom/harvest_log_in_plains",
        16_000,
        {"world": "small", "max_steps": 60, "frames": False, "masks": False},
    ),
    "battle_zone": World("atari100k/battle_zone", 16_000, {}),
}


def collect(world: World, records: int, path: Path, streams: int = 8, seed: int = 0) -> None:
    """Play at random and keep the records: ``streams`` environments, one file."""
    env = TransformedEnv(make_env(world.env, num_envs=streams, seed=seed, **world.options), InitTracker())
    torch.manual_seed(seed)
    env.set_seed(seed)
    kept = [x.select(*KEYS) for x in to_sequence(env.rollout(records // streams, break_when_any_done=False))]
    env.close()
    arrays = {key: torch.cat([x[key] for x in kept]).numpy() for key in KEYS}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, lengths=[len(x) for x in kept], **arrays)


def load(path: Path, held_out: float = 0.375) -> tuple[list[TensorDict], list[TensorDict]]:
    """Streams of records ``[n]`` to learn from, and those held out."""
    with np.load(path) as file:
        lengths = file["lengths"].tolist()
        records = TensorDict({key: torch.from_numpy(file[key]) for key in KEYS}, [sum(lengths)])
    streams = list(records.split(lengths))
    last = max(1, round(held_out * len(streams)))
    return streams[:-last], streams[-last:]


def batches(
    streams: list[TensorDict], updates: int, size: int, length: int, seed: int
) -> Iterator[TensorDict]:
    """Windows ``[size, length]`` from anywhere, also across the ends of episodes."""
    random = np.random.default_rng(seed)
    for _ in range(updates):
        rows = [streams[i] for i in random.integers(len(streams), size=size)]
        starts = [int(random.integers(len(row) - length + 1)) for row in rows]
        yield torch.stack([row[s : s + length] for row, s in zip(rows, starts, strict=True)])


class Windows(NamedTuple):
    """What is rolled out over, ``W`` windows of ``L`` records within episodes.

    Attributes:
        seen: ``[W, L]``; one that outlasts its episode repeats the last record.
        real: ``[W, L]`` bool, the records that are none of those.
        even: ``[W]`` bool, those spread evenly; the others stand where rewards and ends lie ahead.
    """

    seen: TensorDict
    real: Tensor
    even: Tensor


def windows(
    streams: list[TensorDict], context: int, horizon: int, stride: int = 12, near: int = 4
) -> Windows:
    """A window from every ``stride``-th record of an episode, and denser ones before what is rare.

    Args:
        streams: records ``[n]``.
        context: steps that are observed.
        horizon: steps after them.
        stride: between the starts of windows.
        near: the same where a reward or a true end lies within the horizon.
    """
    found, real, even = [], [], []
    for stream in streams:
        rare = (stream["reward"] != 0) | stream["terminated"]
        borders = [*stream["is_init"].flatten().nonzero().flatten().tolist(), len(stream)]
        for begin, end in pairwise(borders):
            for start in range(begin, end - context):
                ahead = slice(start + context, min(start + context + horizon, end))
                regular = (start - begin) % stride == 0
                if regular or ((start - begin) % near == 0 and rare[ahead].any()):
                    index = torch.arange(start, start + context + horizon)
                    found.append(stream[index.clamp(max=end - 1)])
                    real.append(index < end)
                    even.append(regular)
    return Windows(torch.stack(found), torch.stack(real), torch.tensor(even))


def recall_of_classes(score: Tensor, event: Tensor, threshold: float) -> dict[str, float | int | None]:
    """Mean of the hits among events and among the rest, and the area under the ROC curve.

    An event is foretold where its ``score`` is above ``threshold``: with the base rate for one, the
    best that a calibrated score can do. Chance is 0.5 for both numbers.
    """
    yes, no = score[event], score[~event]
    out: dict[str, float | int | None] = {"events": len(yes), "others": len(no)}
    if not len(yes) or not len(no):
        return {**out, "balanced_accuracy": None, "auc": None}
    hits = ((yes > threshold).float().mean() + (no <= threshold).float().mean()) / 2
    order = torch.searchsorted(no.sort().values, yes)  # of the rest, how many lie below
    ties = torch.searchsorted(no.sort().values, yes, right=True)
    auc = (order + ties).float().mean() / 2 / len(no)
    return {**out, "balanced_accuracy": float(hits), "auc": float(auc)}


@torch.no_grad()
def evaluate(system: Any, over: Windows, context: int, rates: dict[str, float], bands: int = 3) -> dict:
    """Roll out with the recorded actions and compare; horizon 0 is the last observed step.

    Args:
        system: with the world model.
        over: what to roll out over; images count where windows are spread evenly.
        context: steps that are observed.
        rates: of rewards and ends among the records learnt from.
        bands: of horizons, over which rewards and ends are put together.
    """
    seen, real, _ = over
    errors, scores = [], {"reward": [], "end": []}
    for rows in seen.split(64):
        batch = system.fill(rows)
        model = system.world_model
        images, latent = model.open_loop(batch, context)
        error = (images["pixels"] - batch["pixels"]).square().mean((-3, -2, -1))
        errors.append(error[:, context - 1 :])
        later = latent.map(lambda x: x[:, context:])
        scores["reward"].append(model.predict("reward", later).mean.squeeze(-1).abs())
        scores["end"].append(1 - model.continuation(later).squeeze(-1))
    out: dict[str, Any] = {"image": masked_mean(torch.cat(errors), counted(over, context))}
    ahead = real[:, context:]
    events = {"reward": seen["reward"][:, context:, 0] != 0, "end": seen["terminated"][:, context:, 0]}
    for name, parts in scores.items():
        score = torch.cat(parts)
        cuts = np.array_split(np.arange(ahead.shape[1]), bands)
        for cut in (np.arange(ahead.shape[1]), *cuts):
            here = ahead[:, cut]
            label = name if len(cut) == ahead.shape[1] else f"{name} {cut[0] + 1}-{cut[-1] + 1}"
            out[label] = recall_of_classes(score[:, cut][here], events[name][:, cut][here], rates[name])
    return out


def counted(over: Windows, context: int) -> Tensor:
    """Which images ``[W, L - context + 1]`` count."""
    return over.real[:, context - 1 :] & over.even.unsqueeze(-1)


def masked_mean(values: Tensor, mask: Tensor) -> list[float]:
    """Mean over rows where ``mask`` is set, per column."""
    return ((values * mask).sum(0) / mask.sum(0).clamp(min=1)).tolist()


def frequencies(streams: list[TensorDict]) -> dict[str, float]:
    """Mean size of a reward and share of true ends, per record."""
    records = torch.cat(streams)
    return {
        "reward": float(records["reward"].abs().mean()),
        "end": float(records["terminated"].float().mean()),
    }


def baselines(path: Path, *, context: int, horizon: int) -> dict:
    """What the last seen frame, and the mean of all frames, are wrong by; and what the data hold."""
    learnt, held_out = load(path)
    over = windows(held_out, context, horizon)
    mean = torch.cat(learnt)["pixels"][::4].float().mean(0) / 255
    last, average = [], []
    for rows in over.seen["pixels"].split(64):
        frames = rows.float() / 255
        ahead = frames[:, context - 1 :]
        last.append((ahead - frames[:, context - 1 : context]).square().mean((-3, -2, -1)))
        average.append((ahead - mean).square().mean((-3, -2, -1)))
    return {
        "copy last": masked_mean(torch.cat(last), counted(over, context)),
        "mean frame": masked_mean(torch.cat(average), counted(over, context)),
        "records": {"learnt": sum(map(len, learnt)), "held out": sum(map(len, held_out))},
        "episodes": {"learnt": starts(learnt), "held out": starts(held_out)},
        "windows": {"even": int(over.even.sum()), "all": len(over.even)},
        "frequencies": frequencies(learnt),
    }


def starts(streams: list[TensorDict]) -> int:
    """Episodes that begin in these streams."""
    return int(sum(stream["is_init"].sum() for stream in streams))


def run(
    backbone: str,
    path: Path,
    *,
    updates: int,
    size: int,
    length: int,
    context: int,
    horizon: int,
    seed: int,
    most: int | None = None,
) -> dict:
    """Learn a world model from the file at ``path``, then see how far ahead it is right.

    Args:
        backbone: a name of ``wmkit list backbone``.
        path: of :func:`collect`.
        updates: of ``size`` windows of ``length`` records; the same ones for all backbones.
        size: of a batch.
        length: of a window.
        context: steps observed before a roll-out.
        horizon: steps of a roll-out.
        seed: of weights, batches and samples.
        most: windows to evaluate on; all if None.
    """
    learnt, held_out = load(path)
    actions = learnt[0]["previous_action"].shape[-1]
    system, size_of = equal.world_model(backbone, actions, OVERRIDES, seed)
    losses = []
    start, cpu = time.perf_counter(), time.process_time()
    for batch in batches(learnt, updates, size, length, seed):
        losses.append(equal.learn_model(system, batch))
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    over = Windows(*(part[:most] for part in windows(held_out, context, horizon)))
    torch.manual_seed(seed)
    found = evaluate(system, over, context, frequencies(learnt))
    return {**size_of, **spent, **found, "losses": [round(float(x), 3) for x in torch.stack(losses)]}
