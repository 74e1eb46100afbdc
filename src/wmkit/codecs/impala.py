"""The image half of an encoder made of residual blocks (IMPALA; Espeholt et al. 2018, arXiv:1802.01561)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from wmkit.arguments import check_range
from wmkit.codecs.frames import Shapes, channels, image_side
from wmkit.nn import LayerStyle, patches


class ImpalaImageEncoder(nn.Module):
    """Images ``[N, C, H, H]`` of any side to ``[N, out_dim]``.

    A stage is a convolution, max pooling of stride 2 and residual blocks; a ReLU ends it all. Widths 16, 32
    and 32 in PLDM's wall model (arXiv:2502.14819): 2,592 numbers of 65 x 65 pixels.

    Args:
        shapes: ``[C, H, H]`` of each image key; C in what follows is their sum.
        depth: width of the first stage.
        patch: read blocks of ``patch x patch`` pixels as one position of that many more channels.
        multipliers: stage i has ``depth * multipliers[i]`` channels.
        blocks: residual blocks of each stage.
        style: not read; these convolutions have a bias, no norm and ReLU.

    Raises:
        SpecError: images that are not square, differ in size, or are no multiple of ``patch``.

    >>> import torch
    >>> ImpalaImageEncoder({"pixels": (2, 65, 65)}, depth=16)(torch.zeros(3, 2, 65, 65)).shape
    torch.Size([3, 2592])
    """

    def __init__(
        self,
        shapes: Shapes,
        *,
        depth: int,
        patch: int = 1,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        style: LayerStyle | None = None,
    ) -> None:
        super().__init__()
        check_range("blocks", blocks, 0)
        side = image_side(shapes, lambda one: one % patch == 0, f"[channels, side, side], {patch} | side")
        self.patch, side, width = patch, side // patch, channels(shapes) * patch**2
        self.stages = nn.ModuleList()
        for factor in multipliers:
            before, width, side = width, depth * factor, (side + 1) // 2
            conv = nn.Conv2d(before, width, 3, padding=1)
            self.stages.append(nn.Sequential(conv, *(_Residual(width) for _ in range(blocks))))
        self.out_dim = width * side**2

    def forward(self, image: Tensor) -> Tensor:
        """``image`` float in [0, 1]; channels, rows and columns are flattened in this order."""
        x = patches(image, self.patch)
        for stage in self.stages:
            conv, *blocks = stage.children()
            x = F.max_pool2d(conv(x), 3, 2, padding=1)
            for block in blocks:
                x = block(x)
        return F.relu(x).flatten(1)


class _Residual(nn.Module):
    """``x + conv(relu(conv(relu(x))))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, D, H, W] -> [N, D, H, W]``."""
        return x + self.second(F.relu(self.first(F.relu(x))))
