"""A text-conditioned U-Net small enough to run at every environment step on one CPU core.

Same task and interface as the Swin-UNet, about a hundredth of its size. A frame of 160x256
becomes 40x64 tokens in one strided convolution (no resizing, so that an object of a few
pixels is still seen in full); depthwise-separable residual blocks work at three resolutions;
the prompt scales and shifts every block's features (FiLM, Perez et al. 2018,
arXiv:1709.07871).

    160x256x3 -> 40x64x24 -> 20x32x48 -> 10x16x96
                    |+          |+          |
       40x64x1 <- 40x64x24 <- 20x32x48 <----+
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmkit.affordance.unet.model import AffordanceUNet
from wmkit.errors import ConfigError

PATCH = 4


class FiLMBlock(nn.Module):
    """Depthwise 5x5, text-dependent scale and shift, pointwise MLP, residual.

    The pointwise layers are matrix products over channels-last memory: at these sizes several
    times faster on one core than 1x1 convolutions.
    """

    def __init__(self, dim: int, expansion: int = 2):
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 5, padding=2, groups=dim, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.expand = nn.Linear(dim, expansion * dim, bias=False)
        self.project = nn.Linear(expansion * dim, dim, bias=False)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """``x`` [B, C, H, W] and ``film`` [B, 2C, 1, 1] (scale, then shift) to [B, C, H, W]."""
        scale, shift = film.chunk(2, 1)
        y = torch.addcmul(shift, self.norm(self.depthwise(x)), 1 + scale)
        y = self.project(F.relu_(self.expand(y.permute(0, 2, 3, 1))))  # [B, H, W, C]
        return x + y.permute(0, 3, 1, 2)


class SmallUNet(AffordanceUNet):
    """Compact text-conditioned U-Net for CPU.

    Args:
        widths: channels at 1/4, 1/8, 1/16 ... of the image size.
        depths: blocks on the way down at each of these; one block each on the way up.
        image_size: (height, width) in pixels; multiples of 4 * 2^(levels-1).
        text_dim: width of the text features.
        blur: kernel (height, width) in frame pixels that smooths predictions.

    Raises:
        ConfigError: unequal numbers of levels, or a size that does not divide.

    >>> unet = SmallUNet(text_dim=8)
    >>> unet.predict(torch.zeros(2, 3, 160, 256, dtype=torch.uint8), torch.zeros(8)).shape
    torch.Size([2, 160, 256])
    """

    kind = "small"

    def __init__(
        self,
        *,
        widths: Sequence[int] = (24, 48, 96),
        depths: Sequence[int] = (0, 1, 2),
        image_size: tuple[int, int] = (160, 256),
        text_dim: int = 512,
        blur: tuple[int, int] = (11, 17),
    ):
        options = dict(
            widths=list(widths),
            depths=list(depths),
            image_size=list(image_size),
            text_dim=text_dim,
            blur=list(blur),
        )
        super().__init__(image_size=image_size, text_dim=text_dim, blur=blur, options=options)
        multiple = PATCH * 2 ** (len(widths) - 1)
        if len(widths) != len(depths) or not widths or image_size[0] % multiple or image_size[1] % multiple:
            raise ConfigError(
                f"SmallUNet got widths {tuple(widths)}, depths {tuple(depths)} and image_size "
                f"{tuple(image_size)}: wanted as many depths as widths "
                f"and a size in multiples of {multiple}; change one of them"
            )
        levels = range(len(widths))
        self.depths = tuple(depths)
        self.text_norm = nn.LayerNorm(text_dim)
        self.stem = nn.Conv2d(3, widths[0], PATCH, PATCH)
        self.down = nn.ModuleList(nn.Conv2d(widths[k], widths[k + 1], 2, 2) for k in levels[:-1])
        self.encoder = nn.ModuleList(FiLMBlock(widths[k]) for k in levels for _ in range(depths[k]))
        self.lateral = nn.ModuleList(nn.Linear(widths[k + 1], widths[k]) for k in levels[:-1])
        self.decoder = nn.ModuleList(FiLMBlock(widths[k]) for k in levels[:-1])
        self.output = nn.Linear(widths[0], 1)
        # One matrix computes every block's scale and shift; its rows are in the order of use.
        order = [widths[k] for k in levels for _ in range(depths[k])] + [
            widths[k] for k in reversed(levels[:-1])
        ]
        self.film_sizes = [2 * width for width in order]
        self.film = nn.Linear(text_dim, sum(self.film_sizes))
        nn.init.normal_(self.film.weight, std=0.02)
        nn.init.zeros_(self.film.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """Maps in (0, 1).

        Args:
            images: normalised ``[B,3,*image_size]`` (see :meth:`prepare`).
            text: ``[B, text_dim]``.

        Returns:
            ``[B,1,image_size[0]/4,image_size[1]/4]``, after the sigmoid.
        """
        film = iter(self.film(self.text_norm(text))[:, :, None, None].split(self.film_sizes, 1))
        x = self.stem(images)  # [B, C, H/4, W/4]
        skips = []
        blocks = iter(self.encoder)
        for k, depth in enumerate(self.depths):
            if k > 0:
                x = self.down[k - 1](x)
            for _ in range(depth):
                x = next(blocks)(x, next(film))
            skips.append(x)
        for k in range(len(self.decoder) - 1, -1, -1):
            coarse = F.interpolate(_pointwise(self.lateral[k], x), scale_factor=2.0, mode="nearest")
            x = self.decoder[k](skips[k] + coarse, next(film))
        return torch.sigmoid(_pointwise(self.output, x))


def _pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer over the channels of [B, C, H, W], without leaving channels-last memory."""
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
