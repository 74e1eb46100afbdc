"""From scores to the intrinsic reward: when a score is paid, and the video score itself.

LS-Imagine, arXiv:2410.03618, section 3.2; released rule: spec section 3.3. A *score* says
how well the current view suits the task and lies in [0, 1]. A *gate* decides how much of it
is paid on arriving at a record. All gates are pure: the memory of an episode (float32 ``[E]``,
one number per environment stream) goes in and comes out, so that the same object serves a
live environment, a batch of them, and sequences drawn from replay.

    gate         paid on arriving at t                               memory
    record       s_t if s_t beats the episode's record, else 0       the record, 0 at reset
    dense        s_t (the paper)                                     none
    potential    gamma * s_t - s_{t-1}, 0 at reset                   s_{t-1}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gate(Protocol):
    """Turns scores into payments, one step of E streams at a time."""

    def __call__(
        self, score: Tensor, memory: Tensor, is_init: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pay for the records just arrived at; all ``[E]``; returns payment and the new memory."""
        ...

    def zoomed(
        self, zoomed: Tensor, score: Tensor, memory: Tensor, zoomed_memory: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pay for the zoomed views of the same records; returns payment and the new zoomed memory.

        Where ``valid`` is false there is no view: it pays 0 and leaves the memory as it was.
        """
        ...


@dataclass(frozen=True)
class RecordGate:
    """Pay the whole score (not the increment) when it beats the episode's record: the released rule.

    The record starts at 0, so the reset frame is judged as well. A zoomed view is paid when it beats
    both the record of real views, the current one included, and that of zoomed views (spec 4.4).

    >>> gate, memory = RecordGate(), torch.zeros(1)
    >>> no = torch.zeros(1, dtype=torch.bool)
    >>> for score in (0.2, 0.1, 0.3):
    ...     paid, memory = gate(torch.tensor([score]), memory, no, no)
    ...     print(round(paid.item(), 1))
    0.2
    0.0
    0.3
    """

    def __call__(
        self, score: Tensor, memory: Tensor, is_init: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All ``[E]``; see :class:`Gate`."""
        memory = memory.masked_fill(is_init, 0.0)
        return score.masked_fill(score <= memory, 0.0), torch.maximum(memory, score)

    def zoomed(
        self, zoomed: Tensor, score: Tensor, memory: Tensor, zoomed_memory: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All ``[E]``; ``memory`` is the record *after* the current view."""
        fires = valid & (zoomed > memory) & (zoomed > zoomed_memory)
        return zoomed.masked_fill(~fires, 0.0), torch.where(fires, zoomed, zoomed_memory)


@dataclass(frozen=True)
class DenseGate:
    """Pay every score: the paper's rule."""

    def __call__(
        self, score: Tensor, memory: Tensor, is_init: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All ``[E]``; see :class:`Gate`."""
        return score, memory

    def zoomed(
        self, zoomed: Tensor, score: Tensor, memory: Tensor, zoomed_memory: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All ``[E]``."""
        return zoomed.masked_fill(~valid, 0.0), zoomed_memory


@dataclass(frozen=True)
class PotentialGate:
    """Potential-based shaping (Ng, Harada & Russell 1999) with the score as potential.

    Pays ``gamma * phi(s_t) - phi(s_{t-1})``, 0 on the first record, and takes ``phi = 0`` at a true
    end (not at a time limit), which is what leaves the optimal policy unchanged in episodic tasks.
    The discounted sum over an episode telescopes to ``gamma^T phi(s_T) - phi(s_0)``. A zoomed view is
    paid ``gamma * phi(zoomed) - phi(s_t)``, as if it came one step after its own record.
    """

    gamma: float = 0.997

    def __call__(
        self, score: Tensor, memory: Tensor, is_init: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All ``[E]``; see :class:`Gate`."""
        potential = score.masked_fill(terminated, 0.0)
        return (self.gamma * potential - memory).masked_fill(is_init, 0.0), score

    def zoomed(
        self, zoomed: Tensor, score: Tensor, memory: Tensor, zoomed_memory: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All ``[E]``."""
        return (self.gamma * zoomed - score).masked_fill(~valid, 0.0), zoomed_memory


class ClipReward(nn.Module):
    """The video score: how well the last 16 frames match the prompt (spec 3.2).

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
        clips = clips * same.reshape(*same.shape, *[1] * (clips.ndim - 3))
        logits = self._pool(clips.flatten(0, 1), [self.prompt])[:, 0].float().to(images.device)
        score = torch.sigmoid(self.slope * (logits - self.midpoint)).view(streams, steps)
        keep = (episode_of[:, steps:] == episode[:, -1:]).reshape(streams, before, *[1] * (track.ndim - 2))
        return score.masked_fill(is_init, 0.0), track[:, steps:] * keep

    def _encode(self, images: Tensor) -> Tensor:
        encode = getattr(self.scorer, "encode", None)
        if encode is None:
            return images
        size = getattr(self.scorer, "resolution", None)
        if size is not None and tuple(images.shape[-2:]) != tuple(size):
            images = F.interpolate(images.float(), tuple(size), mode="bilinear", align_corners=False)
        return encode(images)

    def _pool(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        pool = getattr(self.scorer, "pool", None)
        return self.scorer(features, prompts) if pool is None else pool(features, prompts)
