"""Fit an affordance U-Net to the maps of virtual exploration (LS-Imagine, arXiv:2410.03618, section 3.1).

    collect_frames --> label_frames --> fit_affordance --> save_affordance
     random agent       81 zooms         this module        safetensors

Every random choice of iteration i depends on the seed and on i alone, so a run that was
interrupted and resumed from its checkpoint ends with the same weights as one that was not (as long as
no time budget steers its schedule).
"""

from __future__ import annotations

import signal
import threading
import time
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wmkit.affordance.unet.dataset import AffordanceDataset, Progress
from wmkit.affordance.unet.fit_report import FitReport, judge
from wmkit.affordance.unet.model import AffordanceUNet
from wmkit.affordance.unet.recipes import Recipe, recipe
from wmkit.errors import CheckpointError, ConfigError, NonFiniteLossError
from wmkit.nn.weights import fill


def fit_affordance(
    model: AffordanceUNet,
    frames: Tensor,
    labels: Tensor,
    text: Tensor,
    *,
    text_index: Tensor | None = None,
    masks: Tensor | None = None,
    how: str | Recipe = "small",
    iterations: int | None = None,
    budget: float | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int = 200,
    panels: int = 8,
    progress: Progress | None = None,
) -> FitReport:
    """Train ``model`` in place and judge it on held-out frames.

    Args:
        model: where its parameters lie is where it trains.
        frames: uint8 ``[N,3,H,W]``, in memory or memory-mapped.
        labels: uint8 ``[N,H,W]``, 255 times the maps of virtual exploration.
        text: features of the prompts, ``[D]`` or ``[P,D]``.
        text_index: int64 ``[N]``, the prompt of each frame's label; the first if left out.
        masks: bool ``[N,H,W]``, true goal pixels, if known; for the report only.
        how: ``"small"``, ``"published"`` or a :class:`~wmkit.affordance.unet.recipes.Recipe`.
        iterations: how many; the recipe's epochs if left out.
        budget: seconds of training; the schedule then ends with whichever comes first.
        holdout: share of each prompt's frames, the last in time, that judge the fit.
        seed: of order, augmentation and dropout.
        checkpoint: file to resume from and to write every ``checkpoint_every`` iterations, on an
            interrupt and at the end.
        panels: number of example pictures in the report.
        progress: called after each iteration with iterations done, iterations wanted and
            ``{"loss": ..., "seconds": ...}``.

    Returns:
        The report (:class:`~wmkit.affordance.FitReport`); ``model`` is left in evaluation mode.

    Raises:
        SpecError: data that does not fit together.
        ConfigError: an unknown recipe, or too few frames.
        CheckpointError: the checkpoint belongs to another fit.
        NonFiniteLossError: the loss became NaN or infinite.
        KeyboardInterrupt: after the current iteration, with the checkpoint written.

    >>> from wmkit.affordance.unet.small import SmallUNet
    >>> frames = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    >>> labels = torch.zeros(8, 32, 32, dtype=torch.uint8)
    >>> unet = SmallUNet(widths=(8, 8), depths=(0, 1), image_size=(32, 32), text_dim=4, blur=(3, 3))
    >>> report = fit_affordance(unet, frames, labels, torch.ones(4), iterations=2, panels=1)
    >>> report.iterations, report.panels["prediction"].shape
    (2, torch.Size([1, 32, 32]))
    """
    data = AffordanceDataset(frames, labels, text, text_index, masks)
    recipe_ = recipe(how)
    train, held = data.split(holdout)
    if len(train) == 0 or (iterations is not None and iterations < 0):
        raise ConfigError(
            f"fit_affordance got {len(data)} frames and iterations={iterations}: wanted at least two "
            "frames and a positive number; collect more frames"
        )
    model.match_text(data.text[:1], 1)  # the width, before any work
    if iterations is None:
        iterations = recipe_.epochs * max(1, round(len(train) / recipe_.batch_size))
    fit = _Fit(model, data, train, recipe_, iterations, budget, seed)
    fit.run(Path(checkpoint) if checkpoint is not None else None, checkpoint_every, progress)
    return judge(model, data, held if len(held) else train, panels, fit.iteration, fit.seconds, fit.loss)


