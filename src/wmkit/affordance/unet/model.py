"""The base of every affordance U-Net: from simulator frames to maps of the same size.

A model sees a frame and the text feature of a prompt and answers with a map in [0, 1]
that says where in the frame the prompt's goal can be approached (LS-Imagine,
arXiv:2410.03618, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmkit.affordance.unet.resize import SmoothResize
from wmkit.errors import CheckpointError, SpecError

# MineCLIP's pixel statistics, for values in [0, 1].
PIXEL_MEAN = (0.3331, 0.3245, 0.3051)
PIXEL_STD = (0.2439, 0.2493, 0.2873)


class AffordanceUNet(nn.Module):
    """Base of the U-Nets: preparation of frames, prediction at frame size, own options.

    Subclasses implement ``forward(images [B,3,h,w], text [B,D]) -> [B,1,h',w']`` in (0, 1).

    Attributes:
        image_size: (height, width) of the images ``forward`` wants.
        text_dim: width D of the text features it wants.
        options: keyword arguments that build the same model again (saved with the weights).
    """

    kind: str
    reads = "frame"  # the record key that images come from
    pixel_scale: Tensor  # [3, 1, 1]
    pixel_shift: Tensor

    def __init__(
        self, *, image_size: tuple[int, int], text_dim: int, blur: tuple[int, int], options: dict[str, Any]
    ):
        super().__init__()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.text_dim = text_dim
        self.options = options
        self.smooth = SmoothResize(blur)
        mean, std = torch.tensor(PIXEL_MEAN).view(3, 1, 1), torch.tensor(PIXEL_STD).view(3, 1, 1)
        self.register_buffer("pixel_scale", 1 / (255 * std), persistent=False)
        self.register_buffer("pixel_shift", -mean / std, persistent=False)

    def prepare(self, frames: Tensor) -> Tensor:
        """Resize and normalise frames for ``forward``.

        Args:
            frames: uint8 or float 0..255 ``[B,3,H,W]``.

        Returns:
            float32 ``[B,3,*image_size]`` with MineCLIP's mean and deviation taken out.

        Raises:
            SpecError: not four-dimensional, or not three channels.
        """
        if frames.ndim != 4 or frames.shape[1] != 3:
            raise SpecError(
                f"frames have shape {tuple(frames.shape)}: wanted [B, 3, H, W] with colours first; "
                "add a batch dimension or permute"
            )
        images = frames.to(self.pixel_scale.device, torch.float32)
        if images.shape[-2:] != self.image_size:
            images = F.interpolate(images, size=self.image_size, mode="bilinear", align_corners=False)
        return torch.addcmul(self.pixel_shift, images, self.pixel_scale)

    @torch.no_grad()
    def predict(self, frames: Tensor, text: Tensor) -> Tensor:
        """Affordance maps at the size of the frames.

        Args:
            frames: uint8 ``[B,3,H,W]``.
            text: features of the prompt: ``[D]`` or ``[1,D]`` for one prompt, ``[B,D]`` for one each.

        Returns:
            float32 ``[B,H,W]`` in [0, 1].

        Raises:
            SpecError: frames or text of another shape.
        """
        training = self.training
        if training:
            self.eval()
        try:
            images = self.prepare(frames)
            maps = self(images, self.match_text(text, len(frames)))  # [B, 1, h, w]
            return self.smooth(maps[:, 0], (frames.shape[-2], frames.shape[-1])).clamp_(0, 1)
        finally:
            if training:
                self.train()

    def match_text(self, text: Tensor, batch: int) -> Tensor:
        """Text features as float32 ``[batch, D]``; one prompt serves every frame."""
        text = text.to(self.pixel_scale.device, torch.float32)
        rows = text[None] if text.ndim == 1 else text
        if rows.ndim != 2 or rows.shape[1] != self.text_dim or rows.shape[0] not in (1, batch):
            raise SpecError(
                f"text features have shape {tuple(text.shape)}: wanted [{self.text_dim}], "
                f"[1, {self.text_dim}] or "
                f"[{batch}, {self.text_dim}]; use the scorer this model was trained with, one row per frame"
            )
        return rows.expand(batch, -1)


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """``load_state_dict`` whose failure is one sentence that names the first misfit.

    Raises:
        CheckpointError: an entry is missing, unknown, of another shape or not finite.
    """
    wanted = model.state_dict()
    fix = "use the file that belongs to this model"
    for name, value in state_dict.items():
        if name not in wanted:
            raise CheckpointError(
                f"{what} has an entry {name!r}: wanted only those of {type(model).__name__}; {fix}"
            )
        if not isinstance(value, Tensor) or value.shape != wanted[name].shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(
                f"{what} has {name!r} of {found}: wanted {tuple(wanted[name].shape)}; {fix}"
            )
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{what} has {name!r} with NaN or infinity: wanted finite numbers; {fix}")
    missing = sorted(wanted.keys() - state_dict.keys())
    if missing:
        raise CheckpointError(
            f"{what} has {len(state_dict)} entries: wanted {len(wanted)}, {missing[0]!r} is missing; {fix}"
        )
    model.load_state_dict(state_dict)
