"""Everything LS-Imagine adds to records, tensors in and tensors out.

LS-Imagine, arXiv:2410.03618, sections 3.1 to 3.3, and its released code.
A step of E environments, a partial reset and sequences from replay are one computation over
``[n, T]`` records, in four passes:

    parallel   maps, scores, P_jump of all n*T frames         the model's first pass
    in order   thresholds                                     RunningStatistics, lifetime
    parallel   zoomed views of the few records that passed    the model's second pass
    in order   gates                                          Memory, per episode

What must survive between calls goes in and comes out as a :class:`Memory`; the statistics are
buffers, so that a checkpoint keeps them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmkit.affordance.labels.gates import Gate
from wmkit.affordance.labels.jumps import JumpLabeller, Zooms
from wmkit.affordance.labels.video_score import ClipReward

CHUNK = 64  # images per call of a model


class Records(NamedTuple):
    """T consecutive records of n streams; images by key ``[n, T, C, H, W]``, the rest ``[n, T]``."""

    images: dict[str, Tensor]
    reward: Tensor  # float32
    is_init: Tensor  # bool
    terminated: Tensor  # bool

    def pick(self, rows: Tensor) -> Records:
        """The records of some streams."""
        images = {key: value[rows] for key, value in self.images.items()}
        return Records(images, self.reward[rows], self.is_init[rows], self.terminated[rows])


class Memory(NamedTuple):
    """The memory of gates and video score of E running episodes: gates float32 ``[E]``."""

    affordance: Tensor
    clip: Tensor
    zoomed_affordance: Tensor
    zoomed_clip: Tensor
    history: Tensor | None = None  # [E, 15, *F]

    @classmethod
    def empty(cls, streams: int, device: torch.device) -> Memory:
        """The memory before the first record."""
        zero = torch.zeros(streams, device=device)
        return cls(zero, zero, zero, zero)

    def pick(self, rows: Tensor) -> Memory:
        """The memory of some streams."""
        history = None if self.history is None else self.history[rows.to(self.history.device)]
        affordance, clip, zoomed_affordance, zoomed_clip = (x[rows] for x in self[:4])
        return Memory(affordance, clip, zoomed_affordance, zoomed_clip, history)

    def put(self, rows: Tensor, new: Memory) -> Memory:
        """This memory with some streams replaced."""
        history = self.history
        if new.history is not None:
            history = blank(new.history, len(self.clip)) if history is None else history
            history = history.index_copy(0, rows.to(history.device), new.history)
        affordance, clip, zoomed_affordance, zoomed_clip = (
            old.index_copy(0, rows, value) for old, value in zip(self[:4], new[:4], strict=True)
        )
        return Memory(affordance, clip, zoomed_affordance, zoomed_clip, history)


class AffordanceModel(Protocol):
    """Makes maps of images: an :class:`~wmkit.affordance.AffordanceUNet`, a
    :class:`~wmkit.affordance.MaskAffordance`, or one of your own.

    An attribute ``reads`` names the images it wants; a model without it reads ``frame``.
    """

    def predict(self, images: Tensor, text: Tensor | None, /) -> Tensor:
        """Images ``[B, C, H, W]``, and features of the prompt or None, to maps ``[B, H, W]`` in [0, 1]."""


class Mapper(nn.Module):
    """A model as a function from images to maps, and from maps to what an agent sees of them.

    Args:
        model: makes the maps. It is shared, not copied: its weights stay out of ``state_dict`` and ``.to()``.
        text: features of the prompt ``[D]`` or ``[1, D]``, for models that need them.
        size: height and width of the small images.

    >>> from wmkit.affordance.mask import MaskAffordance
    >>> mapper = Mapper(MaskAffordance(), size=(64, 64))
    >>> maps = mapper(torch.zeros(2, 1, 160, 256, dtype=torch.bool))
    >>> mapper.reads, maps.shape, mapper.small(maps).shape
    ('goal_mask', torch.Size([2, 160, 256]), torch.Size([2, 1, 64, 64]))
    """

    model: AffordanceModel
    text: Tensor | None

    def __init__(
        self, model: AffordanceModel, text: Tensor | None = None, *, size: tuple[int, int] = (64, 64)
    ) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not a submodule
        self.register_buffer("text", text, persistent=False)
        self.reads: str = getattr(model, "reads", "frame")
        self.size = (int(size[0]), int(size[1]))

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` to maps float32 ``[N, H, W]``, on the device of the images."""
        if len(images) <= CHUNK:
            return self._predict(images)
        return torch.cat([self._predict(part) for part in images.split(CHUNK)])

    def _predict(self, images: Tensor) -> Tensor:
        weight = next(self.model.parameters(), None) if isinstance(self.model, nn.Module) else None
        device = images.device if weight is None else weight.device  # the model computes where it lies
        text = None if self.text is None else self.text.to(device)
        return self.model.predict(images.to(device), text).to(images.device, torch.float32)

    def small(self, maps: Tensor) -> Tensor:
        """Maps ``[N, H, W]`` to uint8 ``[N, 1, h, w]``, 0 to 255."""
        small = F.interpolate(maps[:, None], self.size, mode="bilinear", align_corners=False)
        return small.mul_(255).round_().to(torch.uint8)


