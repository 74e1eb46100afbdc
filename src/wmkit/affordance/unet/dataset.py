"""Frames for fitting an affordance U-Net: collect at random, label, keep on disk.

LS-Imagine gathers its images with a uniformly random agent and saves each step's frame with
a small probability. The released script meant to stop at 2000 images but counted
episodes; here images are counted.

On disk a data set is a folder of plain ``.npy`` files that are memory-mapped when read:
``frames`` uint8 [N,3,H,W], ``labels`` uint8 [N,H,W] (255 times the map), ``masks`` bool [N,H,W] if
the simulator knows the truth, ``text`` float32 [P,D] and ``text_index`` int64 [N].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wmkit.errors import ConfigError, MissingWeightsError, SpecError

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

# done, total, further numbers to show
Progress = Callable[[int, int, dict[str, float]], Any]


class CollectedFrames(NamedTuple):
    """The result of :func:`collect_frames`."""

    frames: Tensor  # uint8 [N, 3, H, W]
    masks: Tensor | None  # bool [N, H, W], where the simulator shows its goal
    steps: int  # environment steps taken


@dataclass
class AffordanceDataset:
    """Frames with labels and the text that each label answers.

    Attributes:
        frames: uint8 ``[N,3,H,W]``.
        labels: uint8 ``[N,H,W]``, 255 times the map.
        text: ``[P,D]`` features of the prompts (``[D]`` is one prompt).
        text_index: int64 ``[N]``, which prompt a label answers; zeros if left out.
        masks: bool ``[N,H,W]``, true goal pixels, if known.

    Raises:
        SpecError: shapes or dtypes that do not fit together.

    >>> data = AffordanceDataset(torch.zeros(4, 3, 32, 64, dtype=torch.uint8),
    ...                          torch.zeros(4, 32, 64, dtype=torch.uint8), torch.zeros(8))
    >>> frames, labels, text = data.batch(torch.tensor([0, 2]))
    >>> frames.shape, labels.shape, text.shape
    (torch.Size([2, 3, 32, 64]), torch.Size([2, 32, 64]), torch.Size([2, 8]))
    """

    frames: Tensor
    labels: Tensor
    text: Tensor
    text_index: Tensor | None = None
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that everything fits together."""
        if self.frames.ndim != 4 or self.frames.shape[1] != 3 or self.frames.dtype != torch.uint8:
            raise SpecError(
                f"frames are {self.frames.dtype} {tuple(self.frames.shape)}: wanted uint8 [N, 3, H, W]; "
                "put colours first and keep 0..255"
            )
        wanted = (len(self.frames), *self.frames.shape[2:])
        if self.labels.dtype != torch.uint8 or self.labels.shape != wanted:
            raise SpecError(
                f"labels are {self.labels.dtype} {tuple(self.labels.shape)}: wanted uint8 {wanted}, one map "
                "per frame; multiply maps in [0, 1] by 255 and round"
            )
        if self.masks is not None and self.masks.shape != wanted:
            raise SpecError(
                f"masks have shape {tuple(self.masks.shape)}: wanted {wanted}, one per frame; "
                "drop the channel axis"
            )
        self.text = self.text[None] if self.text.ndim == 1 else self.text
        if self.text_index is None:
            self.text_index = torch.zeros(len(self.frames), dtype=torch.int64)
        index = self.text_index
        if index.shape != wanted[:1] or (
            len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self.text)
        ):
            raise SpecError(
                f"text_index has shape {tuple(index.shape)}: wanted [{wanted[0]}] with entries from 0 to "
                f"{len(self.text) - 1}; give every frame the row of its prompt"
            )

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames uint8 ``[B,3,H,W]``, labels uint8 ``[B,H,W]`` and text rows ``[B,D]`` at ``index [B]``."""
        assert self.text_index is not None
        return self.frames[index], self.labels[index], self.text[self.text_index[index]]

    def split(self, holdout: float) -> tuple[Tensor, Tensor]:
        """Indices for training and for judging.

        The last share of each prompt's frames is held out: neighbours in time look alike, so a random
        split would judge on near-copies of training frames.
        """
        assert self.text_index is not None
        train, held = [], []
        for prompt in range(len(self.text)):
            index = (self.text_index == prompt).nonzero()[:, 0]
            cut = len(index) - (max(1, round(holdout * len(index))) if holdout > 0 and len(index) > 1 else 0)
            train.append(index[:cut])
            held.append(index[cut:])
        return torch.cat(train), torch.cat(held)

    def save(self, path: str | PathLike) -> Path:
        """Write the folder; tensors that are memory-mapped from it already are left alone."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("frames", "labels", "masks", "text", "text_index"):
            value = getattr(self, name)
            if value is not None:
                temporary = folder / f".{name}.tmp.npy"
                np.save(temporary, value.numpy())
                temporary.replace(folder / f"{name}.npy")
        return folder

    @classmethod
    def load(cls, path: str | PathLike) -> AffordanceDataset:
        """Read the folder; images stay on disk until they are used.

        Raises:
            MissingWeightsError: the folder lacks frames, labels or text.
        """
        folder = Path(path)
        found = {}
        for name in ("frames", "labels", "masks", "text", "text_index"):
            file = folder / f"{name}.npy"
            if file.is_file():
                # Copy-on-write: torch wants writable memory, the files must not change.
                found[name] = torch.from_numpy(np.load(file, mmap_mode="c"))
            elif name in ("frames", "labels", "text"):
                raise MissingWeightsError(
                    f"affordance data {str(folder)!r} has no {file.name}: wanted a folder written by "
                    "AffordanceDataset.save; collect and label frames first"
                )
        return cls(**found)


