"""A transformer of this room by the calling convention of TorchRL's ``TransformerModule``.

TorchRL 0.14.1 has no such module. The convention is that of the later documentation, where
``CausalTransformer`` states it: positions are given, a cache is opaque and belongs to the caller::

    out, None  = model(features, positions, mask)              a window
    out, cache = model(features, positions, kv_cache=cache)    a step

The differences: tokens beyond ``max_seq_len`` slide out of sight where TorchRL's own transformer
refuses them, and a cache is a value, never written to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from wmkit.backbones.transformer import Transformer
from wmkit.nn.attention import Memory


class TorchRLTransformer(nn.Module):
    """A coat around a :class:`~wmkit.backbones.transformer.Transformer`.

    Args:
        model: ``transformer_xl``, ``gpt`` or ``stacked_transformer``, input width D, output width U.

    Attributes:
        num_layers: how many layers.
        num_heads: attention heads of each.
        head_dim: width of a head.
        max_seq_len: the model's window.

    >>> from wmkit import backbones
    >>> model = TorchRLTransformer(backbones.build("gpt", 3, 8))
    >>> x, positions = torch.randn(2, 5, 3), torch.arange(5).expand(2, 5)
    >>> window, _ = model(x, positions)
    >>> step, cache = model(x[:, :1], positions[:, :1], kv_cache=model.new_kv_cache(2))
    >>> torch.allclose(step, window[:, :1], atol=1e-6)
    True
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model
        attention = model.layers[0].attention
        self.num_layers, self.max_seq_len = len(model.layers), model.window
        self.num_heads, self.head_dim = attention.heads, attention.head_dim

    def forward(
        self, features: Tensor, positions: Tensor, mask: Tensor | None = None, kv_cache: Memory | None = None
    ) -> tuple[Tensor, Memory | None]:
        """A window without a cache, or the next steps with one.

        Args:
            features: ``[B, T, D]``.
            positions: ``[B, T]`` integer, steps since the episode began; a window begins at position 0.
            mask: ``[B, T, T]`` bool, not read: positions say where episodes begin.
            kv_cache: of :meth:`new_kv_cache` or of the call before.

        Returns:
            ``[B, T, U]``, and the cache after them, detached (``None`` for a window).
        """
        out, cache = self.model.scan(features, kv_cache, positions == 0)
        return out, None if kv_cache is None else tree_map(Tensor.detach, cache)

    def new_kv_cache(
        self, batch_size: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Memory:
        """An empty cache of ``batch_size`` rows, where and as exact as the weights are unless told where.

        Args:
            batch_size: B.
            device: where to put it.
            dtype: not read.
        """
        cache = self.model.initial(batch_size)
        return cache if device is None else tree_map(lambda leaf: leaf.to(device), cache)

    def reset_kv_cache(self, kv_cache: Memory, mask: Tensor) -> Memory:
        """The cache with the rows of ``mask [B]`` forgotten: no token sees what stands before its age."""
        return kv_cache._replace(age=kv_cache.age.masked_fill(mask, 0))
