"""The text-conditioned Swin-UNet of LS-Imagine, built on timm's Swin blocks.

Four encoder stages of shifted-window attention (Liu et al. 2021, arXiv:2103.14030), a mirror
of them as decoder (Cao et al. 2021, arXiv:2105.05537), and a fusion part through which the
prompt rewrites the skip features. All features are channels-last: ``[B, H, W, C]``.

    frame 224x224x3 -> 56x56x96 -> 28x28x192 -> 14x14x384 -> 7x7x768      encoder
                          |skip        |skip        |skip
    map   224x224x1 <- 56x56x96 <- 28x28x192 <- 14x14x384 <- 7x7x768      decoder

In the published size with ``fusion="constant_query"`` it has 52,977,252 parameters and loads
LS-Imagine's released weights (:func:`wmkit.affordance.unet.swin_weights.load_swin_unet`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import Tensor, nn

from wmkit.affordance.unet.fusion import FUSIONS
from wmkit.affordance.unet.model import AffordanceUNet
from wmkit.errors import ConfigError

PATCH = 4


class PatchEmbedding(nn.Module):
    """Non-overlapping 4x4 patches to tokens: ``[B,3,H,W] -> [B,H/4,W/4,C]``."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, PATCH)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """Convolve, then normalise each token."""
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class PatchExpand(nn.Module):
    """The inverse of patch merging: ``[B,H,W,C] -> [B,factor*H,factor*W,out_dim]``."""

    def __init__(self, dim: int, out_dim: int, factor: int = 2):
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(dim, factor * factor * out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Project, unfold each token into ``factor``x``factor`` tokens, normalise."""
        x = rearrange(self.expand(x), "b h w (p q c) -> b (h p) (w q) c", p=self.factor, q=self.factor)
        return self.norm(x)


def _blocks(
    dim: int, size: tuple[int, int], heads: int, window: int, drop_path: Sequence[float]
) -> nn.Sequential:
    """Swin blocks of one resolution; every second one shifts its windows by half."""
    blocks = nn.Sequential()
    for i, rate in enumerate(drop_path):
        block = SwinTransformerBlock(
            dim,
            input_resolution=size,
            num_heads=heads,
            window_size=window,
            shift_size=0 if i % 2 == 0 else window // 2,
            drop_path=rate,
        )
        # timm leaves it off: the same numbers, a fifth less time per map.
        block.attn.fused_attn = True  # type: ignore[misc]
        blocks.append(block)
    return blocks


class EncoderStage(nn.Module):
    """Swin blocks, then patch merging (none in the last stage)."""

    def __init__(self, blocks: nn.Sequential, downsample: nn.Module):
        super().__init__()
        self.blocks = blocks
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """``[B,H,W,C] -> [B,H/2,W/2,2C]``."""
        return self.downsample(self.blocks(x))


class DecoderStage(nn.Module):
    """Swin blocks, then patch expanding (none in the last stage)."""

    def __init__(self, blocks: nn.Sequential, upsample: nn.Module):
        super().__init__()
        self.blocks = blocks
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        """``[B,H,W,C] -> [B,2H,2W,C/2]``."""
        return self.upsample(self.blocks(x))


