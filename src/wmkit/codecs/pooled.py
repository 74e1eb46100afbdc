"""Image halves of a codec that pool: DreamerV3's since 2024 (danijar/dreamerv3 e3f0224).

Down: convolutions of kernel 5, each followed by max-pooling, a norm over channels and an
activation; images enter as ``x - 0.5``. Back: the belief reaches the coarsest grid through a layer
in blocks, the state through two dense ones; then each stage repeats every pixel, convolves, norms and
activates; a sigmoid ends it. Any square image whose coarsest grid has a side from 3 to 16 will do.

============  ==================  ====================================
option        e3f0224 (default)   the code of April 2024, ``251910d``
============  ==================  ====================================
multipliers   2, 3, 4, 4          1, 2, 3, 4, 4
outer         false               true
strided       false               true
============  ==================  ====================================
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from wmkit import fast
from wmkit.codecs.frames import Shapes, channels, check_patch, image_side
from wmkit.errors import ConfigError
from wmkit.nn import (
    STYLE_2024,
    BlockLinear,
    ConvStage,
    DenseNormAct,
    Down,
    Fill,
    LayerStyle,
    Linear,
    UpsamplingConv,
    UpsamplingStage,
    channel_norm,
    init_hidden,
    init_output,
    patches,
)

MULTIPLIERS = (2, 3, 4, 4)
COARSEST = range(3, 17)  # sides that the coarsest grid may have


class PooledStages:
    """Which stages lie between an image and its coarsest grid.

    Args:
        shapes: ``[C, H, W]`` of each image key.
        depth: width d; stage i has ``d * multipliers[i]`` channels.
        multipliers: one per stage, finest first.
        outer: the first stage keeps the resolution; all others halve it.
        patch: side of the blocks of pixels that are one position. The finest stages, which would
            end at a finer grid than that, are left out, the coarser ones stay as they are.

    Attributes:
        widths: of the stages that are left, finest first.
        outer: whether the first of them keeps the resolution.
        grid: side of the coarsest grid.
        channels: of one position: those of all images together, times ``patch²``.

    Raises:
        SpecError: an image is not square, or of a size that does not fit.
        ConfigError: ``patch`` is wrong, or leaves no stage.

    >>> stages = PooledStages({"pixels": (3, 96, 96)}, 16)
    >>> stages.widths, stages.grid
    ([32, 48, 64, 64], 6)
    >>> stages = PooledStages({"pixels": (3, 64, 64)}, 16, patch=4)
    >>> stages.widths, stages.channels
    ([64, 64], 48)
    """

    def __init__(
        self,
        shapes: Shapes,
        depth: int,
        multipliers: Sequence[int] = MULTIPLIERS,
        outer: bool = False,
        patch: int = 1,
    ) -> None:
        check_patch(patch)
        halvings = len(multipliers) - outer
        skipped = patch.bit_length() - 1
        if halvings <= skipped:
            raise ConfigError(
                f"patch is {patch} in a codec that halves images {halvings} times: wanted a "
                f"patch below {2**halvings}; correct patch or multipliers"
            )
        total = 2**halvings
        sides = [total * side for side in COARSEST]
        wanted = f"[channels, H, H] with H a multiple of {total} from {sides[0]} to {sides[-1]}"
        side = image_side(shapes, sides.__contains__, wanted)
        self.outer = outer and not skipped
        left = halvings - skipped + self.outer
        self.widths = [depth * multiplier for multiplier in multipliers[-left:]]
        self.grid = side // total
        self.channels = channels(shapes) * patch**2


class PooledImageEncoder(nn.Module):
    """Images ``[N, C, H, H]`` to ``[N, h * h * 4 depth]``, h = H/16 (DreamerV3, danijar/dreamerv3 e3f0224).

    Args:
        shapes: ``[C, H, H]`` of each image key; C in what follows is their sum.
        depth: see :class:`PooledStages`.
        patch: see there; 1 as published.
        multipliers: see there.
        outer: see there.
        strided: halve by the stride of the convolution instead of pooling.
        style: norm, activation, bias and initialisation.

    Raises:
        SpecError: see :class:`PooledStages`.
        ConfigError: see there.

    >>> PooledImageEncoder({"pixels": (3, 96, 96)}, depth=4)(torch.zeros(2, 3, 96, 96)).shape
    torch.Size([2, 576])
    """

    def __init__(
        self,
        shapes: Shapes,
        *,
        depth: int,
        patch: int = 1,
        multipliers: Sequence[int] = MULTIPLIERS,
        outer: bool = False,
        strided: bool = False,
        style: LayerStyle = STYLE_2024,
    ) -> None:
        super().__init__()
        stages = PooledStages(shapes, depth, multipliers, outer, patch)
        self.patch = patch
        self.stages = nn.Sequential()
        for i, (before, after) in enumerate(pairwise([stages.channels, *stages.widths])):
            down: Down = "none" if stages.outer and i == 0 else "stride" if strided else "pool"
            self.stages.append(ConvStage(before, after, down=down, style=style))
        self.out_dim = stages.widths[-1] * stages.grid**2

    def forward(self, image: Tensor) -> Tensor:
        """``image`` float in [0, 1]; rows, columns and channels are flattened in this order."""
        grid = self.stages(patches(image, self.patch) - 0.5)  # [N, 4d, h, h]
        return grid.permute(0, 2, 3, 1).flatten(1)


class MaxPooledImageEncoder(nn.Module):
    """Images ``[N, C, H, H]`` to ``[N, 2 depth * h * h]``, h = H/16: what IRIS's actor sees them with
    (arXiv:2209.00588, appendix A).

    Four convolutions of kernel 3, each followed by max-pooling and a ReLU; no norm. What lies outside of
    [0, 1] is cut off.

    Args:
        shapes: ``[C, H, H]`` of each image key; C in what follows is their sum.
        depth: channels of the first two stages, 32 as published; the others have twice as many.
        style: not read: activation and initialisation are PyTorch's.

    Raises:
        SpecError: an image is not square, or its side no multiple of 16.

    >>> MaxPooledImageEncoder({"pixels": (3, 64, 64)}, depth=4)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 128])
    """

    def __init__(self, shapes: Shapes, *, depth: int, style: LayerStyle = STYLE_2024) -> None:
        super().__init__()
        wanted = "[channels, H, H] with H a multiple of 16"
        side = image_side(shapes, lambda side: side >= 16 and side % 16 == 0, wanted)
        widths = [channels(shapes), depth, depth, 2 * depth, 2 * depth]
        self.layers = nn.Sequential()
        for before, after in pairwise(widths):
            self.layers.extend([nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()])
        self.numbers, self.out_dim = depth * side**2, widths[-1] * (side // 16) ** 2

    def forward(self, image: Tensor) -> Tensor:
        """``image`` float; channels, rows and columns are flattened in this order."""
        return fast.in_groups(self._encode, image, self.numbers)

    def _encode(self, image: Tensor) -> Tensor:
        return self.layers(patches(2 * image.clamp(0, 1) - 1, 1)).flatten(1)


class BlockGrid(nn.Module):
    """State and belief to the coarsest grid of an image, ``act(norm(block(belief) + dense(state)))``.

    Args:
        state_dim: width S of the state.
        belief_dim: width U of the belief.
        grid: side h.
        width: channels c.
        units: half the width of the layer in between.
        blocks: into which the layer over the belief is cut; each makes ``c / blocks`` channels.
        style: norm, activation, bias and initialisation.

    >>> BlockGrid(8, 16, grid=4, width=8, units=4, blocks=2)(torch.zeros(3, 8), torch.zeros(3, 16)).shape
    torch.Size([3, 8, 4, 4])
    """

    def __init__(
        self,
        state_dim: int,
        belief_dim: int,
        *,
        grid: int,
        width: int,
        units: int,
        blocks: int,
        style: LayerStyle = STYLE_2024,
    ) -> None:
        super().__init__()
        if width % blocks:
            raise ConfigError(
                f"coarsest grid of a decoder has {width} channels, which {blocks} blocks cannot share: "
                "wanted a divisor; change blocks or depth"
            )
        self.grid, self.blocks, self.style = grid, blocks, style
        self.belief = BlockLinear(belief_dim, grid * grid * width, blocks)
        self.state_in = DenseNormAct(state_dim, 2 * units, style)
        self.state_out: nn.Linear = init_hidden(Linear(2 * units, grid * grid * width), style.init)
        self.norm = channel_norm(width, style)

    def forward(self, state: Tensor, belief: Tensor) -> Tensor:
        """``[N, S], [N, U] -> [N, c, h, h]``."""
        shape = (self.blocks, self.grid, self.grid, -1)
        by_block = self.belief(belief).unflatten(-1, shape)  # [N, g, h, h, c/g]
        by_block = by_block.permute(0, 2, 3, 1, 4).flatten(-2)  # [N, h, h, c]
        dense = self.state_out(self.state_in(state)).view(by_block.shape)  # [N, h, h, c]
        return self.style.activate(self.norm((by_block + dense).permute(0, 3, 1, 2)))


class PooledImageDecoder(nn.Module):
    """Features ``[N, F]`` to images ``[N, C, H, H]`` in [0, 1] (DreamerV3, danijar/dreamerv3 e3f0224).

    Args:
        in_dim: feature width F.
        shapes: ``[C, H, H]`` of each image key, as in the encoder.
        deter: width of the belief, with which features end; the state comes before it.
        units: see :class:`BlockGrid`.
        blocks: see :class:`BlockGrid`.
        depth: as in the encoder.
        patch: side of the blocks of pixels written as one position, as in the encoder.
        multipliers: as in the encoder.
        outer: as in the encoder.
        strided: upsample with zeros instead of repeating, i.e. transposed convolutions of stride 2.
        style: norm, activation, bias and initialisation.

    Raises:
        SpecError: see :class:`PooledStages`.
        ConfigError: see there; ``deter`` leaves no state; ``blocks`` does not divide a width.

    >>> decoder = PooledImageDecoder(24, {"pixels": (3, 64, 64)}, deter=16, units=8, depth=4)
    >>> decoder(torch.zeros(2, 24)).shape
    torch.Size([2, 3, 64, 64])
    """

    def __init__(
        self,
        in_dim: int,
        shapes: Shapes,
        *,
        deter: int,
        units: int,
        blocks: int = 8,
        depth: int,
        patch: int = 1,
        multipliers: Sequence[int] = MULTIPLIERS,
        outer: bool = False,
        strided: bool = False,
        style: LayerStyle = STYLE_2024,
    ) -> None:
        super().__init__()
        if not 0 < deter < in_dim:
            raise ConfigError(
                f"deter is {deter} with features of width {in_dim}: wanted the width of the belief, less "
                "than theirs; set deter to that of the dynamics"
            )
        self.split = (in_dim - deter, deter)
        stages = PooledStages(shapes, depth, multipliers, outer, patch)
        widths = stages.widths[::-1]
        self.grid = BlockGrid(
            *self.split, grid=stages.grid, width=widths[0], units=units, blocks=blocks, style=style
        )
        fill: Fill = "zeros" if strided else "nearest"
        self.stages = nn.Sequential(
            *(UpsamplingStage(before, after, fill=fill, style=style) for before, after in pairwise(widths))
        )
        out: nn.Conv2d
        if stages.outer:
            out = nn.Conv2d(widths[-1], stages.channels, 5, padding=2)
        else:
            out = UpsamplingConv(widths[-1], stages.channels, fill=fill, patch=patch)
        self.out = init_output(out, init=style.init)

    def forward(self, features: Tensor) -> Tensor:
        """``[N, F] -> [N, C, H, H]``."""
        x = self.grid(*features.split(self.split, -1))  # [N, 4d, h, h]
        return torch.sigmoid(self.out(self.stages(x)))
