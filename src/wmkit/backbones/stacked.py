"""The transformer of TransDreamer (Chen et al. 2022, arXiv:2202.09481, section 3): all its layers are heard.

The belief is what came out of every layer, side by side, the first layer first::

    x = x + P[age]          then per layer      x = x + attention(LN x)      x = x + W_2 relu(W_1 LN x)
    u = [x_1, ..., x_L]                         one LN for queries, keys and values; none at last

P holds sinusoids of the position, sines in front of cosines. Positions count the tokens since the last
reset, beyond ``window`` too. ``gated`` puts gates in place of sums, as in GTrXL (arXiv:1910.06764)::

    r = σ(W_r y + U_r x)   z = σ(W_z y + U_z x + b - 0.1)   h = tanh(W_h y + r U_h x)   x = (1 - z) x + z h

As published: 6 layers of width 600, 8 heads of width 64, ``hidden`` 1024, dropout 0.1 on attention, both
outputs and the positions (one mask for all rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wmkit.backbones.base import IN_KEYS, OUT_KEYS, Keys, stack
from wmkit.backbones.gpt import PreNormLayer
from wmkit.backbones.transformer import Transformer
from wmkit.errors import ConfigError
from wmkit.nn import Dropout, Linear
from wmkit.nn.attention import ALL, FeedForward, Remember, SelfAttention, sinusoids

_THREE = ("project.weight", "new.weight", "old.weight")


class StackedTransformer(Transformer):
    """Pre-norm transformer over sinusoidal positions whose output is that of all its layers.

    Args:
        in_dim: input width D; projected linearly where it is not the width of a token.
        out_dim: output width U, ``layers`` times the even width of a token.
        layers: how many.
        heads: attention heads of each.
        head_dim: width d of a head; ``width / heads`` if not given.
        hidden: width of the feed-forward layers; twice the width if not given.
        window: tokens that a token sees in each layer, itself included.
        gated: gates for sums.
        dropout: see above.
        in_keys: see :class:`~wmkit.backbones.base.SequenceModel`.
        out_keys: see :class:`~wmkit.backbones.base.SequenceModel`.

    Raises:
        ConfigError: another ``out_dim``; see :class:`~wmkit.nn.attention.SelfAttention`.

    >>> model = StackedTransformer(3, 24, layers=3, heads=2)
    >>> u, carry = model.scan(torch.zeros(2, 5, 3))
    >>> u.shape, carry.keys[0].shape  # three layers of width 8
    (torch.Size([2, 5, 24]), torch.Size([2, 2, 5, 4]))
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        layers: int = 2,
        heads: int = 4,
        head_dim: int | None = None,
        hidden: int | None = None,
        window: int = 64,
        gated: bool = False,
        dropout: float = 0.0,
        in_keys: Keys = IN_KEYS,
        out_keys: Keys = OUT_KEYS,
    ) -> None:
        if layers > 0 and out_dim % (2 * layers):
            raise ConfigError(
                f"a stacked transformer of {layers} layers has outputs of width {out_dim}: wanted a multiple "
                f"of {2 * layers}, an even width for each layer; change layers or the width"
            )
        width = out_dim // max(layers, 1)
        super().__init__(in_dim, width, width=width, window=window, in_keys=in_keys, out_keys=out_keys)
        self.out_dim = out_dim
        hidden = 2 * width if hidden is None else hidden

        def make_layer() -> nn.Module:
            attention = SelfAttention(width, heads, head_dim, dropout=dropout)
            layer = GatedLayer if gated else PreNormLayer
            return layer(attention, FeedForward(width, hidden, "relu"), dropout, 1e-5)

        self.layers = stack(layers, make_layer)
        self.dropout = Dropout(dropout)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.ndim == 2:  # three layers in one start as three
                for part in weight.data.chunk(3 if name.endswith(_THREE) else 1):
                    nn.init.xavier_uniform_(part)

    def embed(self, x: Tensor, ages: Tensor) -> Tensor:
        """Add positions."""
        precise = ages.flatten().to(torch.promote_types(x.dtype, torch.float32))
        halves = sinusoids(precise, self.width).unflatten(-1, (-1, 2)).transpose(-1, -2)  # [B * n, 2, D/2]
        mask = self.dropout(torch.ones_like(x[0]))  # [n, D]
        return x + halves.reshape(x.shape).to(x.dtype) * mask

    def finish(self, visited: Sequence[Tensor], read: slice) -> Tensor:
        """All layers side by side."""
        return torch.cat([*(x[:, read] for x in visited[:-1]), visited[-1]], -1)


class Gate(nn.Module):
    """A GRU whose state is ``x`` and whose input is ``y``, both of width D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.new = Linear(width, 3 * width, bias=False)  # W of r, z and h
        self.old = Linear(width, 3 * width, bias=False)  # U of r, z and h
        self.bias = nn.Parameter(torch.zeros(width))  # of z

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``[*B, D]`` each -> ``[*B, D]``."""
        (r, z, h), (r_x, z_x, h_x) = self.new(y).chunk(3, -1), self.old(x).chunk(3, -1)
        new = torch.tanh(h + torch.sigmoid(r + r_x) * h_x)
        return torch.lerp(x, new, torch.sigmoid(z + z_x + self.bias - 0.1))


class GatedLayer(PreNormLayer):
    """Gates where :class:`~wmkit.backbones.gpt.PreNormLayer` has sums; constructed alike."""

    def __init__(self, attention: SelfAttention, *rest: Any) -> None:
        super().__init__(attention, *rest)
        width = attention.out.out_features
        self.gate_attention, self.gate_feed_forward = Gate(width), Gate(width)

    def forward(
        self, x: Tensor, remember: Remember | None, mask: Tensor, read: slice = ALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Transformer.through <wmkit.backbones.transformer.Transformer.through>`."""
        y, keys, values = self.attention(self.norm_attention(x), remember, mask, read)
        x = self.gate_attention(x[:, read], self.dropout(y))
        y = self.dropout(self.feed_forward(self.norm_feed_forward(x)))
        return self.gate_feed_forward(x, y), keys, values
