"""The predictor of LeWorldModel (2026; lucas-maes/le-wm): a transformer that actions modulate.

Of every input the last numbers are a condition c, the others a token x. Tokens see the ones before them::

    x = x + P[place]    per layer    s, k, g, s', k', g' = W silu(c)
                                     x = x + g attention(LN(LN₀(x) (1 + k) + s))
                                     x = x + g' W_2 gelu(W_1 LN(LN₀(x) (1 + k') + s'))
                        at last      x = LN(x)

LN₀ has no weights. W starts at zero in LeWorldModel: every layer passes on what it gets.

Each output is made of the last ``window`` inputs alone, run anew, as the original plans: the places are those
in that window, and nothing reaches further back through several layers. What is carried are inputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmkit.backbones.base import IN_KEYS, OUT_KEYS, Keys, SequenceModel, check_input, resets, stack
from wmkit.errors import ConfigError
from wmkit.nn import Dropout, Linear
from wmkit.nn.attention import ALL, FeedForward, SelfAttention, token_ages, visible


class Window(NamedTuple):
    """The last inputs of a roll-out.

    Attributes:
        inputs: ``[B, window - 1, D]``, oldest first.
        age: ``[B]`` int64, inputs since the last reset.
        output: ``[B, U]``, of the last input.
    """

    inputs: Tensor
    age: Tensor
    output: Tensor


class AdaLN(SequenceModel):
    """Pre-norm transformer over a short window, modulated by a part of its input.

    Args:
        in_dim: input width D, token and condition side by side.
        out_dim: output width U; projected linearly where it is not ``width``.
        condition: width of the condition, the last numbers of an input; half of ``in_dim`` if not given.
        width: of a token inside; ``out_dim`` if not given. Other tokens and conditions are projected.
        layers: how many; 6 as published.
        heads: attention heads of each; 16 as published.
        head_dim: width of a head; ``width / heads`` if not given, 64 as published.
        hidden: width of the feed-forward layers; twice ``width`` if not given, 2048 as published.
        window: inputs that make an output; 3 as published.
        dropout: on attention, both outputs and the hidden layer; 0.1 as published.
        modulation_std: standard deviation of W at first; 0 as published.
        in_keys: see :class:`~wmkit.backbones.base.SequenceModel`.
        out_keys: see :class:`~wmkit.backbones.base.SequenceModel`.

    Raises:
        ConfigError: a condition that leaves no token, or a window of no input.

    >>> model = AdaLN(8, 4, window=3)
    >>> u, carry = model.scan(torch.zeros(2, 5, 8))
    >>> u.shape, carry.inputs.shape
    (torch.Size([2, 5, 4]), torch.Size([2, 2, 8]))
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        condition: int | None = None,
        width: int | None = None,
        layers: int = 2,
        heads: int = 4,
        head_dim: int | None = None,
        hidden: int | None = None,
        window: int = 3,
        dropout: float = 0.0,
        modulation_std: float = 0.02,
        in_keys: Keys = IN_KEYS,
        out_keys: Keys = OUT_KEYS,
    ) -> None:
        super().__init__(in_dim, out_dim, in_keys=in_keys, out_keys=out_keys)
        self.condition = in_dim // 2 if condition is None else condition
        if not 0 < self.condition < in_dim:
            raise ConfigError(
                f"condition is {condition}: wanted 1 or more of the {in_dim} numbers of an input, and not "
                "all; correct condition"
            )
        if window < 1:
            raise ConfigError(f"window is {window}: wanted 1 or more inputs; correct window")
        width = out_dim if width is None else width
        self.width, self.window = width, window
        token = in_dim - self.condition
        self.project_token = nn.Identity() if token == width else Linear(token, width)
        self.project_condition = nn.Identity() if self.condition == width else Linear(self.condition, width)
        self.project_out = nn.Identity() if out_dim == width else Linear(width, out_dim)
        self.places = nn.Parameter(torch.randn(window, width))
        hidden = 2 * width if hidden is None else hidden
        self.layers = stack(
            layers, lambda: AdaLNLayer(width, heads, head_dim, hidden, dropout, modulation_std)
        )
        self.norm = nn.LayerNorm(width)

    def initial(self, batch: int) -> Window:
        """See :meth:`SequenceModel.initial <wmkit.backbones.base.SequenceModel.initial>`."""
        inputs = self.places.new_zeros(batch, self.window - 1, self.in_dim)
        age = torch.zeros(batch, dtype=torch.int64, device=inputs.device)
        return Window(inputs, age, self.places.new_zeros(batch, self.out_dim))

    def output(self, carry: Window) -> Tensor:
        """The last output ``[B, U]``; zeros before the first."""
        return carry.output

    def step(self, x: Tensor, carry: Window, reset: Tensor) -> tuple[Tensor, Window]:
        """One input: ``x [B, D]``, ``reset [B]`` bool -> ``u [B, U]`` and the new carry."""
        check_input(self, x, carry, reset, 2)
        u, carry = self.scan(x.unsqueeze(1), carry, reset.unsqueeze(1))
        return u.squeeze(1), carry

    def scan(
        self, x: Tensor, carry: Window | None = None, reset: Tensor | None = None, read: slice | None = None
    ) -> tuple[Tensor, Window]:
        """See :meth:`SequenceModel.scan <wmkit.backbones.base.SequenceModel.scan>`.

        A first window goes through the layers once; later outputs each have a window of their own.
        """
        check_input(self, x, carry, reset, 3)
        reset, read, back = resets(reset, x), read or ALL, self.window - 1
        before = self.initial(len(x)) if carry is None else carry
        ages = token_ages(before.age, reset)  # [B, T]
        known = torch.cat([before.inputs.to(x.dtype), x], 1)  # [B, W - 1 + T, D]
        if carry is None and x.shape[1] <= self.window:
            u = self._through(x, ages, visible(ages, 0, self.window), read)
        else:
            windows = known.unfold(1, self.window, 1)[:, read].transpose(-1, -2)  # [B, n, W, D]
            u = self._last(windows.flatten(0, 1), ages[:, read].flatten()).unflatten(0, windows.shape[:2])
        return u, Window(known[:, known.shape[1] - back :], ages[:, -1] + 1, u[:, -1])

    def _last(self, x: Tensor, age: Tensor) -> Tensor:
        """Outputs ``[N, U]`` of the last inputs of windows ``[N, W, D]``, which see ``age [N]`` more."""
        at = torch.arange(self.window, device=x.device)
        begin = self.window - 1 - age.clamp(max=self.window - 1).unsqueeze(1)  # [N, 1]
        seen = (at >= begin).unsqueeze(1) & (at <= at.unsqueeze(1))  # [N, W, W]
        mask = (seen | torch.eye(self.window, dtype=torch.bool, device=x.device)).unsqueeze(1)
        return self._through(x, (at - begin).clamp(min=0), mask, slice(-1, None)).squeeze(1)

    def _through(self, x: Tensor, places: Tensor, mask: Tensor, read: slice) -> Tensor:
        """Inputs ``[B, n, D]`` at their places ``[B, n]`` to outputs of those read."""
        token, condition = x.split([self.in_dim - self.condition, self.condition], -1)
        x = self.project_token(token) + self.places[places]
        condition = F.silu(self.project_condition(condition))
        for i, layer in enumerate(self.layers):
            x = layer(x, condition, mask, read if i == len(self.layers) - 1 else ALL)
        return self.project_out(self.norm(x))


