"""Arrays that the report draws, gathered once after training and kept in ``RUN/evidence``.

affordance.npz    frames uint8 [K,H,W,3], maps [K,H,W], masks bool [K,H,W], labels [K,H,W] (if known)
imagination.npz   images: names of keys, and of the i-th real_i, imagined_i uint8 [R,T,H,W,C];
                  curves: names of numbers, and of them curves_real, curves_imagined [K,T];
                  jump bool [R,T]; jump_steps [R,T]; context
spans.npz         goal_predicted, goal_real [M]; pair_predicted, pair_real [M']: steps
notes.json        what could not be gathered, and why: a sentence for each file
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase

from wmkit.errors import WmkitError
from wmkit.training.evaluate import Evaluation
from wmkit.training.report.archives import load_evidence
from wmkit.training.report.pictures import channels_last, limits_of
from wmkit.training.run import RunDirectory

CONTEXT, ROLL_OUT, STRIPS, MAPS, CURVES = 5, 25, 3, 6, 8
NAMES = {"affordance": "Affordance maps", "imagination": "Imagined and real", "spans": "Spans of jumps"}
NOTHING = "there are no pictures: this system decodes none of its observations"


def tell(sentence: str) -> None:
    """Say it on standard error."""
    print(sentence, file=sys.stderr)


@torch.no_grad()
def gather_evidence(
    run: RunDirectory,
    system: Any,
    evaluation: Evaluation,
    memory: Any = None,
    device: torch.device | str = "cpu",
    affordance: Any = None,
    say: Callable[[str], None] = tell,
) -> None:
    """Write whatever this system and environment can show; what they cannot is left out.

    What fails becomes a sentence, for ``say`` and for the report; nothing is raised.

    Args:
        run: where to write.
        system: asked for ``open_loop(batch, context)`` if it has it.
        evaluation: with recorded trajectories.
        memory: a :class:`~wmkit.training.memory.ReplayMemory`, for spans of reached pairs.
        device: of the system.
        affordance: ``predict(frames)`` gives maps; None for systems without.
        say: told what failed.
    """
    seen = [t for t in evaluation.trajectories if len(t)] if hasattr(system, "open_loop") else []
    notes: dict[str, str] = {}
    for name, gather in (
        ("affordance", partial(_maps, run, evaluation, affordance)),
        ("imagination", partial(_imagination, run, system, seen, device)),
        ("spans", partial(_spans, run, system, seen, memory, device)),
    ):
        try:
            note = gather()
        except Exception as error:
            note = not_drawn(NAMES[name], error)
            say(note)
            (run.path / "evidence" / f"{name}.npz").unlink(missing_ok=True)  # of an earlier look
        if note:
            notes[name] = note
    path = run.path / "evidence" / "notes.json"
    path.unlink(missing_ok=True)
    if notes:
        run.folder("evidence")
        path.write_text(json.dumps(notes), encoding="utf-8")


def not_drawn(name: str, error: Exception) -> str:
    """One sentence about a part of the report that failed."""
    kind = "" if isinstance(error, WmkitError) else f"{type(error).__name__}: "
    found = " ".join(f"{kind}{error}".split())
    return f"{name!r} is not drawn: found {found[:300]}; the run's result stands, all else of it is saved"


def _maps(run: RunDirectory, evaluation: Evaluation, affordance: Any) -> str | None:
    seen_views = [v for v in evaluation.views if "frame" in v.keys()]
    if affordance is None or not seen_views or _has_labels(run):
        return None
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
    return None


def _has_labels(run: RunDirectory) -> bool:
    """Whether the affordance stage left held-out frames with labels, which say more than frames without."""
    path = run.path / "evidence" / "affordance.npz"
    if not path.is_file():
        return False
    with np.load(path) as data:
        return "labels" in data.files


def _imagination(
    run: RunDirectory, system: Any, trajectories: list[TensorDictBase], device: Any
) -> str | None:
    windows = []
    for trajectory in trajectories:
        length = CONTEXT + ROLL_OUT
        # The end of an episode is where something happens; then the middle, then the beginning.
        starts = [len(trajectory) - length, (len(trajectory) - length) // 2, 0]
        windows += [trajectory[s : s + length] for s in dict.fromkeys(max(s, 0) for s in starts)]
    full = max((len(w) for w in windows), default=0)
    windows = [w for w in windows if len(w) == full][:STRIPS]
    if not windows:
        return None
    if full <= CONTEXT:
        return f"there are no pictures: found episodes of {full - 1} steps, wanted {CONTEXT} or more"
    batch = _as_batch(windows, device)
    vectors = getattr(getattr(system, "spaces", None), "vectors", ())
    opened = system.open_loop(batch, CONTEXT, **({"vectors": True} if vectors else {}))
    arrays: dict[str, Any] = {"context": np.array(CONTEXT)}
    keys = [key for key in opened if key in batch.keys() and key not in vectors and batch[key].ndim == 5]
    keys.sort(key=lambda key: key != "pixels")  # which are looked at first
    for index, key in enumerate(keys):
        arrays[f"real_{index}"] = channels_last(batch[key], limits_of(batch[key]))
        arrays[f"imagined_{index}"] = channels_last(opened[key])
    curves = [curve for key in vectors if key in opened for curve in _curves(system, key, batch, opened)]
    if not keys and not curves:
        return NOTHING
    if keys:
        arrays["images"] = np.array(keys)
    if curves:  # those that vary most, in their own order
        lively = sorted(range(len(curves)), key=lambda index: -_unrest(curves[index][1]))[:CURVES]
        names, real, imagined = zip(*(curves[index] for index in sorted(lively)), strict=True)
        arrays |= {"curves": np.array(names), "curves_real": real, "curves_imagined": imagined}
    if opened.get("jump_steps", None) is not None:
        arrays["jump"] = (opened["jump"] > 0.5).reshape(len(windows), full).cpu().numpy()
        arrays["jump_steps"] = opened["jump_steps"].reshape(len(windows), full).float().cpu().numpy()
    save_evidence(run, "imagination", **arrays)
    return None


def _curves(
    system: Any, key: str, batch: TensorDictBase, opened: dict[str, torch.Tensor]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, real and imagined values ``[T]`` of every number of a vector key, in the first window."""
    real, imagined = batch[key][0], opened[key][0]
    if key in system.spaces.classes:
        imagined = imagined.argmax(-1)  # the likeliest
    real, imagined = (x.flatten(1) if x.ndim > 1 else x[:, None] for x in (real, imagined))
    for index in range(real.shape[1]):
        name = key if real.shape[1] == 1 else f"{key}[{index}]"
        yield name, real[:, index].float().cpu().numpy(), imagined[:, index].float().cpu().numpy()