def collect_frames(
    env: EnvBase,
    n: int,
    *,
    save_probability: float = 1 / 50,
    seed: int = 0,
    masks: bool = True,
    path: str | PathLike | None = None,
    progress: Progress | None = None,
) -> CollectedFrames:
    """Let a uniformly random agent wander, and keep some of what it sees.

    Args:
        env: emits ``frame`` uint8 ``[*batch,3,H,W]``, and ``goal_mask`` bool ``[*batch,1,H,W]`` if masks
            are wanted; any number of parallel worlds.
        n: images to collect.
        save_probability: chance that a step's frame is kept. Frames of a reset are not.
        seed: of the worlds, the actions and the choice.
        masks: keep ``goal_mask`` too, where the environment has it.
        path: folder for memory-mapped ``frames.npy`` and ``masks.npy``; in memory without it.
        progress: called with images so far, ``n`` and ``{"steps": ...}``.

    Returns:
        Frames in order of time, masks or None, and the number of environment steps.

    Raises:
        SpecError: the environment has no ``frame``.
        ConfigError: ``n`` or the probability makes no sense.
    """
    if n < 1 or not 0 < save_probability <= 1:
        raise ConfigError(
            f"collect_frames got n={n} and save_probability={save_probability}: wanted n >= 1 and "
            "0 < p <= 1; change the two numbers"
        )
    spec = env.observation_spec
    if "frame" not in spec.keys():
        raise SpecError(
            f"the environment shows {sorted(map(str, spec.keys()))}: wanted 'frame' [3, H, W] among them, "
            "which affordance maps are made of; use an environment with frames or another system"
        )
    has_masks = masks and "goal_mask" in spec.keys()
    size = spec["frame"].shape[-3:]  # [3, H, W]
    frames = _allocate(path, "frames", (n, *size), torch.uint8)
    truth = _allocate(path, "masks", (n, *size[1:]), torch.bool) if has_masks else None
    choice = torch.Generator().manual_seed(seed)
    kept = steps = 0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        env.set_seed(seed)
        data = env.reset()
        worlds = max(1, data.numel())
        while kept < n:
            stepped, data = env.step_and_maybe_reset(env.rand_action(data))
            steps += worlds
            rows = (torch.rand(worlds, generator=choice) < save_probability).nonzero()[: n - kept, 0]
            if len(rows) == 0:
                continue
            seen = stepped["next"]
            frames[kept : kept + len(rows)] = seen["frame"].reshape(worlds, *size)[rows]
            if truth is not None:
                truth[kept : kept + len(rows)] = seen["goal_mask"].reshape(worlds, *size[1:])[rows]
            kept += len(rows)
            if progress is not None:
                progress(kept, n, {"steps": float(steps)})
    return CollectedFrames(frames, truth, steps)


def label_frames(
    images: Tensor,
    explore: Callable[[Tensor], Tensor],
    *,
    chunk: int = 8,
    path: str | PathLike | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Label frames (or masks, for a scorer that reads them) in chunks.

    Args:
        images: ``[N,C,H,W]``, what ``explore`` wants.
        explore: ``[B,C,H,W]`` to maps ``[B,H,W]`` (or ``[B,1,H,W]``) in [0, 1]; virtual exploration
            for one prompt, for example ``lambda x: explore(x, [prompt])``.
        chunk: images per call.
        path: folder for a memory-mapped ``labels.npy``; in memory without it.
        progress: called with images so far, N and no further numbers.

    Returns:
        uint8 ``[N,H,W]``: 255 times the maps, rounded.

    >>> label_frames(torch.ones(3, 3, 8, 8), lambda x: 0.2 * x[:, 0]).unique()
    tensor([51], dtype=torch.uint8)
    """
    labels = _allocate(path, "labels", (len(images), *images.shape[-2:]), torch.uint8)
    with torch.no_grad():
        for start in range(0, len(images), chunk):
            maps = explore(images[start : start + chunk])
            maps = maps.reshape(-1, *images.shape[-2:])  # [B, H, W]
            labels[start : start + len(maps)] = (255 * maps).round().clamp(0, 255).to("cpu", torch.uint8)
            if progress is not None:
                progress(min(start + chunk, len(images)), len(images), {})
    return labels


def _allocate(path: str | PathLike | None, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in memory, or in a memory-mapped file."""
    if path is None:
        return torch.zeros(shape, dtype=dtype)
    Path(path).mkdir(parents=True, exist_ok=True)
    numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
    file = Path(path) / f"{name}.npy"
    return torch.from_numpy(np.lib.format.open_memmap(file, mode="w+", dtype=numpy_dtype, shape=tuple(shape)))