class _Fit:
    """State of a training run: model, optimiser, counters."""

    def __init__(
        self,
        model: AffordanceUNet,
        data: AffordanceDataset,
        train: Tensor,
        recipe_: Recipe,
        iterations: int,
        budget: float | None,
        seed: int,
    ):
        self.model, self.data, self.train, self.recipe = model, data, train, recipe_
        self.iterations, self.budget, self.seed = iterations, budget, seed
        self.optimiser = recipe_.optimiser(model.parameters(), recipe_.lr)
        self.iteration, self.seconds = 0, 0.0
        self.loss: list[tuple[int, float]] = []
        brightness = torch.cat([data.labels[part].flatten(1).float().mean(1) for part in train.split(256)])
        self.bright = train[brightness > brightness.mean()]
        self._epoch: tuple[int, Tensor] | None = None

    def run(self, checkpoint: Path | None, every: int, progress: Progress | None) -> None:
        """Iterate until the count or the time is used up."""
        if checkpoint is not None and checkpoint.is_file():
            self._load(checkpoint)
        device = self.model.pixel_scale.device
        self.model.train()
        begin = time.monotonic() - self.seconds
        log_every = max(1, self.iterations // 400)
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            _Interrupt() as interrupt,
        ):
            try:
                while self.iteration < self.iterations and self._progress() < 1:
                    loss = self._step()
                    self.iteration += 1
                    self.seconds = time.monotonic() - begin
                    if self.iteration % log_every == 0:
                        self.loss.append((self.iteration, loss))
                    if progress is not None:
                        progress(self.iteration, self.iterations, {"loss": loss, "seconds": self.seconds})
                    if interrupt.is_set():
                        raise KeyboardInterrupt
                    if checkpoint is not None and self.iteration % every == 0:
                        self._save(checkpoint)
            except KeyboardInterrupt:
                if checkpoint is not None:
                    self._save(checkpoint)
                raise
            finally:
                self.model.eval()
        if checkpoint is not None:
            self._save(checkpoint)

    def _progress(self) -> float:
        """How much of the count or of the time is used up, in [0, 1]."""
        time_used = self.seconds / self.budget if self.budget else 0.0
        return min(1.0, max(self.iteration / self.iterations, time_used))

    def _step(self) -> float:
        """One update; the loss."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + self.iteration)
        torch.manual_seed(self.seed * 1_000_003 + self.iteration)  # dropout, stochastic depth
        device = self.model.pixel_scale.device
        frames, labels, text = self.data.batch(self._indices(random))
        images, maps = (
            frames.to(device).float(),
            labels.to(device)[:, None].float() / 255,
        )  # [B,3,H,W], [B,1,H,W]
        images, maps = self.recipe.augment(images, maps, random)
        prediction = self.model(self.model.prepare(images), self.model.match_text(text, len(images)))
        maps = F.interpolate(maps, prediction.shape[-2:], mode="bilinear", align_corners=False)
        loss = self.recipe.loss(prediction, maps)
        value = loss.item()
        if value != value or value in (float("inf"), float("-inf")):
            raise NonFiniteLossError(
                f"affordance loss is {value} at iteration {self.iteration}: wanted a finite number; "
                "lower the learning rate, or resume from the last checkpoint"
            )
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.lr * self.recipe.schedule(self._progress())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return value

    def _indices(self, random: torch.Generator) -> Tensor:
        """[B]: the iteration's share of an endless chain of shuffled epochs, and some bright frames."""
        batch = min(self.recipe.batch_size, len(self.train))
        focused = round(self.recipe.focus * batch) if len(self.bright) else 0
        plain = batch - focused
        position = torch.arange(self.iteration * plain, (self.iteration + 1) * plain)
        epochs, offset = position // len(self.train), position % len(self.train)
        parts = [self._order(int(epoch))[offset[epochs == epoch]] for epoch in epochs.unique()]
        chosen = self.bright[torch.randint(max(1, len(self.bright)), (focused,), generator=random)]
        return torch.cat([self.train[index] for index in parts] + [chosen])

    def _order(self, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch:
            random = torch.Generator().manual_seed(self.seed * 1_000_003 + 500_009 * (epoch + 1))
            self._epoch = (epoch, torch.randperm(len(self.train), generator=random))
        return self._epoch[1]

    def _identity(self) -> dict[str, Any]:
        """Settings that must agree for a checkpoint to be continued."""
        return {
            "model": f"{self.model.kind} {self.model.options}",
            "frames": len(self.data),
            "training frames": len(self.train),
            "batch size": self.recipe.batch_size,
            "iterations": self.iterations,
            "seed": self.seed,
        }

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "identity": self._identity(),
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "loss": self.loss,
        }
        temporary = path.with_name(f".{path.name}.tmp")
        torch.save(state, temporary)
        temporary.replace(path)

    def _load(self, path: Path) -> None:
        fix = "delete it to start again, or give the fit it belongs to"
        try:
            state = torch.load(path, map_location=self.model.pixel_scale.device, weights_only=True)
            identity = dict(state["identity"])
        except Exception as error:  # torch raises many kinds for files that are no checkpoint
            raise CheckpointError(
                f"checkpoint {str(path)!r} cannot be read ({type(error).__name__}): wanted one of "
                f"fit_affordance; {fix}"
            ) from error
        for name, wanted in self._identity().items():
            if identity.get(name) != wanted:
                raise CheckpointError(
                    f"checkpoint {str(path)!r} belongs to another fit: its {name} is {identity.get(name)}, "
                    f"wanted {wanted}; {fix}"
                )
        what = f"checkpoint {str(path)!r}"
        try:
            fill(self.model, state["model"], what, fix)
            self.optimiser.load_state_dict(state["optimiser"])
            self.iteration, self.seconds = int(state["iteration"]), float(state["seconds"])
            self.loss = [(int(i), float(value)) for i, value in state["loss"]]
        except CheckpointError:
            raise
        except Exception as error:  # entries that are missing or of other types
            raise CheckpointError(
                f"{what} is damaged ({type(error).__name__}): wanted one of fit_affordance; {fix}"
            ) from error


class _Interrupt:
    """Turns Ctrl-C into a flag while training, so that no update is cut in half."""

    def __enter__(self) -> threading.Event:
        self.event = threading.Event()
        self.previous: Any = None
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.getsignal(signal.SIGINT)
            signal.signal(signal.SIGINT, lambda *_: self.event.set())
        return self.event

    def __exit__(self, *_: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
