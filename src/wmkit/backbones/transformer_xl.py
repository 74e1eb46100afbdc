"""Transformer-XL (Dai et al. 2019, arXiv:1901.02860) as the dynamics of TWM (arXiv:2303.07109).

Positions are distances, so that a remembered key never has to be computed again::

    s_ij = scale [ (q_i + u)·k_j + (q_i + v)·W_R R_{i-j} ]         R: sinusoids of the distance
    x = LN(x + W_o softmax(s) V)        x = LN(x + W_2 act(W_1 x))

u and v ``[heads, d]`` are shared by all layers, W_R is each layer's own. Distances count tokens,
not time steps.

============  ===========  =====================  ==============================================
option        default      TWM                    meaning
============  ===========  =====================  ==============================================
``width``     ``out_dim``  256                    of a token inside; other inputs and outputs
                                                  are projected linearly
``layers``    2            10
``heads``     4            4
``head_dim``  width/heads  64
``hidden``    4 x width    1024                   width inside the feed-forward layers
``window``    64           52, 52, 51             tokens that a token sees in each layer, itself
                                                  included; memory keeps ``window - 1``
``scale``     1/sqrt(width)  1/16                 on the scores; 1/sqrt(head_dim) is usual
                                                  elsewhere
``dropout``   0.0          0.1                    on attention, both outputs, the hidden layer and
                                                  the sinusoids (one mask per call)
``activation``  ``silu``   silu
============  ===========  =====================  ==============================================

A time step of several tokens (TWM's late reward, latent, action) is one call::

    u, carry = model.scan(tokens, carry, reset)     # [B, 3, D], [B, 3] -> [B, 3, U]

with ``reset`` set at the latent where an episode begins, so that the late reward stays with the
episode it was earned in. ``scan(x, None, reset)`` is for training windows that start from nothing;
``bind(tokens=3)`` makes a loop of many such calls faster. See :mod:`wmkit.backbones.transformer`.

:mod:`wmkit.backbones.torchrl_transformer` calls it as later versions of TorchRL call theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wmkit.backbones.base import IN_KEYS, OUT_KEYS, Keys, stack
from wmkit.backbones.transformer import Transformer
from wmkit.errors import ConfigError
from wmkit.nn import Dropout, Linear
from wmkit.nn.attention import ALL, FeedForward, Remember, SelfAttention, relative_shift, sinusoids


class TransformerXL(Transformer):
    """Post-norm transformer over relative positions, with a memory of projected keys and values.

    Args:
        in_dim: input width D.
        out_dim: output width U.
        width: of a token inside; ``out_dim`` if not given.
        layers: how many.
        heads: attention heads of each.
        head_dim: width d of a head; ``width / heads`` if not given.
        hidden: width of the feed-forward layers; four times ``width`` if not given.
        window: tokens that a token sees in each layer, itself included; or one number for each kind of
            tokens that take turns, as TWM's latent, action and reward do.
        scale: factor on the scores; ``1/sqrt(width)`` if not given, as in TWM.
        dropout: see the table above.
        activation: of the feed-forward layers: ``"silu"``, ``"relu"`` or ``"gelu"``.
        in_keys: see :class:`~wmkit.backbones.base.SequenceModel`.
        out_keys: see :class:`~wmkit.backbones.base.SequenceModel`.

    Raises:
        ConfigError: an odd width or no layers; see :class:`~wmkit.backbones.transformer.Transformer`,
            :class:`~wmkit.nn.attention.SelfAttention` and :class:`~wmkit.nn.attention.FeedForward`.

    >>> model = TransformerXL(3, 8, window=4)
    >>> carry = model.initial(2)
    >>> u, carry = model.step(torch.zeros(2, 3), carry, torch.tensor([True, False]))
    >>> u.shape, carry.keys[0].shape  # two rows, four heads, three tokens, two numbers
    (torch.Size([2, 8]), torch.Size([2, 4, 3, 2]))
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        width: int | None = None,
        layers: int = 2,
        heads: int = 4,
        head_dim: int | None = None,
        hidden: int | None = None,
        window: int | Sequence[int] = 64,
        scale: float | None = None,
        dropout: float = 0.0,
        activation: str = "silu",
        in_keys: Keys = IN_KEYS,
        out_keys: Keys = OUT_KEYS,
    ) -> None:
        super().__init__(in_dim, out_dim, width=width, window=window, in_keys=in_keys, out_keys=out_keys)
        if self.width % 2:
            raise ConfigError(
                f"the width of transformer_xl is {self.width}: wanted an even number, for as many sines as "
                "cosines; change width or deter"
            )
        scale = self.width**-0.5 if scale is None else scale
        hidden = 4 * self.width if hidden is None else hidden
        self.layers = stack(
            layers,
            lambda: TransformerXLLayer(
                self.width, heads, hidden, activation, head_dim=head_dim, scale=scale, dropout=dropout
            ),
        )
        shape = heads, self.layers[0].attention.head_dim
        self.content_bias = nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape)))  # u
        self.position_bias = nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape)))  # v
        self.dropout = Dropout(dropout)

    def tables(self, tokens: int) -> Sequence[Tensor]:
        """``scale W_R R`` of every layer, ``[heads, d, C + tokens]``, the largest distance first."""
        like = self.content_bias
        precise = torch.promote_types(like.dtype, torch.float32)
        distances = torch.arange(self.slots + tokens - 1, -1, -1, dtype=precise, device=like.device)
        code = self.dropout(sinusoids(distances, self.width).to(like.dtype))
        return [layer.table(code) for layer in self.layers]

    def embed(self, x: Tensor, ages: Tensor) -> Tensor:
        """Positions enter through the scores alone."""
        return x

    def through(
        self,
        layer: Any,
        x: Tensor,
        remember: Remember | None,
        mask: Tensor,
        table: Tensor | None,
        read: slice,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Transformer.through <wmkit.backbones.transformer.Transformer.through>`."""
        assert table is not None
        biases = self.content_bias.unsqueeze(1), self.position_bias.unsqueeze(1)  # [heads, 1, d]
        return layer(x, remember, mask, table[..., -mask.shape[-1] :], biases, read)


class TransformerXLLayer(nn.Module):
    """Attention by content and distance, then two dense layers; the norm comes after each sum.

    Args:
        width: of a token, D.
        heads: attention heads.
        hidden: width of the dense layer.
        activation: after it.
        head_dim: width d of a head.
        scale: factor on the scores.
        dropout: on attention, both outputs and the hidden layer.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        activation: str,
        *,
        head_dim: int | None,
        scale: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, head_dim, scale=scale, dropout=dropout)
        self.position = Linear(width, heads * self.attention.head_dim, bias=False)  # W_R
        self.feed_forward = FeedForward(width, hidden, activation, dropout)
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def table(self, code: Tensor) -> Tensor:
        """Projected sinusoids, scaled as scores are: ``[M, D] -> [heads, d, M]``."""
        projected = self.position(code) * self.attention.scale
        return projected.unflatten(-1, (self.attention.heads, -1)).permute(1, 2, 0)

    def forward(
        self,
        x: Tensor,
        remember: Remember | None,
        mask: Tensor,
        table: Tensor,
        biases: tuple[Tensor, Tensor],
        read: slice = ALL,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Transformer.through <wmkit.backbones.transformer.Transformer.through>`."""
        content, position = biases
        query, keys, values = self.attention.all_keys(x, remember)
        # Rows of all of a batch against one table: [heads, B * n, d] @ [heads, d, C + n].
        rows = (query + position).transpose(0, 1).flatten(1, 2)
        by_distance = torch.bmm(rows, table).unflatten(1, (len(x), -1)).transpose(0, 1)
        scores = torch.where(mask, relative_shift(by_distance), -torch.inf)
        y = self.attention.attend((query + content)[:, :, read], keys, values, scores[:, :, read])
        x = self.norm_attention(x[:, read] + self.dropout(y))
        return self.norm_feed_forward(x + self.dropout(self.feed_forward(x))), keys, values