def _unrest(values: np.ndarray) -> float:
    """How much a curve moves for its size, so that units do not decide."""
    finite = values[np.isfinite(values)].astype(np.float64)
    size = float(np.abs(finite).max()) if finite.size else 0.0
    return float(finite.std() / size) if size else 0.0


def _spans(
    run: RunDirectory, system: Any, trajectories: list[TensorDictBase], memory: Any, device: Any
) -> str | None:
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
            return None
        would = (opened["jump"] > 0.5).reshape(-1).cpu().numpy()
        left = end - np.arange(end + 1)
        add("goal", opened["jump_steps"].reshape(-1).float().cpu().numpy()[would], left[would])
    if memory is not None and memory.pairs is not None and memory.ready():
        for _ in range(4):
            batch = memory.sample().to(device)
            opened = system.open_loop(batch, batch.batch_size[1])
            if opened.get("jump_steps", None) is None:
                return None
            resolved = batch["jump_resolved"].reshape(-1).cpu().numpy()
            predicted = opened["jump_steps"].reshape(-1).float().cpu().numpy()
            add("pair", predicted[resolved], batch["jump_steps"].reshape(-1).cpu().numpy()[resolved])
    joined = {name: np.concatenate(values)[:600] for name, values in arrays.items()}
    if any(len(values) for values in joined.values()):
        save_evidence(run, "spans", **joined)
    return None


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


def read_evidence(run: RunDirectory, name: str) -> dict[str, np.ndarray] | None:
    """The arrays of one evidence file; None if it is not there."""
    return load_evidence(run.path / "evidence" / f"{name}.npz")


def read_notes(run: RunDirectory) -> dict[str, str]:
    """Sentences about evidence that is missing, by its file."""
    path = run.path / "evidence" / "notes.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: str(found[name]) for name in NAMES if name in found}