class AdaLNLayer(nn.Module):
    """Attention and dense layers between norms that a condition shifts and scales, behind gates.

    Args:
        width: of a token, D.
        heads: attention heads.
        head_dim: width of a head.
        hidden: width of the feed-forward layers.
        dropout: on attention, both outputs and the hidden layer.
        modulation_std: standard deviation of the modulation's weights at first.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int | None,
        hidden: int,
        dropout: float,
        modulation_std: float,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, head_dim, dropout=dropout)
        self.attention.out = Linear(self.attention.out.in_features, width)  # with a bias
        self.feed_forward = FeedForward(width, hidden, "gelu", dropout)
        self.dropout = Dropout(dropout)
        self.modulation: Any = Linear(width, 6 * width)
        nn.init.normal_(self.modulation.weight, std=modulation_std)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor, read: slice = ALL) -> Tensor:
        """Tokens and what modulates them, ``[B, n, D]`` each, to those read."""
        shift, scale, *rest = self.modulation(condition).chunk(6, -1)
        modulated = self.norm(x) * (1 + scale) + shift
        y, _, _ = self.attention(self.norm_attention(modulated), None, mask, read)
        x, gate, shift, scale, gate_after = (part[:, read] for part in (x, *rest))
        x = x + gate * self.dropout(y)
        y = self.feed_forward(self.norm_feed_forward(self.norm(x) * (1 + scale) + shift))
        return x + gate_after * self.dropout(y)