class SwinUNet(AffordanceUNet):
    """Text-conditioned Swin-UNet (LS-Imagine, arXiv:2410.03618).

    Args:
        fusion: ``"image_query"`` (corrected) or ``"constant_query"`` (the released weights'); see
            :mod:`wmkit.affordance.unet.fusion`.
        embed_dim: channels after patch embedding; doubled by each stage.
        depths: Swin blocks per encoder stage; the decoder mirrors them.
        heads: attention heads per encoder stage.
        window: side of the attention windows, in tokens.
        image_size: (height, width) in pixels of what ``forward`` wants; ``predict`` resizes.
        text_dim: width of the text features.
        drop_path: stochastic depth of the deepest block; grows linearly from zero.
        blur: kernel (height, width) in frame pixels that smooths predictions. (79, 51) is the
            released one.

    Raises:
        ConfigError: an unknown fusion, unequal numbers of stages, or a size that does not divide.

    >>> unet = SwinUNet(embed_dim=16, heads=(1, 2, 4, 8), window=4, image_size=(64, 64), text_dim=8)
    >>> unet(torch.zeros(2, 3, 64, 64), torch.zeros(2, 8)).shape
    torch.Size([2, 1, 64, 64])
    >>> frames = torch.zeros(2, 3, 160, 256, dtype=torch.uint8)
    >>> unet.predict(frames, torch.zeros(1, 8)).shape
    torch.Size([2, 160, 256])
    """

    kind = "swin"

    def __init__(
        self,
        fusion: str = "image_query",
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        image_size: tuple[int, int] = (224, 224),
        text_dim: int = 512,
        drop_path: float = 0.2,
        blur: tuple[int, int] = (79, 51),
    ):
        options = dict(
            fusion=fusion,
            embed_dim=embed_dim,
            depths=list(depths),
            heads=list(heads),
            window=window,
            image_size=list(image_size),
            text_dim=text_dim,
            drop_path=drop_path,
            blur=list(blur),
        )
        super().__init__(image_size=image_size, text_dim=text_dim, blur=blur, options=options)
        stages = len(depths)
        _check(fusion, depths, heads, image_size, embed_dim)
        dims = [embed_dim * 2**k for k in range(stages)]  # 96, 192, 384, 768
        sizes = [(image_size[0] // PATCH // 2**k, image_size[1] // PATCH // 2**k) for k in range(stages)]
        rates = torch.linspace(0, drop_path, sum(depths)).split(list(depths))

        def blocks(k: int) -> nn.Sequential:
            return _blocks(dims[k], sizes[k], heads[k], window, rates[k].tolist())

        self.patch_embed = PatchEmbedding(embed_dim)
        self.layers = nn.ModuleList(
            EncoderStage(blocks(k), PatchMerging(dims[k]) if k < stages - 1 else nn.Identity())
            for k in range(stages)
        )
        self.norm = nn.LayerNorm(dims[-1])
        self.fusion = FUSIONS[fusion](dims, text_dim, heads)
        # Decoder stage i works at the resolution of encoder stage k = stages - 1 - i.
        self.concat_back_dim = nn.ModuleList([nn.Identity()])
        self.layers_up = nn.ModuleList([PatchExpand(dims[-1], dims[-1] // 2)])
        for k in range(stages - 2, -1, -1):
            self.concat_back_dim.append(nn.Linear(2 * dims[k], dims[k]))
            up = PatchExpand(dims[k], dims[k] // 2) if k > 0 else nn.Identity()
            self.layers_up.append(DecoderStage(blocks(k), up))
        self.norm_up = nn.LayerNorm(embed_dim)
        self.up = PatchExpand(embed_dim, embed_dim, factor=PATCH)
        self.output = nn.Conv2d(embed_dim, 1, 1, bias=False)
        self.apply(_initialise)

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """Maps in (0, 1).

        Args:
            images: normalised ``[B,3,*image_size]`` (see :meth:`prepare`).
            text: ``[B, text_dim]``.

        Returns:
            ``[B,1,*image_size]``, after the sigmoid.
        """
        x = self.patch_embed(images)  # [B, H/4, W/4, C]
        skips = []
        for stage in self.layers:
            skips.append(x)
            x = stage(x)
        x = self.norm(x)  # [B, H/32, W/32, 8C]
        fused = self.fusion(skips, text)
        x = self.layers_up[0](x)
        for i in range(1, len(self.layers_up)):
            x = self.concat_back_dim[i](torch.cat([x, fused[-1 - i]], -1))
            x = self.layers_up[i](x)
        x = self.up(self.norm_up(x))  # [B, H, W, C]
        return torch.sigmoid(self.output(x.permute(0, 3, 1, 2)))


def _check(
    fusion: str, depths: Sequence[int], heads: Sequence[int], image_size: tuple[int, int], embed_dim: int
) -> None:
    if fusion not in FUSIONS:
        raise ConfigError(
            f"fusion {fusion!r} is unknown: wanted one of {', '.join(FUSIONS)}; pick one of them"
        )
    if len(depths) != len(heads) or len(depths) < 2:
        raise ConfigError(
            f"SwinUNet got {len(depths)} depths and {len(heads)} heads: wanted two or more stages "
            "with one number each; make the lists equally long"
        )
    multiple = PATCH * 2 ** (len(depths) - 1)
    if image_size[0] % multiple or image_size[1] % multiple:
        raise ConfigError(
            f"image_size is {tuple(image_size)}: wanted multiples of {multiple} for {len(depths)} stages; "
            f"round it, for example to ({-(-image_size[0] // multiple) * multiple}, "
            f"{-(-image_size[1] // multiple) * multiple})"
        )
    for k, count in enumerate(heads):
        if embed_dim * 2**k % count:
            raise ConfigError(
                f"stage {k} has {embed_dim * 2**k} channels and {count} heads: wanted heads that divide the "
                "channels; change heads or embed_dim"
            )


def _initialise(module: nn.Module) -> None:
    """Swin's initialisation: truncated normal weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
