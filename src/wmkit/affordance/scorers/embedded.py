"""A small video-text scorer trained on clips of the embedded worlds: the little counterpart of MineCLIP.

Frames at 40 x 64 go through a small convolutional encoder, 16 of them through a bank of filters over time
that sees what changes across the zoom, prompts through word embeddings. Clips and captions are matched by
InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, in CLIP's symmetric form, arXiv:2103.00020).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from wmkit.affordance.labels.score_fusion import LOGIT_MIDPOINT
from wmkit.affordance.labels.zoom_path import FRAMES, spread_frames
from wmkit.affordance.scorers.clips import MOTIONS, ClipSource, caption_table, make_clips
from wmkit.affordance.scorers.scorer import TEXT_DIM, fit_affine
from wmkit.affordance.scorers.text import TextTower, tokenize
from wmkit.errors import CheckpointError, ConfigError, MissingWeightsError
from wmkit.nn.weights import fill, read_weights

PROMPTS = ("Cut a tree", "Obtain water", "Obtain sand", "Obtain wool", "Mine iron ore")
TRAINED = 6  # frames of each clip that a training step encodes


class EmbeddedScorer(nn.Module):
    """Scores 16-frame zooms against prompts with a small trained model (about 1.1 million parameters).

    Untrained it refuses to score; train it with :meth:`fit`, or read it with :meth:`load`.

    Args:
        widths: channels of the four stride-2 convolutions.
        dim: width of frame features.
        text_dim: width of clip and text vectors; the U-Nets read 512.
        resolution: working size ``(h, w)`` of frames.

    Shapes: frames ``[N, 16, 3, H, W]`` in 0..255, scores ``[N, P]`` on the common logit scale.

    >>> scorer = EmbeddedScorer()
    >>> scorer.text_features(["Cut a tree"]).shape
    torch.Size([1, 512])
    """

    reads: Literal["frame", "goal_mask"] = "frame"
    affine: Tensor  # [2] scale and shift onto the common scale
    fitted: Tensor  # bool

    def __init__(
        self,
        *,
        widths: Sequence[int] = (16, 32, 64, 128),
        dim: int = 192,
        text_dim: int = TEXT_DIM,
        resolution: tuple[int, int] = (40, 64),
    ) -> None:
        super().__init__()
        self.options = {
            "widths": list(widths),
            "dim": dim,
            "text_dim": text_dim,
            "resolution": list(resolution),
        }
        self.text_dim, self.resolution = text_dim, (int(resolution[0]), int(resolution[1]))
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths[:-1]), widths, strict=True):
            layers += [
                nn.Conv2d(before, after, 3, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        cells = math.prod(math.ceil(side / 2 ** len(widths)) for side in self.resolution)
        self.frame = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * cells, dim))
        self.frame.to(memory_format=torch.channels_last)
        self.time = nn.Parameter(_time_filters())  # [K, 16]
        self.clip = nn.Sequential(
            nn.LayerNorm(len(self.time) * dim),
            nn.Linear(len(self.time) * dim, 256),
            nn.SiLU(),
            nn.Linear(256, text_dim),
        )
        self.text = TextTower(text_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.register_buffer("affine", torch.tensor([1.0, LOGIT_MIDPOINT]))
        self.register_buffer("fitted", torch.tensor(False))
        self._texts: dict[str, Tensor] = {}
        self.register_load_state_dict_post_hook(lambda module, keys: module._texts.clear())
        self.eval()

    # --- scoring ----------------------------------------------------------------------------

    def forward(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """``[N, 16, 3, H, W]`` to ``[N, P]`` logits."""
        flat = frames.flatten(0, 1)
        if flat.shape[-2:] != self.resolution:
            flat = F.interpolate(flat.float(), self.resolution, mode="bilinear", align_corners=False)
        return self.pool(self.encode(flat).unflatten(0, frames.shape[:2]), prompts)

    def encode(self, frames: Tensor) -> Tensor:
        """Frame features: ``[M, 3, 40, 64]`` in 0..255 to ``[M, dim]``."""
        pixels = frames.float().mul(1 / 127.5).sub_(1).contiguous(memory_format=torch.channels_last)
        return self.frame(pixels)

    def pool(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores from frame features: ``[N, 16, dim] -> [N, P]``."""
        if not bool(self.fitted):
            raise MissingWeightsError(
                "scorer 'embedded' has no weights: found an untrained model, wanted a trained one; "
                "run `wmkit affordance fit`, call .fit(env), or read one with EmbeddedScorer.load(path)"
            )
        text = F.normalize(self.text_features(prompts), dim=-1)
        return self.affine[0] * self._raw(self._clip_vectors(features), text) + self.affine[1]

    @torch.no_grad()
    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """``[P, text_dim]`` text vectors, cached until the model is trained again or moved."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self._texts]
        if missing:
            vectors = self.text(tokenize(missing).to(self.time.device))
            self._texts.update(zip(missing, vectors, strict=True))
        return torch.stack([self._texts[p] for p in prompts]).to(self.time.device)

    def _clip_vectors(self, features: Tensor) -> Tensor:
        """``[N, 16, dim] -> [N, text_dim]`` of unit length."""
        seen = torch.einsum("kt,ntd->nkd", self.time, features).flatten(1)  # [N, K*dim]
        return F.normalize(self.clip(seen), dim=-1)

    def _raw(self, clips: Tensor, text: Tensor) -> Tensor:
        """Scaled cosine ``[N, P]``."""
        return self.log_scale.exp().clamp_max(100.0) * clips @ text.T

    # --- training ---------------------------------------------------------------------------

    def fit(
        self,
        data: Any,
        *,
        prompt: str | None = None,
        prompts: Sequence[str] = PROMPTS,
        steps: int = 400,
        batch: int = 32,
        learning_rate: float = 2e-3,
        holdout: float = 0.15,
        seed: int = 0,
        progress: Callable[[int, int, dict[str, float]], None] | None = None,
    ) -> dict[str, float]:
        """Train on clips, then calibrate on clips of held-out frames.

        Args:
            data: one :class:`ClipSource`, several (one per task or episode set), or a TorchRL environment
                that emits ``frame`` and ``goal_mask``, in which 1200 random steps are taken first.
            prompt: the task's prompt, if ``data`` is an environment.
            prompts: prompts that every clip is compared with, in addition to the sources' own.
            steps: gradient steps.
            batch: clips per step.
            learning_rate: peak of the one-cycle schedule.
            holdout: share of each source's frames kept for calibration.
            seed: of the clips drawn. Initial weights come from torch's global generator.
            progress: called as ``progress(step, steps, metrics)`` after every step.

        Returns:
            ``loss`` and ``accuracy`` over the last tenth of training, and on held-out exploration clips
            ``auc`` (chance that a matching clip scores above another) and ``calibrated_accuracy`` of the
            midpoint.

        Raises:
            ConfigError: an environment without a prompt, or no clip that matches its prompt.
        """
        sources = _sources(data, prompt)
        parts = [source.split(holdout) for source in sources]
        bank = [*dict.fromkeys([*prompts, *MOTIONS, *(s.prompt for s in sources)])]
        generator = torch.Generator().manual_seed(seed)
        decay = [p for p in self.parameters() if p.ndim > 1]
        plain = [p for p in self.parameters() if p.ndim <= 1]
        optimiser = torch.optim.AdamW(
            [{"params": decay, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}],
            lr=learning_rate,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=max(steps, 2))
        self.train()
        history = []
        for step in range(steps):
            # A few frames of each clip teach as much as 16, and what lies between is interpolated.
            middle = torch.randperm(FRAMES - 2, generator=generator)[: TRAINED - 2] + 1
            kept = (0, *sorted(middle.tolist()), FRAMES - 1)
            frames, captions = self._batch([train for train, _ in parts], batch, kept, generator)
            features = spread_frames(self.encode(frames.flatten(0, 1)).unflatten(0, (-1, TRAINED)), kept)
            table, own = caption_table(captions, bank)
            text = F.normalize(self.text(tokenize(table).to(self.time.device)), dim=-1)
            logits = self._raw(self._clip_vectors(features), text)  # [N, C]
            loss = info_nce(logits, own.to(logits.device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            accuracy = (logits.detach().argmax(1).cpu() == own).float().mean()
            history.append((float(loss.detach()), float(accuracy)))
            if progress is not None:
                progress(step + 1, steps, {"loss": history[-1][0], "accuracy": history[-1][1]})
        self.eval()
        self._texts.clear()
        tail = torch.tensor(history[-max(steps // 10, 1) :]).mean(0)
        metrics = {"loss": float(tail[0]), "accuracy": float(tail[1])}
        return metrics | self._calibrate([held for _, held in parts], generator)

    def _batch(
        self, sources: list[ClipSource], count: int, kept: Sequence[int], generator: torch.Generator
    ) -> tuple[Tensor, list[str]]:
        """``[N, K, 3, h, w]`` in 0..255, flipped and with changed light, and N captions."""
        shares = torch.randint(len(sources), (count,), generator=generator).bincount(minlength=len(sources))
        frames, captions = [], []
        for source, share in zip(sources, shares.tolist(), strict=True):
            if share:
                clips = make_clips(source, share, generator=generator)
                frames.append(clips.render(source, self.resolution, kept))
                captions += clips.captions
        pixels = torch.cat(frames).to(self.time.device)
        flip = torch.rand(count, 1, 1, 1, 1, generator=generator) < 0.5
        light = 0.85 + 0.3 * torch.rand(count, 1, 3, 1, 1, generator=generator)
        pixels = torch.where(flip.to(pixels.device), pixels.flip(-1), pixels) * light.to(pixels.device)
        return pixels.clamp_(0, 255), captions

    @torch.no_grad()
    def _calibrate(
        self, sources: list[ClipSource], generator: torch.Generator, count: int = 256
    ) -> dict[str, float]:
        """Fit the affine map on exploration clips of held-out frames."""
        positive, negative = [], []
        for source in sources:
            clips = make_clips(source, max(count // len(sources), 16), generator=generator, explore=True)
            text = F.normalize(self.text_features([source.prompt]), dim=-1)
            frames = clips.render(source, self.resolution).to(self.time.device)
            features = self.encode(frames.flatten(0, 1)).unflatten(0, (-1, FRAMES))
            raw = self._raw(self._clip_vectors(features), text)[:, 0].cpu()
            match = torch.tensor([caption == source.prompt for caption in clips.captions])
            positive.append(raw[match])
            negative.append(raw[~match])
        yes, no = torch.cat(positive), torch.cat(negative)
        if not len(yes) or not len(no):
            raise ConfigError(
                f"calibration of the embedded scorer: found {len(yes)} clips that match their prompt and "
                f"{len(no)} that do not in the held-out frames, wanted some of both; collect frames in "
                "which the goal comes into view"
            )
        scale, shift = fit_affine(yes, no)
        self.affine.copy_(torch.tensor([scale, shift]))
        self.fitted.fill_(True)
        auc = (yes[:, None] > no).float().mean()
        caught = (scale * yes + shift > LOGIT_MIDPOINT).float().mean()
        spared = (scale * no + shift < LOGIT_MIDPOINT).float().mean()
        return {"auc": float(auc), "calibrated_accuracy": float(caught + spared) / 2}

    # --- storage ----------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"scorer": "embedded", **self.options}, indent=2))
        save_file(
            {k: v.contiguous() for k, v in self.state_dict().items()}, str(folder / "model.safetensors")
        )

    @classmethod
    def load(cls, folder: str | Path) -> EmbeddedScorer:
        """Read what :meth:`save` wrote.

        Raises:
            MissingWeightsError: the folder lacks one of the two files.
            CheckpointError: they cannot be read, do not fit each other, or a weight is not finite.
        """
        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise MissingWeightsError(
                    f"scorer 'embedded' has no weights: found no {name} in {str(folder)!r}, wanted a folder "
                    "written by EmbeddedScorer.save; run `wmkit affordance fit` or correct the path"
                )
        what = f"scorer 'embedded' in {str(folder)!r}"
        try:
            options = dict(json.loads((folder / "config.json").read_text()))
            options.pop("scorer", None)
            scorer = cls(**options)
        except Exception as error:  # a stranger's files may break anything
            found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise CheckpointError(
                f"{what} cannot be read: found {found}, wanted what save writes; save the scorer again with "
                "this version"
            ) from None
        weights = read_weights(folder / "model.safetensors", what, "save the scorer again with this version")
        fill(scorer, weights, what, "use the file that belongs to this scorer")
        return scorer


def info_nce(logits: Tensor, own: Tensor) -> Tensor:
    """Symmetric InfoNCE where several clips may share a caption.

    Clip to text: cross-entropy over the distinct captions. Text to clip: for each caption that some clip of
    the batch has, the mean negative log share of its clips among all clips.

    Args:
        logits: ``[N, C]`` clips against distinct captions.
        own: ``[N]`` number of each clip's caption.

    Returns:
        Scalar.

    >>> round(float(info_nce(torch.eye(3) * 100, torch.arange(3))), 4)
    0.0
    """
    positive = F.one_hot(own, logits.shape[1]).to(logits)  # [N, C]
    per_caption = positive.sum(0)  # [C]
    among_clips = -(positive * logits.log_softmax(0)).sum(0) / per_caption.clamp_min(1)
    among_clips = among_clips - per_caption.clamp_min(1).log()  # 0 at best, however many share the caption
    present = (per_caption > 0).to(logits)
    return 0.5 * (F.cross_entropy(logits, own) + (among_clips * present).sum() / present.sum())


def _time_filters() -> Tensor:
    """First frame, mean, last three, and the change from first to last: ``[4, 16]``."""
    filters = torch.zeros(4, FRAMES)
    filters[0, 0] = 1.0
    filters[1] = 1.0 / FRAMES
    filters[2, -3:] = 1.0 / 3.0
    filters[3, -1], filters[3, 0] = 1.0, -1.0
    return filters


def _sources(data: Any, prompt: str | None) -> list[ClipSource]:
    if isinstance(data, ClipSource):
        return [data]
    if isinstance(data, Sequence):
        return list(data)
    if prompt is None:
        raise ConfigError(
            "fit of the embedded scorer: found an environment without a prompt, wanted what its task asks "
            "for; pass prompt=task_prompt(env_name)"
        )
    return [ClipSource.from_env(data, prompt, steps=1200)]
