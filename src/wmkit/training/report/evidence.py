"""Arrays that the report draws, gathered once after training and kept in ``RUN/evidence``.

affordance.npz    frames uint8 [K,H,W,3], maps [K,H,W], masks bool [K,H,W], labels [K,H,W] (if known)
imagination.npz   real, imagined uint8 [R,T,H,W,3]; jump bool [R,T]; jump_steps [R,T]; context
spans.npz         goal_predicted, goal_real [M]; pair_predicted, pair_real [M']: steps
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase

from wmkit.training.evaluate import Evaluation
from wmkit.training.report.pictures import channels_last
from wmkit.training.run import RunDirectory

CONTEXT, ROLL_OUT, STRIPS, MAPS = 5, 25, 3, 6


@torch.no_grad()
def gather_evidence(
    run: RunDirectory,
    system: Any,
    evaluation: Evaluation,
    memory: Any = None,
    device: torch.device | str = "cpu",
    affordance: Any = None,
) -> None:
    """Write whatever this system and environment can show; what they cannot is left out.

    Args:
        run: where to write.
        system: asked for ``open_loop(batch, context)`` if it has it.
        evaluation: with recorded trajectories.
        memory: a :class:`~wmkit.training.memory.ReplayMemory`, for spans of reached pairs.
        device: of the system.
        affordance: ``predict(frames)`` gives maps; None for systems without.
    """
    _maps(run, evaluation, affordance)
    if hasattr(system, "open_loop"):
        trajectories = [t for t in evaluation.trajectories if "pixels" in t.keys()]
        _imagination(run, system, trajectories, device)
        _spans(run, system, trajectories, memory, device)


def _maps(run: RunDirectory, evaluation: Evaluation, affordance: Any) -> None:
    seen_views = [v for v in evaluation.views if "frame" in v.keys()]
    if affordance is None or not seen_views or _has_labels(run):
        return
    views: Any = torch.cat([v.select("frame", "goal_mask", strict=False) for v in seen_views])
    if (
        "goal_mask" in views.keys()
    ):  # frames in which the goal can be seen come first, evenly spread over its size
        area = views["goal_mask"].flatten(1).sum(1)
        order = area.argsort(descending=True)
        seen = order[: max(int((area > 0).sum()), 1)]
        chosen = seen[torch.linspace(0, len(seen) - 1, min(MAPS, len(seen))).long()]
    else:
        chosen = torch.linspace(0, len(views) - 1, min(MAPS, len(views))).long()
    views = views[chosen.unique_consecutive()]
    arrays = {"frames": channels_last(views["frame"]), "maps": affordance.predict(views).half().numpy()}
    if "goal_mask" in views.keys():
        arrays["masks"] = views["goal_mask"][:, 0].numpy()
    save_evidence(run, "affordance", **arrays)


def _has_labels(run: RunDirectory) -> bool:
    """Whether the affordance stage left held-out frames with labels, which say more than frames without."""
    path = run.path / "evidence" / "affordance.npz"
    if not path.is_file():
        return False
    with np.load(path) as data:
        return "labels" in data.files


def _imagination(run: RunDirectory, system: Any, trajectories: list[TensorDictBase], device: Any) -> None:
    windows = []
    for trajectory in trajectories:
        length = CONTEXT + ROLL_OUT
        # The end of an episode is where something happens; then the middle, then the beginning.
        starts = [len(trajectory) - length, (len(trajectory) - length) // 2, 0]
        windows += [trajectory[s : s + length] for s in dict.fromkeys(max(s, 0) for s in starts)]
    full = max((len(w) for w in windows), default=0)
    windows = [w for w in windows if len(w) == full][:STRIPS]
    if full <= CONTEXT:
        return
    batch = _as_batch(windows, device)
    opened = system.open_loop(batch, CONTEXT)
    if opened.get("pixels", None) is None:  # nothing is decoded
        return
    arrays = {
        "real": channels_last(batch["pixels"]),
        "imagined": channels_last(opened["pixels"]),
        "context": np.array(CONTEXT),
    }
    if opened.get("jump_steps", None) is not None:
        arrays["jump"] = (opened["jump"] > 0.5).reshape(len(windows), full).cpu().numpy()
        arrays["jump_steps"] = opened["jump_steps"].reshape(len(windows), full).float().cpu().numpy()
    save_evidence(run, "imagination", **arrays)


def _spans(
    run: RunDirectory, system: Any, trajectories: list[TensorDictBase], memory: Any, device: Any
) -> None:
    """Predicted Δ where the model would jump: until success in evaluation, until the target in replay."""
    arrays: dict[str, list[np.ndarray]] = {}

    def add(name: str, predicted: Any, real: Any) -> None:
        arrays.setdefault(f"{name}_predicted", []).append(np.asarray(predicted, np.float32))
        arrays.setdefault(f"{name}_real", []).append(np.asarray(real, np.float32))

    for trajectory in trajectories:
        if "success" not in trajectory.keys() or not bool(trajectory["success"].any()):
            continue
        end = int(trajectory["success"].flatten().float().argmax())
        opened = system.open_loop(_as_batch([trajectory[: end + 1]], device), end + 1)
        if opened.get("jump_steps", None) is None:
            return
        would = (opened["jump"] > 0.5).reshape(-1).cpu().numpy()
        left = end - np.arange(end + 1)
        add("goal", opened["jump_steps"].reshape(-1).float().cpu().numpy()[would], left[would])
    if memory is not None and memory.pairs is not None and memory.ready():
        for _ in range(4):
            batch = memory.sample().to(device)
            opened = system.open_loop(batch, batch.batch_size[1])
            if opened.get("jump_steps", None) is None:
                return
            resolved = batch["jump_resolved"].reshape(-1).cpu().numpy()
            predicted = opened["jump_steps"].reshape(-1).float().cpu().numpy()
            add("pair", predicted[resolved], batch["jump_steps"].reshape(-1).cpu().numpy()[resolved])
    joined = {name: np.concatenate(values)[:600] for name, values in arrays.items()}
    if any(len(values) for values in joined.values()):
        save_evidence(run, "spans", **joined)


def _as_batch(windows: list[TensorDictBase], device: Any) -> TensorDictBase:
    """Windows ``[T]`` as a batch ``[B, T]`` that begins as an episode does."""
    batch: Any = torch.stack(windows).to(device)
    batch["is_init"] = batch["is_init"].clone()
    batch["is_init"][:, 0] = True
    return batch


def save_evidence(run: RunDirectory, name: str, **arrays: Any) -> None:
    """Write one evidence file, whole or not at all."""
    path = run.folder("evidence") / f"{name}.npz"
    temporary = path.with_name(f".{name}.tmp.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)
