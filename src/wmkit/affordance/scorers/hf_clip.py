"""Any CLIP of transformers as a scorer (Radford et al. 2021, arXiv:2103.00020).

Frames are encoded one by one and averaged over the zoom; a score is CLIP's own ``logit_scale * cos``, which
for published models lies around 20 to 30, near the common scale already. :meth:`HFClipScorer.calibrate` puts
it there exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmkit.affordance.scorers.scorer import fit_affine
from wmkit.errors import MissingWeightsError

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP, where a model does not say
STD = (0.26862954, 0.26130258, 0.27577711)


class HFClipScorer(nn.Module):
    """Scores zooms with a CLIP model given by name or path.

    Args:
        model: a folder with model, tokenizer and (optionally) preprocessor configuration, or a name on the
            Hugging Face hub, which is looked for in the cache of downloads.
        scale: multiplies the logit.
        shift: added after scaling; ``scale=1, shift=0`` keeps CLIP's own logit.
        template: what the prompt is put into, e.g. ``"a photo of: {}"``.
        local_files_only: never go to the network; False downloads what is not in the cache.
        last: average only the last so many frames of the zoom; all 16 by default.

    Raises:
        MissingWeightsError: transformers is not installed, or the model cannot be found.

    Shapes: frames ``[N, 16, 3, H, W]`` in 0..255, scores ``[N, P]``.
    """

    reads: Literal["frame", "goal_mask"] = "frame"
    mean: Tensor  # [1, 3, 1, 1]
    std: Tensor

    def __init__(
        self,
        model: str = "openai/clip-vit-base-patch16",
        *,
        scale: float = 1.0,
        shift: float = 0.0,
        template: str = "{}",
        local_files_only: bool = True,
        last: int = 16,
    ) -> None:
        super().__init__()
        place = _find(model) if local_files_only else model
        self.clip, self.tokenizer = _load(model, place)
        self.clip.eval().requires_grad_(False)
        side = int(self.clip.config.vision_config.image_size)
        self.resolution = (side, side)
        self.text_dim = int(self.clip.config.projection_dim)
        self.scale, self.shift, self.template, self.last = scale, shift, template, last
        mean, std = _pixel_statistics(place)
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1), persistent=False)
        self._texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def forward(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """``[N, 16, 3, H, W]`` to ``[N, P]`` logits."""
        return self.pool(self.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]), prompts)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Frame features of unit length: ``[M, 3, H, W]`` in 0..255 to ``[M, D]``."""
        pixels = frames.float()
        if pixels.shape[-2:] != self.resolution:
            pixels = F.interpolate(
                pixels, self.resolution, mode="bilinear", align_corners=False, antialias=True
            )
        pixels = (pixels / 255 - self.mean) / self.std
        return F.normalize(_tensor(self.clip.get_image_features(pixel_values=pixels)), dim=-1)

    @torch.no_grad()
    def pool(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """``[N, 16, D] -> [N, P]``."""
        return self.scale * self._raw(features, prompts) + self.shift

    def _raw(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        video = F.normalize(features[:, -self.last :].mean(1), dim=-1)  # [N, D]
        text = F.normalize(self.text_features(prompts), dim=-1)  # [P, D]
        return self.clip.logit_scale.exp() * video @ text.T

    @torch.no_grad()
    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """``[P, D]`` text vectors before normalisation, cached."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self._texts]
        if missing:
            inputs = self.tokenizer(
                [self.template.format(p) for p in missing], padding=True, truncation=True, return_tensors="pt"
            ).to(self.mean.device)
            tokens = {k: inputs[k] for k in ("input_ids", "attention_mask")}
            self._texts.update(zip(missing, _tensor(self.clip.get_text_features(**tokens)), strict=True))
        return torch.stack([self._texts[p] for p in prompts]).to(self.mean.device)

    @torch.no_grad()
    def calibrate(self, positive: Tensor, negative: Tensor, prompt: str) -> tuple[float, float]:
        """Set ``scale`` and ``shift`` from clips that show the prompt and clips that do not.

        Args:
            positive: ``[n, 16, 3, H, W]``.
            negative: ``[m, 16, 3, H, W]``.
            prompt: what the positive clips show.

        Returns:
            The new ``(scale, shift)``.
        """
        raw = [
            self._raw(self.encode(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]), [prompt])[:, 0].cpu()
            for clips in (positive, negative)
        ]
        self.scale, self.shift = fit_affine(*raw)
        return self.scale, self.shift


def _find(model: str) -> str:
    """The folder of a model: itself one, or of what was downloaded under that name.

    Of a folder transformers asks nobody; of a name it does even with ``local_files_only``, since the hub's
    client looks something up for the head of a request that it then does not make.
    """
    if Path(model).is_dir():
        return model
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, "config.json")
    except ImportError:
        raise _no_transformers() from None
    except ValueError:  # a path can be no name
        found = None
    if not isinstance(found, str):
        why = "no such folder, and none of that name among what was downloaded"
        also = ", or allow a download with affordance.scorer.local_files_only=false"
        raise _no_weights(model, why, also)
    return str(Path(found).parent)


def _load(model: str, place: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoTokenizer, CLIPModel
    except ImportError:
        raise _no_transformers() from None
    try:
        return CLIPModel.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise _no_weights(model, why) from None


def _no_transformers() -> MissingWeightsError:
    return MissingWeightsError(
        "scorer 'hf_clip' cannot run: found no transformers, wanted transformers>=4.48; install it with pip "
        "install 'wmkit[clip]'"
    )


def _no_weights(model: str, why: str, also: str = "") -> MissingWeightsError:
    return MissingWeightsError(
        f"scorer 'hf_clip' has no weights: found no CLIP model at {model!r} ({why}), wanted a folder written "
        f"by save_pretrained; give it with affordance.scorer.path=FOLDER{also}"
    )


def _pixel_statistics(place: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation from the model's preprocessor configuration, CLIP's own without one."""
    from transformers import CLIPImageProcessor

    try:
        processor = CLIPImageProcessor.from_pretrained(place)
    except (OSError, ValueError, ImportError):
        return MEAN, STD
    return processor.image_mean, processor.image_std


def _tensor(output: Any) -> Tensor:
    """The projected features: a tensor up to transformers 4, ``pooler_output`` of a record from 5 on."""
    return output if isinstance(output, Tensor) else output.pooler_output
