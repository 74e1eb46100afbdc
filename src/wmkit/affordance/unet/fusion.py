"""Fusion of the prompt in the Swin-UNet: parts that rewrite the skip features.

Both take the encoder's skip features (each ``[B, H, W, C]``, finest first) and the text
feature ``[B, D]`` and return features of the same shapes. The decoder consumes every skip
but the last, which is the input of the bottleneck stage.

* :class:`ConstantQueryFusion` is LS-Imagine's released "text-image attention". The text,
  repeated over all positions, is the query, so the answer is the same vector everywhere: the
  14x14 skip loses its spatial information, and two of four modules are never called. It is
  kept because published weights were trained with it.
* :class:`ImageQueryFusion` is the corrected form: image tokens ask, text answers, the answer
  is added to the skip, at every skip the decoder consumes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class TextQueryAttention(nn.Module):
    """Attention of one text query over image tokens; every head is as wide as the feature.

    No residual. Since there is one query, the key and value projections are applied to the
    query and to the pooled tokens instead of to every token: the same numbers, 8 N C^2 fewer
    multiplications. Under training, dropout is drawn once per image, not once per position.
    """

    def __init__(self, dim: int, text_dim: int, heads: int = 8, dropout: float = 0.1):
        super().__init__()
        self.heads = heads
        self.text_projection = nn.Linear(text_dim, dim)
        self.query = nn.Linear(dim, heads * dim, bias=False)
        self.key = nn.Linear(dim, heads * dim, bias=False)
        self.value = nn.Linear(dim, heads * dim, bias=False)
        self.out = nn.Linear(heads * dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        """``tokens`` [B, H, W, C] and ``text`` [B, D] to one vector per image, seen as [B, H, W, C]."""
        flat = tokens.flatten(1, 2)  # [B, N, C]
        query = rearrange(self.query(self.text_projection(text)), "b (h o) -> b h o", h=self.heads)
        key = rearrange(self.key.weight, "(h o) c -> h o c", h=self.heads)
        value = rearrange(self.value.weight, "(h o) c -> h o c", h=self.heads)
        asked = torch.einsum("bho,hoc->bhc", query, key)  # the query in token space
        scores = asked @ flat.mT / tokens.shape[-1] ** 0.5  # [B, heads, N]
        pooled = self.dropout(scores.softmax(-1)) @ flat  # [B, heads, C]
        answer = torch.einsum("bhc,hoc->bho", pooled, value).flatten(1)  # [B, heads * C]
        answer = self.norm(self.dropout(self.out(answer)))  # [B, C]
        return answer[:, None, None].expand_as(tokens)


class ConstantQueryFusion(nn.Module):
    """The released fusion: the text's answer replaces the last skip that the decoder reads.

    Holds a module for every encoder stage, as the published checkpoint does; all but one are
    never called (20.9 M of the published 53.0 M parameters).
    """

    def __init__(self, dims: Sequence[int], text_dim: int, stage_heads: Sequence[int]):
        super().__init__()
        self.stages = nn.ModuleList(TextQueryAttention(dim, text_dim) for dim in dims)

    def forward(self, skips: list[Tensor], text: Tensor) -> list[Tensor]:
        """Same shapes; only ``skips[-2]`` changes."""
        effective = len(skips) - 2
        return [
            self.stages[k](skip, text) if k == effective else skip  # [B, H_k, W_k, C_k]
            for k, skip in enumerate(skips)
        ]


class ImageQueryAttention(nn.Module):
    """Image tokens ask, text answers, the answer is added.

    One text vector would make one key, and a softmax over one key is constant again; so the
    vector is unfolded into ``words`` learned tokens between which each position chooses.
    """

    def __init__(self, dim: int, text_dim: int, heads: int, words: int = 8):
        super().__init__()
        self.heads, self.words = heads, words
        self.image_norm = nn.LayerNorm(dim)
        self.text_norm = nn.LayerNorm(text_dim)
        self.unfold = nn.Linear(text_dim, words * dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        """``tokens`` [B, H, W, C] and ``text`` [B, D] to [B, H, W, C]."""
        height, width = tokens.shape[1:3]
        words = rearrange(self.unfold(self.text_norm(text)), "b (s c) -> b s c", s=self.words)
        query = rearrange(self.query(self.image_norm(tokens)), "b y x (h d) -> b h (y x) d", h=self.heads)
        key, value = rearrange(self.key_value(words), "b s (two h d) -> two b h s d", two=2, h=self.heads)
        answer = F.scaled_dot_product_attention(query, key, value)  # [B, heads, N, d]
        answer = rearrange(answer, "b h (y x) d -> b y x (h d)", y=height, x=width)
        return tokens + self.out(answer)


class ImageQueryFusion(nn.Module):
    """The corrected fusion, at every skip that the decoder reads; no parameter is idle."""

    def __init__(self, dims: Sequence[int], text_dim: int, stage_heads: Sequence[int]):
        super().__init__()
        self.stages = nn.ModuleList(
            ImageQueryAttention(dim, text_dim, heads)
            for dim, heads in zip(dims[:-1], stage_heads[:-1], strict=True)
        )

    def forward(self, skips: list[Tensor], text: Tensor) -> list[Tensor]:
        """Same shapes; every skip but the last changes."""
        fused = [stage(skip, text) for stage, skip in zip(self.stages, skips[:-1], strict=True)]
        return [*fused, skips[-1]]


FUSIONS = {"constant_query": ConstantQueryFusion, "image_query": ImageQueryFusion}
