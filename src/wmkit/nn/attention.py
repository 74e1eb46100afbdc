"""Causal self-attention with a memory of fixed shape: a whole window at once, or token by token.

Memory holds the keys and values of the last C tokens, already projected, oldest first; new ones
push the oldest out. So the distance between a query and a slot is known without looking, and
shapes never depend on data; at most on how many tokens there were. A memory is a value: what was
handed out is never written to.

Tokens of one rollout are cut into segments by resets. A token sees those of its own segment, up
to the window W = C + 1 (itself included) back, so that one number per row says which slots it
may see: the *age*, how many tokens its segment holds already. Each layer looks back W tokens,
in a scan as in a step; the two are equal however long the rollout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmkit.errors import ConfigError
from wmkit.nn.dense import Dropout, Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu}


ALL = slice(None)
Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""New keys and values ``[B, heads, n, d]`` to all, remembered ones in front: ``[B, heads, C + n, d]``."""


class Memory(NamedTuple):
    """The memory of a transformer in a roll-out.

    Attributes:
        keys: one ``[B, heads, C, d]`` per layer, oldest token first.
        values: one ``[B, heads, C, d]`` per layer, in the same order.
        age: ``[B]`` int64, tokens since the last reset.
        output: ``[B, U]``, of the last token.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    age: Tensor
    output: Tensor


def token_ages(age: Tensor, reset: Tensor) -> Tensor:
    """How many tokens of its own segment stand before each token.

    Args:
        age: ``[B]`` int64, tokens of the running segment so far.
        reset: ``[B, n]`` bool, the token begins a segment.

    Returns:
        ``[B, n]`` int64.

    >>> token_ages(torch.tensor([5]), torch.tensor([[False, False, True, False]]))
    tensor([[5, 6, 0, 1]])
    """
    index = torch.arange(reset.shape[1], device=reset.device)
    begin = torch.where(reset, index, -age.unsqueeze(1)).cummax(1).values  # [B, n], of each token's segment
    return index - begin


def visible(ages: Tensor, slots: int, window: int | Tensor) -> Tensor:
    """Which keys each of n new tokens may see: not later, the same segment, inside the window.

    Args:
        ages: ``[B, n]``, see :func:`token_ages`.
        slots: how many remembered keys stand before the new ones.
        window: largest number of tokens to see, oneself included; or ``[k]`` int64, one for each of k kinds
            of tokens that take turns from a segment's first on.

    Returns:
        ``[B, 1, n, slots + n]`` bool.

    >>> visible(torch.tensor([[1, 0]]), slots=2, window=3)[0, 0].int()
    tensor([[0, 1, 1, 0],
            [0, 0, 0, 1]], dtype=torch.int32)
    """
    count = ages.shape[1]
    query = torch.arange(slots, slots + count, device=ages.device).unsqueeze(1)
    distance = query - torch.arange(slots + count, device=ages.device)  # [n, slots + n]
    if isinstance(window, int):
        furthest = ages.clamp(max=window - 1)  # [B, n]
    else:
        furthest = ages.minimum(window[ages % len(window)] - 1)
    return ((distance >= 0) & (distance <= furthest.unsqueeze(-1))).unsqueeze(1)


def sinusoids(distances: Tensor, width: int) -> Tensor:
    """Sinusoidal code of distances (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

    Args:
        distances: ``[M]``, floating point.
        width: D, even.

    Returns:
        ``[M, D]``: sines in the even columns, cosines in the odd ones, base 10000.

    >>> sinusoids(torch.tensor([0.0, 1.0]), 2)
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    channel = torch.arange(0, width, 2, dtype=distances.dtype, device=distances.device)
    angle = distances.unsqueeze(1) * 10000.0 ** (-channel / width)  # [M, D/2]
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def relative_shift(scores: Tensor) -> Tensor:
    """From scores by distance to scores by key (Dai et al. 2019, arXiv:1901.02860, appendix B).

    Args:
        scores: ``[*B, n, M]``; column c of every query is the distance ``M - 1 - c``.

    Returns:
        ``[*B, n, M]``; column j is key j, where the last query stands at key ``M - 1`` and the one
        before it at ``M - 2``. Keys later than the query hold nothing of meaning.

    >>> relative_shift(torch.tensor([[2, 1, 0], [2, 1, 0]]))  # distances to keys 0, 1, (2)
    tensor([[1, 0, 0],
            [2, 1, 0]])
    """
    count, keys = scores.shape[-2:]
    if count == 1:
        return scores
    padded = F.pad(scores, (1, 0)).flatten(-2)  # each row moves one further than the row below it
    return padded[..., count:].unflatten(-1, (count, keys))


class SelfAttention(nn.Module):
    """Multi-head attention of new tokens over remembered and new keys.

    Args:
        width: of a token, D.
        heads: how many.
        head_dim: width d of a head; ``width / heads`` if not given.
        bias: whether the projections have one.
        scale: factor on the scores; ``1/sqrt(d)`` if not given.
        dropout: on the attention probabilities.

    Raises:
        ConfigError: ``heads`` does not divide ``width`` and no ``head_dim`` is given.

    >>> attention, x = SelfAttention(8, 2), torch.randn(3, 5, 8)
    >>> mask = visible(torch.arange(5).expand(3, 5), slots=0, window=5)
    >>> y, keys, values = attention(x, None, mask)
    >>> y.shape, keys.shape
    (torch.Size([3, 5, 8]), torch.Size([3, 2, 5, 4]))
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int | None = None,
        *,
        bias: bool = False,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if head_dim is None:
            if heads < 1 or width % heads:
                raise ConfigError(
                    f"a transformer of width {width} cannot be cut into {heads} equal heads: wanted a "
                    "divisor of its width; change heads or width, or give head_dim"
                )
            head_dim = width // heads
        self.heads, self.head_dim, self.dropout = heads, head_dim, dropout
        self.scale = head_dim**-0.5 if scale is None else scale
        self.project = Linear(width, 3 * heads * head_dim, bias=bias)  # queries, keys, values
        self.out = Linear(heads * head_dim, width, bias=bias)

    def forward(
        self, x: Tensor, remember: Remember | None, mask: Tensor, read: slice = ALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend.

        Args:
            x: ``[B, n, D]`` new tokens.
            remember: puts keys and values of C earlier tokens in front, if there are any.
            mask: ``[B, 1, n, C + n]`` bool, see :func:`visible`.
            read: which of the new tokens look; the others are only looked at.

        Returns:
            ``[B, n, D]`` of those that look, and all keys and values ``[B, heads, C + n, d]``.
        """
        query, keys, values = self.all_keys(x, remember)
        return self.attend(query[:, :, read], keys, values, mask[:, :, read]), keys, values

    def all_keys(self, x: Tensor, remember: Remember | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, heads, n, d]`` of new tokens; keys and values, the remembered ones in front."""
        projected = self.project(x).unflatten(-1, (3, self.heads, self.head_dim))
        query, keys, values = projected.permute(2, 0, 3, 1, 4)  # [B, heads, n, d] each
        if remember is not None:
            keys, values = remember(keys, values)
        return query, keys, values

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """The output ``[B, n, D]``; ``mask`` is bool, or float to be added to the scores."""
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, dropout_p=dropout, scale=self.scale
        )
        return self.out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers over each token by itself.

    Args:
        width: of a token, D.
        hidden: width of the layer between.
        activation: ``"silu"``, ``"relu"`` or ``"gelu"``.
        dropout: on the layer between.

    Raises:
        ConfigError: an unknown activation.

    >>> FeedForward(4, 8, "silu")(torch.zeros(2, 3, 4)).shape
    torch.Size([2, 3, 4])
    """

    def __init__(self, width: int, hidden: int, activation: str, dropout: float = 0.0) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation {activation!r} is unknown: wanted one of {', '.join(ACTIVATIONS)}; "
                "correct the transformer's activation"
            )
        self.activation, self.dropout = ACTIVATIONS[activation], Dropout(dropout)
        self.first, self.second = Linear(width, hidden), Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, n, D] -> [B, n, D]``."""
        return self.second(self.dropout(self.activation(self.first(x))))
