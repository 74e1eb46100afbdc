"""Frames for the affordance stage: a random agent wanders through the run's environment.

A world without masks is a game that cannot be walked through again: what was seen in it, and what a scorer
made of that, is kept part by part, so that a run that was killed here goes on with the next part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from wmkit.errors import ConfigError, MissingWeightsError
from wmkit.training.progress import Stage, Stages
from wmkit.training.settings import check_num_envs

COLLECTION_SEED = 2_000_000  # neither training nor evaluation meets these worlds
PART, CHUNK = 100, 8  # frames in a file, and labels


def walk(
    config: DictConfig, stages: Stages, count: int, reads: str | None, keep: Path | None = None
) -> tuple[Tensor, Tensor | None]:
    """Frames of a random agent in the run's environment, and their masks where the simulator has them.

    Args:
        config: reads ``env``, ``seed``, ``affordance.save_every``.
        stages: draws the progress bar.
        count: of frames.
        reads: ``frame`` or ``goal_mask``, what the scorer looks at; None: one that is to be trained here.
        keep: folder for frames of a world without masks, from which they are read if they are there.

    Returns:
        ``uint8 [count, 3, H, W]``, ``bool [count, H, W]`` or None.

    Raises:
        MissingWeightsError: a scorer is to be trained in an environment without masks.
        ConfigError: a scorer reads masks where there are none.
        EnvironmentCrashError: the environment failed more often than ``env.restarts`` allows.
    """
    from wmkit.envs import make_env
    from wmkit.training.faults import Faults
    from wmkit.training.parts import make_guard

    block, seed = config.affordance, int(config.get("seed", 0))
    options = options_of(config.env.get("options"))
    if str(config.env.name).startswith("vizdoom/"):
        options |= {"frames": True, "masks": True}
    guard = make_guard(config)
    env = make_env(
        config.env.name,
        num_envs=check_num_envs(config),
        seed=COLLECTION_SEED + seed,
        guard=guard,
        **options,
    )
    faults = Faults("skip", stages.say, lambda: False)
    faults.watch(env)
    probability, seed = 1 / float(block.get("save_every", 10)), COLLECTION_SEED + seed
    try:
        _check_masks(config, reads, env)
        with stages.stage("collect frames", count, "frames") as bar:
            report = follow(bar)

            def progress(done: int, total: int, numbers: dict[str, float]) -> None:
                faults.look()
                report(done, total, numbers)

            if keep is None or "goal_mask" in env.observation_spec.keys():
                return _collect(env, count, probability, seed, progress)
            return _collect_parts(env, count, probability, seed, progress, keep), None
    finally:
        if not env.is_closed:  # a batch of environments that was never stepped refuses to be closed
            env.close()


def place(folder: Path, config: DictConfig) -> Path:
    """Where frames and labels are kept within ``folder``: another task, prompt or scorer shares none."""
    block = options_of(config.affordance)
    parts = [str(config.env.name), config.get("seed", 0)]
    parts += [block.get(name) for name in ("prompt", "scorer", "exploration", "save_every")]
    return folder / f"data-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]}"


def label(frames: Tensor, explore: Callable[[Tensor], Tensor], bar: Stage, keep: Path) -> Tensor:
    """Labels ``uint8 [N, H, W]`` of frames; those that lie in ``keep`` are read, the others are added to it.

    Args:
        frames: ``uint8 [N, 3, H, W]``.
        explore: some of them to maps ``[B, H, W]`` in [0, 1].
        bar: of the stage.
        keep: folder.
    """
    from wmkit.affordance.unet.dataset import label_frames

    found = []
    for start in range(0, len(frames), CHUNK):
        part = frames[start : start + CHUNK]
        found.append(_kept(keep / f"labels-{start}.npy", partial(label_frames, part, explore)))
        bar.reach(start + len(part), len(frames))
    return torch.cat(found)


def _collect_parts(env: Any, count: int, probability: float, seed: int, progress: Any, keep: Path) -> Tensor:
    """``count`` frames of a random agent: a walk, a seed and a file for every :data:`PART` of them."""
    from wmkit.affordance.unet.dataset import collect_frames

    found = []
    for start in range(0, count, PART):
        size = min(PART, count - start)

        def wander(start: int = start, size: int = size) -> Tensor:
            return collect_frames(
                env,
                size,
                save_probability=probability,
                seed=seed + start,
                progress=lambda done, _, numbers: progress(start + done, count, numbers),
            ).frames

        found.append(_kept(keep / f"frames-{start}-{size}.npy", wander))
        progress(start + size, count, {})
    return torch.cat(found)


def _kept(file: Path, make: Callable[[], Tensor]) -> Tensor:
    """What a file holds; without it, what ``make`` gives, written first."""
    if file.is_file():
        return torch.from_numpy(np.load(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    value, temporary = make(), file.with_suffix(".tmp.npy")
    np.save(temporary, value.numpy())
    temporary.replace(file)  # a file that is there is whole
    return value


def _collect(
    env: Any, count: int, probability: float, seed: int, progress: Any
) -> tuple[Tensor, Tensor | None]:
    """``count`` frames of a random agent, and their masks where the simulator has them.

    Where fewer than one frame in twenty shows the goal, the agent wanders on (five times as long at
    most) and frames without it make room: a scorer or U-Net that never sees the goal learns nothing.
    Frames that show it are spread evenly, so that every split has its share.
    """
    from wmkit.affordance.unet.dataset import collect_frames

    enough = max(6, count // 20)
    found: list[Any] = []
    for attempt in range(5):
        found.append(
            collect_frames(
                env, count, save_probability=probability, seed=seed + 10_000 * attempt, progress=progress
            )
        )
        if found[-1].masks is None:
            return found[-1].frames, None
        masks = torch.cat([part.masks for part in found])
        seen = masks.flatten(1).any(1)
        if int(seen.sum()) >= enough:
            break
    frames = torch.cat([part.frames for part in found])
    shown, hidden = seen.nonzero()[:count, 0], (~seen).nonzero()[:, 0]
    hidden = hidden[: count - len(shown)]
    place = [(torch.arange(len(rows)) + at) / max(len(rows), 1) for rows, at in ((shown, 1.0), (hidden, 0.5))]
    order = torch.cat([shown, hidden])[torch.cat(place).argsort()]
    return frames[order], masks[order]


def _check_masks(config: DictConfig, reads: str | None, env: Any) -> None:
    """Refuse what needs object masks in an environment that shows none, before it is walked in."""
    shown = env.observation_spec.keys()
    if "frame" not in shown or "goal_mask" in shown:  # without frames nothing at all, as collecting says
        return
    if reads is None:
        raise MissingWeightsError(
            "scorer 'embedded' has no weights: found none and an environment without object masks to train "
            "on, wanted either; give affordance.scorer.path=FOLDER or use affordance=mineclip or hf_clip"
        )
    if reads == "goal_mask":
        raise ConfigError(
            f"scorer {config.affordance.scorer.name!r} reads object masks: found an environment without "
            "goal_mask, wanted one with it; use a scorer that reads frames"
        )


def follow(bar: Stage, budget: float | None = None) -> Any:
    """Progress of the affordance room (done, total, numbers) as a stage's; ``budget`` seconds end it."""

    def progress(done: int, total: int, numbers: dict[str, float]) -> None:
        if budget:
            bar.limit = lambda: budget - numbers["seconds"]
        bar.reach(done, total, **{k: v for k, v in numbers.items() if k in ("loss", "accuracy")})

    return progress


def options_of(block: Any) -> dict[str, Any]:
    """A block of a page as a dict of its own, resolved; empty for None."""
    if block is None:
        return {}
    options: Any = OmegaConf.to_container(block, resolve=True)
    return options