class RecordLabels(nn.Module):
    """Maps, intrinsic rewards, jump labels and zoomed views of records.

    Args:
        mapper: makes the maps.
        labeller: thresholds, zooms, and what the affordance score is worth.
        gate: when scores are paid.
        video: the video score, or None.
    """

    def __init__(
        self, mapper: Mapper, labeller: JumpLabeller, gate: Gate, video: ClipReward | None = None
    ) -> None:
        super().__init__()
        self.mapper, self.labeller, self.gate, self.video = mapper, labeller, gate, video

    @property
    def images(self) -> list[str]:
        """Names of the images that :meth:`forward` looks at."""
        seen = {"frame", self.mapper.reads}
        return sorted(seen if self.video is None else seen | {self.video.reads})

    @torch.no_grad()
    def forward(
        self, records: Records, memory: Memory, *, rows: Tensor | None = None, learn: bool = False
    ) -> tuple[dict[Any, Tensor], Memory]:
        """Label T consecutive records of n streams.

        Args:
            records: see :class:`Records`.
            memory: of the n streams.
            rows: which of the labeller's streams these are, int64 ``[n]``; None for all.
            learn: update the running statistics. Otherwise they are used as they stand, all streams
                together, or, where they are empty, every stream runs its own from zero.

        Returns:
            The keys of :class:`~wmkit.affordance.transform.AffordanceTransform`, images
            ``[n, T, C, h, w]`` and scalars ``[n, T]``; and the memory after the last record.
        """
        labeller, shape = self.labeller, records.is_init.shape
        sources = records.images[self.mapper.reads].flatten(0, 1)  # [N, C, H, W], N = n * T
        maps = self.mapper(sources)  # [N, H, W]
        score = labeller.score(maps).view(shape)
        probability = labeller.probability(maps).view(shape)
        passed, bar = self._thresholds(probability, score, rows, learn)
        frames = sources if self.mapper.reads == "frame" else records.images["frame"].flatten(0, 1)
        zooms = labeller.zoom(frames, sources, maps, passed.flatten(), bar.flatten(), self.mapper)
        is_zoomed, zoomed, value = (x.view(shape) for x in (zooms.is_zoomed, zooms.score, zooms.value))

        paid, best, paid_zoomed, best_zoomed = self._pay(
            score, zoomed, zooms, records, memory.affordance, memory.zoomed_affordance
        )
        worth = labeller.alpha * labeller.weight
        intrinsic, total = worth * paid, labeller.weight * score
        arrival, promise = worth * paid_zoomed, labeller.weight * zoomed
        memory = memory._replace(affordance=best, zoomed_affordance=best_zoomed)
        if (video := self.video) is not None:
            shown, history = video(records.images[video.reads], records.is_init, memory.history)
            paid, best, paid_zoomed, best_zoomed = self._pay(
                shown, value, zooms, records, memory.clip, memory.zoomed_clip
            )  # the map's mean in the window stands in for the video score of the zoomed view
            intrinsic, total = intrinsic + video.weight * paid, total + video.weight * shown
            arrival, promise = arrival + video.weight * paid_zoomed, promise + video.weight * value
            memory = memory._replace(clip=best, zoomed_clip=best_zoomed, history=history)

        pixels, small = self._views(zooms, maps)
        out: dict[Any, Tensor] = {"affordance": self.mapper.small(maps).unflatten(0, shape)}
        out["intrinsic_reward"], out["score"], out["jump_probability"] = intrinsic, total, probability
        out["jump"], out["is_zoomed"] = zooms.jump.view(shape), is_zoomed
        out["zoomed", "pixels"] = pixels.unflatten(0, shape)
        out["zoomed", "affordance"] = small.unflatten(0, shape)
        out["zoomed", "reward"] = records.reward * is_zoomed
        out["zoomed", "intrinsic_reward"], out["zoomed", "score"] = arrival, promise
        return out, memory

    def _thresholds(
        self, probability: Tensor, score: Tensor, rows: Tensor | None, learn: bool
    ) -> tuple[Tensor, Tensor]:
        if learn:
            return self.labeller.thresholds(probability, score, rows)
        if self.labeller.seen:
            return self.labeller.frozen_thresholds(probability, score)
        return self.labeller.fresh().thresholds(probability, score)

    def _pay(
        self,
        score: Tensor,
        zoomed: Tensor,
        zooms: Zooms,
        records: Records,
        memory: Tensor,
        zoomed_memory: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run the gate over T records ``[n, T]``: payments and memory, the same for the zoomed views."""
        shape, any_zoomed = score.shape, zooms.pixels is not None
        paid, paid_zoomed = [], []
        columns = (score, zoomed, zooms.is_zoomed.view(shape), records.is_init, records.terminated)
        for s, z, valid, first, end in zip(*(x.unbind(1) for x in columns), strict=True):
            payment, memory = self.gate(s, memory, first, end)
            paid.append(payment)
            zoomed_memory = zoomed_memory.masked_fill(first, 0.0)
            if any_zoomed:
                payment, zoomed_memory = self.gate.zoomed(z, s, memory, zoomed_memory, valid)
                paid_zoomed.append(payment)
        zoomed_payments = torch.stack(paid_zoomed, 1) if any_zoomed else torch.zeros_like(score)
        return torch.stack(paid, 1), memory, zoomed_payments, zoomed_memory

    def _views(self, zooms: Zooms, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Small zoomed images and maps of all N records, zero where not zoomed."""
        size = self.mapper.size
        pixels = maps.new_zeros(len(maps), 3, *size, dtype=torch.uint8)
        small = maps.new_zeros(len(maps), 1, *size, dtype=torch.uint8)
        if zooms.pixels is not None and zooms.affordance is not None:
            pixels[zooms.rows] = resize_image(zooms.pixels, size)
            small[zooms.rows] = self.mapper.small(zooms.affordance)
        return pixels, small


def resize_image(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear without antialiasing, rounded half up, as the environments make ``pixels``.

    Args:
        images: uint8 ``[N, C, H, W]``.
        size: (h, w).

    Returns:
        uint8 ``[N, C, h, w]``.

    >>> resize_image(torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8), (1, 1)).item()
    3
    """
    small = F.interpolate(images.float(), size, mode="bilinear", align_corners=False)
    return (small + 0.5).to(torch.uint8)


def blank(like: Tensor, streams: int) -> Tensor:
    """Zeros for all streams, shaped as the records of some: ``[n, ...] -> [streams, ...]``."""
    return like.new_zeros(streams, *like.shape[1:])
