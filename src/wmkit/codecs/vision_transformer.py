"""The image half of an encoder as timm's vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmkit.arguments import check_range
from wmkit.codecs.frames import Shapes, channels, image_side
from wmkit.errors import ConfigError
from wmkit.nn import LayerStyle

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels


class VisionTransformerImageEncoder(nn.Module):
    """Images ``[N, C, H, H]`` to the class token behind the last norm, ``[N, depth]``.

    ViT-tiny as LeWorldModel has it (2026; lucas-maes/le-wm): width 192, 12 layers, 3 heads, patches of 14 x
    14 of 224 x 224 pixels, 5,501,376 numbers.

    Args:
        shapes: ``[C, H, H]`` of each image key; C in what follows is their sum.
        depth: width of a token.
        patch: side of the patches.
        layers: how many.
        heads: attention heads of each.
        side: to which images are resized; as they are if not given.
        norm_eps: of every norm.
        style: not read; a transformer has its own.

    Raises:
        SpecError: images that are not square, or differ in size.
        ConfigError: patches that do not tile an image, or heads that do not divide the width.

    >>> encoder = VisionTransformerImageEncoder({"pixels": (3, 32, 32)}, depth=24, patch=8, layers=2, heads=3)
    >>> encoder(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 24])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shapes: Shapes,
        *,
        depth: int,
        patch: int,
        layers: int = 12,
        heads: int = 3,
        side: int | None = None,
        norm_eps: float = 1e-12,
        style: LayerStyle | None = None,
    ) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        found = image_side(shapes, lambda one: one > 0, "square ones, [channels, side, side]")
        self.side, count = (found if side is None else side), channels(shapes)
        check_range("layers", layers, 1)
        if patch < 1 or self.side % patch:
            raise ConfigError(
                f"patch is {patch}: wanted a divisor of the side of images, {self.side}; change patch or side"
            )
        if heads < 1 or depth % heads:
            raise ConfigError(
                f"heads is {heads}: wanted a divisor of the width {depth}; correct heads or depth"
            )
        known = count % 3 == 0  # as colours
        for name, values in (("mean", _MEAN if known else (0.5,)), ("std", _STD if known else (0.5,))):
            value = torch.tensor(values).repeat(count // len(values)).view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.transformer: Any = VisionTransformer(
            img_size=self.side,
            patch_size=patch,
            in_chans=count,
            num_classes=0,
            global_pool="token",
            embed_dim=depth,
            depth=layers,
            num_heads=heads,
            norm_layer=partial(nn.LayerNorm, eps=norm_eps),
        )
        self.out_dim = depth

    def forward(self, image: Tensor) -> Tensor:
        """``image`` float in [0, 1]."""
        if image.shape[-1] != self.side:
            image = F.interpolate(image, (self.side, self.side), mode="bilinear", antialias=True)
        return self.transformer((image - self.mean) / self.std)
