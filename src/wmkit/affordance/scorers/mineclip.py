"""MineCLIP: how well 16 frames of Minecraft show what a sentence asks for (arXiv:2206.08853).

The variant that LS-Imagine uses (``attn``): CLIP's ViT-B/16 over each frame, a small transformer over time,
an adapter, and the cosine with the text's vector times a learned scale. Its logits are the common scale of
all scorers as they are: LS-Imagine reads ``sigmoid(1.2 (logit - 21.8))``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmkit.affordance.scorers.clip_tokens import LENGTH, ClipTokens
from wmkit.affordance.scorers.mineclip_layers import Adapter, OverTime, Text, Vision
from wmkit.errors import ConfigError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class MineCLIP(nn.Module):
    """The video-text model, as a scorer (158,537,730 parameters in the published size).

    Its own numbers are the published ones; a model that is made here has random weights, which
    :func:`load_mineclip` fills. Features of texts are kept.

    Args:
        resolution: ``(h, w)`` of frames, multiples of ``patch``; others are resized.
        patch: side of a patch in pixels.
        width: of the vision tower.
        layers: of the vision tower.
        heads: of the vision tower.
        dim: width of vectors of frames, videos and texts.
        text_width: of the text tower.
        text_layers: of the text tower.
        text_heads: of the text tower.
        vocabulary: tokens that there are.
        context: tokens of a text.
        frames: the most that a video may have.
        time_layers: of the transformer over time.
        time_heads: of the transformer over time.
        precision: of the vision tower, ``"float32"`` or ``"bfloat16"``; all else is float32.
        merges: path of CLIP's list of merges; that of an installed package if not given. It is looked for
            when a prompt is first read.

    Raises:
        ConfigError: another precision, or a resolution that patches do not tile.

    Shapes: frames ``[N, 16, 3, H, W]`` in 0..255, scores ``[N, P]`` float32.

    >>> with torch.device("meta"):  # the published size, without memory
    ...     model = MineCLIP()
    >>> sum(p.numel() for p in model.parameters())
    158537730
    """

    reads: Literal["frame", "goal_mask"] = "frame"

    def __init__(
        self,
        *,
        resolution: tuple[int, int] = (160, 256),
        patch: int = 16,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        dim: int = 512,
        text_width: int = 512,
        text_layers: int = 12,
        text_heads: int = 8,
        vocabulary: int = 49_408,
        context: int = LENGTH,
        frames: int = 32,
        time_layers: int = 2,
        time_heads: int = 8,
        precision: str = "float32",
        merges: str | PathLike | None = None,
    ) -> None:
        super().__init__()
        self.resolution, self.text_dim = (int(resolution[0]), int(resolution[1])), dim
        if self.resolution[0] % patch or self.resolution[1] % patch:
            raise ConfigError(
                f"resolution is {self.resolution}: wanted multiples of {patch}, the side of a patch; round it"
            )
        self.options: dict[str, Any] = dict(
            **dict(resolution=list(self.resolution), patch=patch, width=width, layers=layers, heads=heads),
            **dict(dim=dim, text_width=text_width, text_layers=text_layers, text_heads=text_heads),
            **dict(vocabulary=vocabulary, context=context, frames=frames),
            **dict(time_layers=time_layers, time_heads=time_heads),
        )
        self.vision = Vision(self.resolution, patch, width, layers, heads, dim)
        self.text = Text(vocabulary, context, text_width, text_layers, text_heads, dim)
        self.over_time = OverTime(dim, frames, time_layers, time_heads)
        self.adapter = Adapter(dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.merges = merges
        self._tokens: ClipTokens | None = None
        self._texts: dict[str, Tensor] = {}
        self.register_load_state_dict_post_hook(lambda module, keys: module._texts.clear())
        self.eval().requires_grad_(False)
        self.compute_in(precision)

    def compute_in(self, precision: str) -> MineCLIP:
        """Hold and compute the vision tower in ``"float32"`` or ``"bfloat16"``; returns itself.

        Raises:
            ConfigError: another precision.
        """
        if precision not in PRECISIONS:
            raise ConfigError(
                f"precision of MineCLIP is {precision!r}: wanted one of {', '.join(PRECISIONS)}; pick one"
            )
        self.precision = precision
        self.vision.to(PRECISIONS[precision])
        return self

    # --- scoring ----------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """``[N, 16, 3, H, W]`` to ``[N, P]`` logits."""
        return self.pool(self.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]), prompts)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Vectors of frames, not normalised: ``[M, 3, H, W]`` in 0..255 to ``[M, D]`` float32."""
        frames = frames.to(self.log_scale.device)
        if tuple(frames.shape[-2:]) != self.resolution:
            frames = F.interpolate(frames.float(), self.resolution, mode="bilinear", align_corners=False)
        return self.vision(frames).float()

    @torch.no_grad()
    def pool(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores from vectors of frames: ``[N, 16, D] -> [N, P]``."""
        return self.logits(self.video_features(features), self.text_features(prompts))

    @torch.no_grad()
    def video_features(self, features: Tensor) -> Tensor:
        """``[N, T, D] -> [N, D]``, adapted, not normalised."""
        return self.adapter(self.over_time(features))

    def logits(self, video: Tensor, text: Tensor) -> Tensor:
        """Scaled cosines: ``[N, D], [P, D] -> [N, P]``."""
        return self.log_scale.exp() * F.normalize(video, dim=-1) @ F.normalize(text, dim=-1).T

    # --- text -------------------------------------------------------------------------------

    @torch.no_grad()
    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """``[P, D]`` vectors of prompts before normalisation, kept until weights are loaded.

        Raises:
            MissingWeightsError: CLIP's list of merges is not there.
        """
        missing = [p for p in dict.fromkeys(prompts) if p not in self._texts]
        if missing:
            self._tokens = tokenizer = self._tokens or ClipTokens(self.merges)
            tokens = tokenizer(missing)[:, : self.options["context"]]
            self._texts.update(zip(missing, self.text(tokens.to(self.log_scale.device)), strict=True))
        return torch.stack([self._texts[p] for p in prompts]).to(self.log_scale.device)

    # --- storage ----------------------------------------------------------------------------

    def save(self, folder: str | PathLike) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder; :func:`load_mineclip` reads it."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"scorer": "mineclip", **self.options}, indent=2))
