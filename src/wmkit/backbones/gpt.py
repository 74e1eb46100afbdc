"""A small GPT as the dynamics of STORM (Zhang et al. 2023, arXiv:2310.09615, section 3.1).

Positions are learned and count the tokens since the last reset, so that a rollout after a reset is
a rollout from the start. The last position stands for all that follow.

Post-norm (STORM)::

    x = LN(x + P[age])      then per layer      x = LN(x + attention(x))     x = LN(x + W_2 act(W_1 x))

Pre-norm (IRIS, arXiv:2209.00588)::

    x = x + P[age]          then per layer      x = x + attention(LN x)      x = x + W_2 act(W_1 LN x)
                            at last             x = LN(x)

==============  =============  =======  ========  ==================================================
option          default        STORM    IRIS      meaning
==============  =============  =======  ========  ==================================================
``width``       ``out_dim``    512      256       of a token inside; other inputs and outputs are
                                                  projected linearly
``layers``      2              2        10
``heads``       4              8        4
``hidden``      2 x width      1024     1024      width inside the feed-forward layers
``window``      64             64       340       tokens that a token sees in each layer, itself
                                                  included; also the number of positions
``pre_norm``    false          false    true
``bias``        false          false    true      in the attention's projections
``activation``  ``relu``       relu     ``gelu``
``dropout``     0.0            0.1      0.1       on attention, both outputs, the hidden layer; with
                                                  ``pre_norm`` on the embedded tokens too
``norm_eps``    1e-6           1e-6     1e-5
``init_std``    -              -        0.02      of linear layers
==============  =============  =======  ========  ==================================================

STORM itself never resets: its attention crosses the borders of episodes. Give it resets that are
all false to have that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from wmkit.backbones.base import IN_KEYS, OUT_KEYS, Keys, stack
from wmkit.backbones.transformer import Transformer
from wmkit.nn import Dropout
from wmkit.nn.attention import ALL, FeedForward, Remember, SelfAttention


class GPT(Transformer):
    """Transformer over learned positions, with a memory of projected keys and values.

    Args:
        in_dim: input width D.
        out_dim: output width U.
        width: of a token inside; ``out_dim`` if not given.
        layers: how many.
        heads: attention heads of each.
        head_dim: width d of a head; ``width / heads`` if not given.
        hidden: width of the feed-forward layers; twice ``width`` if not given.
        window: tokens that a token sees in each layer, itself included; also how many positions.
        pre_norm: normalise what goes into a layer rather than what comes out.
        bias: whether the attention's projections have one.
        activation: of the feed-forward layers: ``"relu"``, ``"gelu"`` or ``"silu"``.
        dropout: see the table above.
        hidden_dropout: of the feed-forward layers' hidden layer; ``dropout`` if not given.
        position_std: standard deviation of the positions at first.
        init_std: the same of the weights of all linear layers, with zero biases (0.02 in IRIS); PyTorch's
            initialisation if not given.
        norm_eps: epsilon of every LayerNorm.
        in_keys: see :class:`~wmkit.backbones.base.SequenceModel`.
        out_keys: see :class:`~wmkit.backbones.base.SequenceModel`.

    Raises:
        ConfigError: no layers; see :class:`~wmkit.backbones.transformer.Transformer`,
            :class:`~wmkit.nn.attention.SelfAttention` and :class:`~wmkit.nn.attention.FeedForward`.

    >>> import torch
    >>> model = GPT(3, 8)
    >>> u, carry = model.scan(torch.zeros(2, 5, 3))
    >>> u.shape, carry.age
    (torch.Size([2, 5, 8]), tensor([5, 5]))
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
        window: int = 64,
        pre_norm: bool = False,
        bias: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        hidden_dropout: float | None = None,
        position_std: float = 0.02,
        init_std: float | None = None,
        norm_eps: float = 1e-6,
        in_keys: Keys = IN_KEYS,
        out_keys: Keys = OUT_KEYS,
    ) -> None:
        super().__init__(in_dim, out_dim, width=width, window=window, in_keys=in_keys, out_keys=out_keys)
        self.positions = nn.Embedding(window, self.width)
        nn.init.normal_(self.positions.weight, std=position_std)
        hidden = 2 * self.width if hidden is None else hidden
        hidden_dropout = dropout if hidden_dropout is None else hidden_dropout
        make_layer: Any = PreNormLayer if pre_norm else PostNormLayer
        self.layers = stack(
            layers,
            lambda: make_layer(
                SelfAttention(self.width, heads, head_dim, bias=bias, dropout=dropout),
                FeedForward(self.width, hidden, activation, hidden_dropout),
                dropout,
                norm_eps,
            ),
        )
        norm, nothing = nn.LayerNorm(self.width, eps=norm_eps), nn.Identity()
        self.after_embedding = Dropout(dropout) if pre_norm else norm
        self.after_layers = norm if pre_norm else nothing
        if init_std is not None:
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=init_std)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)

    def embed(self, x: Tensor, ages: Tensor) -> Tensor:
        """Add positions."""
        return self.after_embedding(x + self.positions(ages.clamp(max=self.window - 1)))

    def finish(self, visited: Sequence[Tensor], read: slice) -> Tensor:
        """The last norm, where the layers end without one."""
        return self.after_layers(visited[-1])


class _Layer(nn.Module):
    """Attention and dense layers, each added to what went in.

    Args:
        attention: over the tokens.
        feed_forward: over each token.
        dropout: on the output of either.
        norm_eps: epsilon of the norms.
    """

    def __init__(
        self, attention: SelfAttention, feed_forward: FeedForward, dropout: float, norm_eps: float
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        width = attention.out.out_features
        self.norm_attention = nn.LayerNorm(width, eps=norm_eps)
        self.norm_feed_forward = nn.LayerNorm(width, eps=norm_eps)
        self.dropout = Dropout(dropout)


class PostNormLayer(_Layer):
    """Norms after the sums."""

    def forward(
        self, x: Tensor, remember: Remember | None, mask: Tensor, read: slice = ALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Transformer.through <wmkit.backbones.transformer.Transformer.through>`."""
        y, keys, values = self.attention(x, remember, mask, read)
        x = self.norm_attention(x[:, read] + self.dropout(y))
        return self.norm_feed_forward(x + self.dropout(self.feed_forward(x))), keys, values


class PreNormLayer(_Layer):
    """Norms before attention and dense layers."""

    def forward(
        self, x: Tensor, remember: Remember | None, mask: Tensor, read: slice = ALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Transformer.through <wmkit.backbones.transformer.Transformer.through>`."""
        y, keys, values = self.attention(self.norm_attention(x), remember, mask, read)
        x = x[:, read] + self.dropout(y)
        return x + self.dropout(self.feed_forward(self.norm_feed_forward(x))), keys, values
