"""The layers of MineCLIP (Fan et al. 2022, arXiv:2206.08853): two towers of CLIP and a pooling over time.

    frames  [M, 3, H, W] ──Vision──▶ [M, D]          one vector per frame
            [N, T, D] ──OverTime──▶ [N, D]           one per video, then Adapter
    tokens  [P, L] ──Text──▶ [P, D]

All attention is pre-norm; D is 512 in the published size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXEL_MEAN = (0.3331, 0.3245, 0.3051)  # of values in [0, 1]
PIXEL_STD = (0.2439, 0.2493, 0.2873)


class Attention(nn.Module):
    """Every token looks at all, or at those before it and itself.

    Args:
        width: of a token.
        heads: how many.
        head_dim: width of a head.
        bias: whether the projections have one.
        causal: look at no later token.

    Shapes: ``[B, n, width] -> [B, n, width]``.
    """

    def __init__(
        self, width: int, heads: int, head_dim: int, *, bias: bool = True, causal: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.project = nn.Linear(width, 3 * heads * head_dim, bias=bias)  # queries, keys, values
        self.out = nn.Linear(heads * head_dim, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        query, key, value = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


class QuickFeedForward(nn.Module):
    """Two layers with CLIP's ``x sigmoid(1.702 x)`` between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, n, width] -> [B, n, width]``."""
        x = self.first(x)
        return self.second(x * torch.sigmoid(1.702 * x))


class GatedFeedForward(nn.Module):
    """Two layers; the first one's second half gates its first by SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, n, width] -> [B, n, width]``."""
        value, gate = self.first(x).chunk(2, -1)
        return self.second(value * F.silu(gate))


class Block(nn.Module):
    """Attention, then a feed-forward network, each on normalised tokens and added."""

    def __init__(self, width: int, attention: Attention, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm_attention, self.attention = nn.LayerNorm(width), attention
        self.norm_feed_forward, self.feed_forward = nn.LayerNorm(width), feed_forward

    def forward(self, x: Tensor) -> Tensor:
        """``[B, n, width] -> [B, n, width]``."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.feed_forward(self.norm_feed_forward(x))


def _clip_blocks(width: int, layers: int, heads: int, causal: bool) -> nn.Sequential:
    blocks = (
        Block(width, Attention(width, heads, width // heads, causal=causal), QuickFeedForward(width))
        for _ in range(layers)
    )
    return nn.Sequential(*blocks)


class Vision(nn.Module):
    """A vision transformer over patches; the class token's projection stands for the frame.

    Args:
        resolution: ``(h, w)`` of frames in pixels.
        patch: side of a patch in pixels.
        width: of a token.
        layers: blocks.
        heads: of each.
        dim: width D of the result.

    Shapes: ``[M, 3, h, w]`` in 0..255 to ``[M, D]``.
    """

    pixel_scale: Tensor  # [3, 1, 1]
    pixel_shift: Tensor

    def __init__(
        self, resolution: tuple[int, int], patch: int, width: int, layers: int, heads: int, dim: int
    ) -> None:
        super().__init__()
        tokens = (resolution[0] // patch) * (resolution[1] // patch)
        self.patches = nn.Conv2d(3, width, patch, patch, bias=False)
        self.token = nn.Parameter(0.02 * torch.randn(width))
        self.position = nn.Parameter(0.02 * torch.randn(1 + tokens, width))
        self.norm_in = nn.LayerNorm(width)
        self.blocks = _clip_blocks(width, layers, heads, causal=False)
        self.norm_out = nn.LayerNorm(width)
        self.projection = nn.Parameter(width**-0.5 * torch.randn(width, dim))

    def forward(self, frames: Tensor) -> Tensor:
        """One vector per frame, not normalised; it computes in the precision of its weights."""
        dtype, device = self.projection.dtype, self.projection.device
        mean, std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD))
        pixels = torch.addcmul(-mean / std, frames.to(device, torch.float32), 1 / (255 * std))
        x = self.patches(pixels.to(dtype)).flatten(2).transpose(1, 2)  # [M, n, width]
        x = torch.cat((self.token.expand(len(x), 1, -1), x), 1) + self.position
        x = self.blocks(self.norm_in(x))[:, 0]
        return self.norm_out(x) @ self.projection


class Text(nn.Module):
    """A causal transformer over tokens; the end token's projection stands for the sentence.

    Args:
        vocabulary: how many tokens there are.
        context: tokens of a sentence, padding included.
        width: of a token.
        layers: blocks.
        heads: of each.
        dim: width D of the result.

    Shapes: ``[P, context] int64 -> [P, D]``.
    """

    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int, dim: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.01 * torch.randn(context, width))
        self.blocks = _clip_blocks(width, layers, heads, causal=True)
        self.norm_out = nn.LayerNorm(width)
        self.projection = nn.Parameter(width**-0.5 * torch.randn(width, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """One vector per sentence, not normalised. The end token has the largest number."""
        x = self.blocks(self.token(tokens) + self.position)
        end = tokens.argmax(-1)
        return self.norm_out(x[torch.arange(len(x), device=x.device), end]) @ self.projection


class OverTime(nn.Module):
    """A transformer over the frames of a video, and their mean.

    Args:
        dim: width D of a frame's vector.
        frames: the most that a video may have.
        layers: blocks.
        heads: of each, 64 wide.

    Shapes: ``[N, T, D] -> [N, D]``.
    """

    def __init__(self, dim: int, frames: int, layers: int, heads: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(frames, dim))
        self.blocks = nn.Sequential(
            *(Block(dim, Attention(dim, heads, 64, bias=False), GatedFeedForward(dim)) for _ in range(layers))
        )
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, features: Tensor) -> Tensor:
        """One vector per video."""
        position = self.position[: features.shape[1]] * features.shape[-1] ** -0.5
        return self.norm_out(self.blocks(features + position)).mean(1)


class Adapter(nn.Module):
    """``s x + (1 - s) MLP(x)``, s learned; it begins near the identity.

    Shapes: ``[N, D] -> [N, D]``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.keep = nn.Parameter(torch.tensor(4.0))  # s = 0.982

    def forward(self, x: Tensor) -> Tensor:
        """Adapt."""
        keep = torch.sigmoid(self.keep)
        return keep * x + (1 - keep) * self.second(F.relu(self.first(x)))
