"""Image halves of residual blocks and attention: the discrete autoencoder of IRIS.

The architecture is VQGAN's (Esser et al. 2021, arXiv:2012.09841) with one width throughout, as IRIS uses it
(Micheli et al. 2023, arXiv:2209.00588, appendix A). From 64 pixels, five levels::

    image  conv   64 ▼ 32 ▼ 16 ▼ 8 ▼ 4   middle   norm, swish, conv   grid of tokens
                  two residual blocks each      res, attention, res

    tokens conv   middle   4 ▲ 8 ▲ 16 ▲ 32 ▲ 64   norm, swish, conv   image
                           three residual blocks each

At sides of ``attention`` each residual block has an attention block behind it. A grid's tokens stand side by
side, row by row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from wmkit import fast
from wmkit.codecs.frames import Shapes, channels, check_patch, image_side
from wmkit.errors import ConfigError
from wmkit.nn import STYLE_2023, LayerStyle, patches

SIDES = range(16, 257)


class ResidualBlock(nn.Module):
    """``x + conv(swish(norm(conv(swish(norm(x))))))``, convolutions of kernel 3.

    Args:
        width: channels C.

    >>> import torch
    >>> ResidualBlock(8)(torch.zeros(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = group_norm(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class AttentionBlock(nn.Module):
    """Attention over all positions of a grid, of one head as wide as the grid, added to what went in.

    Args:
        width: channels C.

    >>> import torch
    >>> AttentionBlock(8)(torch.zeros(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.project = nn.Conv2d(width, 3 * width, 1)  # queries, keys, values
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        rows = self.project(self.norm(x)).flatten(2).transpose(1, 2)  # [N, H*W, 3C]
        seen = F.scaled_dot_product_attention(*rows.unsqueeze(1).chunk(3, -1)).squeeze(1)
        return x + self.out(seen.transpose(1, 2).unflatten(2, x.shape[2:]))


class _Level(nn.Module):
    """Blocks at one resolution, and the convolution that leaves it."""

    def __init__(self, width: int, blocks: int, attends: bool, leave: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.attention = nn.ModuleList(AttentionBlock(width) for _ in range(blocks if attends else 0))
        self.leave = leave

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attention):
                x = self.attention[i](x)
        return self.leave(x)


class HalvingConv3(nn.Conv2d):
    """Convolution of kernel 3, stride 2, one position of zeros right and below alone.

    >>> import torch
    >>> HalvingConv3(8)(torch.zeros(2, 8, 8, 8)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H/2, W/2]``."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class DoublingConv3(nn.Conv2d):
    """Each position four times, then a convolution of kernel 3.

    >>> import torch
    >>> DoublingConv3(8)(torch.zeros(2, 8, 4, 4)).shape
    torch.Size([2, 8, 8, 8])
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, 2H, 2W]``."""
        return super().forward(F.interpolate(x, scale_factor=2.0))


class _Stages:
    """Sides of the levels, finest first, and what an image is to the first of them."""

    def __init__(self, shapes: Shapes, patch: int, levels: int) -> None:
        check_patch(patch)
        left = levels - (patch.bit_length() - 1)
        if left < 1:
            raise ConfigError(
                f"patch is {patch} in a codec of {levels} levels: wanted a patch of at most "
                f"{2 ** (levels - 1)}; correct patch or levels"
            )
        step = 2 ** (levels - 1)
        wanted = f"[channels, H, H] with H a multiple of {step} from {SIDES[0]} to {SIDES[-1]}"
        side = image_side(shapes, lambda side: side in SIDES and side % step == 0, wanted)
        self.sides = [side // patch // 2**i for i in range(left)]
        self.channels = channels(shapes) * patch**2


class ResidualImageEncoder(nn.Module):
    """Images ``[N, C, H, H]`` to tokens side by side, ``[N, h * h * Z]``, h = H / 2^(levels - 1) (IRIS).

    Args:
        shapes: ``[C, H, H]`` of each image key.
        depth: channels inside, 64 as published.
        width: numbers Z of a token, 512 as published.
        levels: resolutions, each half the one before; 5 as published.
        blocks: residual blocks of each, 2 as published.
        attention: sides of grids that are attended over.
        patch: read blocks of ``patch x patch`` pixels as one position of that many more channels, which saves
            the finest levels; 1 as published.
        style: not read: norms, activation and initialisation are these, whatever the codec's vectors have.

    Raises:
        SpecError: an image that is not square or of another size.
        ConfigError: a ``patch`` that leaves no level.

    Attributes:
        grid: side h.

    >>> import torch
    >>> encoder = ResidualImageEncoder({"pixels": (3, 64, 64)}, depth=8, width=6, blocks=1)
    >>> encoder(torch.zeros(2, 3, 64, 64)).shape  # 4 x 4 tokens of 6 numbers
    torch.Size([2, 96])
    """

    def __init__(
        self,
        shapes: Shapes,
        *,
        depth: int,
        width: int = 512,
        levels: int = 5,
        blocks: int = 2,
        attention: Sequence[int] = (8, 16),
        patch: int = 1,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        stages = _Stages(shapes, patch, levels)
        self.patch, self.grid = patch, stages.sides[-1]
        self.numbers = depth * stages.sides[0] ** 2  # of the finest grid
        self.out_dim = self.grid**2 * width
        self.first = nn.Conv2d(stages.channels, depth, 3, padding=1)
        self.levels = nn.ModuleList(
            _Level(
                depth, blocks, side in attention, HalvingConv3(depth) if side > self.grid else nn.Identity()
            )
            for side in stages.sides
        )
        self.middle = _middle(depth)
        self.norm, self.last = group_norm(depth), nn.Conv2d(depth, width, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """``image`` float in [0, 1]."""
        return fast.in_groups(self._encode, image, self.numbers)

    def _encode(self, image: Tensor) -> Tensor:
        x = self.first(patches(2 * image - 1, self.patch))
        for level in self.levels:
            x = level(x)
        x = self.last(F.silu(self.norm(self.middle(x))))
        return x.permute(0, 2, 3, 1).flatten(1)


class ResidualImageDecoder(nn.Module):
    """Tokens side by side ``[N, h * h * Z]`` to images ``[N, C, H, H]`` in [0, 1] units, not clamped (IRIS).

    Args:
        in_dim: ``h * h * Z``.
        shapes: ``[C, H, H]`` of each image key, as in the encoder.
        depth: as in the encoder.
        levels: as there.
        blocks: residual blocks of each level, 3 as published.
        attention: as in the encoder.
        patch: as there.
        style: as there.

    Raises:
        SpecError: an image that is not square or of another size.
        ConfigError: a ``patch`` that leaves no level, or a width that is no grid of tokens.

    >>> import torch
    >>> decoder = ResidualImageDecoder(96, {"pixels": (3, 64, 64)}, depth=8, blocks=1)
    >>> decoder(torch.zeros(2, 96)).shape
    torch.Size([2, 3, 64, 64])
    """

    def __init__(
        self,
        in_dim: int,
        shapes: Shapes,
        *,
        depth: int,
        levels: int = 5,
        blocks: int = 3,
        attention: Sequence[int] = (8, 16),
        patch: int = 1,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        stages = _Stages(shapes, patch, levels)
        self.patch, self.grid = patch, stages.sides[-1]
        self.numbers = depth * stages.sides[0] ** 2  # of the finest grid
        if in_dim % self.grid**2:
            raise ConfigError(
                f"a decoder reads {in_dim} numbers: wanted tokens of one width for each of {self.grid} x "
                f"{self.grid} positions; read the state alone (in_keys: [state]), with as many groups"
            )
        width = in_dim // self.grid**2
        self.enter = nn.Conv2d(width, width, 1)  # after the quantisation
        self.first = nn.Conv2d(width, depth, 3, padding=1)
        self.middle = _middle(depth)
        self.levels = nn.ModuleList(
            _Level(depth, blocks, side in attention, DoublingConv3(depth) if i else nn.Identity())
            for i, side in enumerate(stages.sides)
        )
        self.norm, self.last = group_norm(depth), nn.Conv2d(depth, stages.channels, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[N, h * h * Z] -> [N, C, H, H]``."""
        return fast.in_groups(self._decode, tokens, self.numbers)

    def _decode(self, tokens: Tensor) -> Tensor:
        grid = tokens.unflatten(1, (self.grid, self.grid, -1)).permute(0, 3, 1, 2)
        x = self.middle(self.first(self.enter(grid)))
        for level in reversed(self.levels):
            x = level(x)
        x = self.last(F.silu(self.norm(x)))
        image = F.pixel_shuffle(x, self.patch) if self.patch > 1 else x
        return (image + 1) * 0.5


def group_norm(width: int) -> nn.GroupNorm:
    """At most 32 groups, which divide ``width``.

    >>> [group_norm(width).num_groups for width in (8, 48, 64)]
    [8, 16, 32]
    """
    return nn.GroupNorm(math.gcd(32, width), width, eps=1e-6)


def _middle(width: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(width), AttentionBlock(width), ResidualBlock(width))
