"""The video score (LS-Imagine, arXiv:2410.03618, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmkit.affordance.scorers.scorer import device_of


class ClipReward(nn.Module):
    """The video score: how well the last 16 frames match the prompt.

    Every frame is encoded once; the last 16 features are pooled into a logit z per stream and squashed
    to ``sigmoid(slope * (z - midpoint))``. Before the start of an episode the history holds zero
    features, the reset frame is not encoded, and the score on reset is 0.

    Args:
        scorer: has ``encode(images [M, C, H, W]) -> [M, *F]`` and ``pool(features [N, 16, *F], prompts)
            -> [N, P]``; a scorer without them is called as ``scorer(images [N, 16, C, H, W], prompts)``
            on a history of images. It is shared, not copied: its weights stay out of ``state_dict``.
        prompt: what to look for.
        frames: length of the window.
        slope: of the logistic.
        midpoint: of the logistic, in logits.
        weight: of the video score in rewards and scores.

    >>> class Bright:
    ...     def encode(self, images): return images.float().mean((1, 2, 3))[:, None]
    ...     def pool(self, features, prompts): return features.sum(1)
    >>> reward = ClipReward(Bright(), "light")
    >>> images = torch.full((1, 3, 3, 4, 4), 12, dtype=torch.uint8)
    >>> start = torch.tensor([[True, False, False]])
    >>> score, history = reward(images, start, None)
    >>> [round(x, 3) for x in score[0].tolist()]
    [0.0, 0.0, 0.933]
    """

    scorer: Any

    def __init__(
        self,
        scorer: Any,
        prompt: str,
        *,
        frames: int = 16,
        slope: float = 1.2,
        midpoint: float = 21.8,
        weight: float = 0.01,
    ) -> None:
        super().__init__()
        self.__dict__["scorer"] = scorer  # shared with labelling: not a submodule
        self.prompt, self.frames = prompt, frames
        self.slope, self.midpoint, self.weight = slope, midpoint, weight
        self.reads: str = getattr(scorer, "reads", "frame")

    @torch.no_grad()
    def forward(
        self, images: Tensor, is_init: Tensor, history: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Score T consecutive records of E streams.

        Args:
            images: uint8 ``[E, T, C, H, W]``.
            is_init: bool ``[E, T]``.
            history: features of the 15 records before, ``[E, 15, *F]``, or None for none.

        Returns:
            Scores ``[E, T]`` in [0, 1] and the history for the next call.
        """
        streams, steps = is_init.shape
        if steps == 1 and bool(is_init.all()):  # a reset: nothing is encoded
            return torch.zeros(is_init.shape, device=images.device), None if history is None else history * 0
        features = self._encode(images.flatten(0, 1)).unflatten(0, (streams, steps))  # [E, T, *F]
        before = self.frames - 1
        if history is None:
            history = features.new_zeros(streams, before, *features.shape[2:])
        track = torch.cat((history, features), 1)  # [E, 15 + T, *F]
        # The episode that each entry belongs to; -1 is the zero feature of a reset frame.
        episode = is_init.long().cumsum(1)
        episode_of = torch.cat((episode.new_zeros(streams, before), episode.masked_fill(is_init, -1)), 1)
        clips = track.unfold(1, self.frames, 1).movedim(-1, 2)  # [E, T, 16, *F]
        same = episode_of.unfold(1, self.frames, 1) == episode[:, :, None]  # [E, T, 16]
        clips = clips * same.to(clips.device).reshape(*same.shape, *[1] * (clips.ndim - 3))
        logits = self._pool(clips.flatten(0, 1), [self.prompt])[:, 0].float().to(images.device)
        score = torch.sigmoid(self.slope * (logits - self.midpoint)).view(streams, steps)
        keep = (episode_of[:, steps:] == episode[:, -1:]).reshape(streams, before, *[1] * (track.ndim - 2))
        return score.masked_fill(is_init, 0.0), track[:, steps:] * keep.to(track.device)

    def _encode(self, images: Tensor) -> Tensor:
        encode = getattr(self.scorer, "encode", None)
        if encode is None:
            return images
        images = images.to(device_of(self.scorer, images.device))  # features stay there
        size = getattr(self.scorer, "resolution", None)
        if size is not None and tuple(images.shape[-2:]) != tuple(size):
            images = F.interpolate(images.float(), tuple(size), mode="bilinear", align_corners=False)
        return encode(images)

    def _pool(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        pool = getattr(self.scorer, "pool", None)
        return self.scorer(features, prompts) if pool is None else pool(features, prompts)
