"""Long short-term memory (Hochreiter and Schmidhuber 1997) with forget gates, as PyTorch computes it.

::

    i, f, g, o = W [x, h] + b
    c' = σ(f) c + σ(i) tanh(g)          h' = σ(o) tanh(c')
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmkit import fast
from wmkit.backbones.base import IN_KEYS, OUT_KEYS, Keys, Loop, SequenceModel, check_input
from wmkit.nn import Linear

Carry = tuple[Tensor, Tensor]


class LSTM(SequenceModel):
    """An LSTM whose output is its short-term half; the carry is both, ``(h, c)``.

    Unlike :class:`torch.nn.LSTM` it has one bias, not two that are only ever added, unless asked for.

    Args:
        in_dim: input width D.
        out_dim: width U of h and of c.
        two_biases: as :class:`torch.nn.LSTM` has (IRIS).
        in_keys: see :class:`~wmkit.backbones.base.SequenceModel`.
        out_keys: see :class:`~wmkit.backbones.base.SequenceModel`.

    >>> lstm = LSTM(3, 8)
    >>> u, (h, c) = lstm.step(torch.zeros(2, 3), lstm.initial(2), torch.tensor([True, False]))
    >>> u.shape, bool((u == h).all())
    (torch.Size([2, 8]), True)
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        two_biases: bool = False,
        in_keys: Keys = IN_KEYS,
        out_keys: Keys = OUT_KEYS,
    ) -> None:
        super().__init__(in_dim, out_dim, in_keys=in_keys, out_keys=out_keys)
        # Rows: input, forget, candidate, output, as in torch.nn.LSTM.
        self.input = Linear(in_dim, 4 * out_dim)
        self.recurrent = Linear(out_dim, 4 * out_dim, bias=two_biases)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(out_dim**-0.5), out_dim**-0.5)

    def initial(self, batch: int) -> Carry:
        """Zeros; see :meth:`SequenceModel.initial <wmkit.backbones.base.SequenceModel.initial>`."""
        zeros = self.input.weight.new_zeros(1, self.out_dim).expand(batch, -1)
        return zeros, zeros

    def output(self, carry: Carry) -> Tensor:
        """h."""
        return carry[0]

    def step(self, x: Tensor, carry: Carry, reset: Tensor) -> tuple[Tensor, Carry]:
        """See :meth:`SequenceModel.step <wmkit.backbones.base.SequenceModel.step>`."""
        check_input(self, x, carry, reset, 2)
        return self.bind(self.in_dim).step(x[:, :0], carry, reset, self.input(x))

    def bind(self, known: int = 0, tokens: int = 1) -> LSTMLoop:
        """See :meth:`SequenceModel.bind <wmkit.backbones.base.SequenceModel.bind>`."""
        return LSTMLoop(self, *self.input.weight.split([self.in_dim - known, known], 1))


@dataclass(frozen=True)
class LSTMLoop(Loop):
    """An :class:`LSTM` with the product of what is known ahead taken out of the loop.

    Attributes:
        model: whose weights these are.
        arriving: ``[4U, D - known]`` columns of the gates for what arrives step by step.
        known: ``[4U, known]`` columns for what is known ahead.

    >>> lstm, x = LSTM(6, 16), torch.randn(2, 6)
    >>> loop = lstm.bind(known=4)
    >>> u, _ = loop.step(x[:, :2], lstm.initial(2), None, loop.ahead(x[:, 2:]))
    >>> torch.allclose(u, lstm.scan(x.unsqueeze(1))[0][:, 0], atol=1e-6)
    True
    """

    arriving: Tensor
    known: Tensor

    def ahead(self, x: Tensor) -> Tensor:
        """The share of the last columns ``[*B, known]`` in the gates: ``[*B, 4U]``, with bias."""
        return fast.linear(x, self.known, self.model.input.bias)

    def step(
        self, x: Tensor, carry: Carry, reset: Tensor | None = None, ahead: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """One step: ``x [B, D - known]``, ``reset [B]``, ``ahead [B, 4U]`` -> ``h [B, U]`` and ``(h, c)``."""
        h, c = carry
        if reset is not None:
            h, c = (x.masked_fill(reset.unsqueeze(-1), 0) for x in carry)
        gates = self.model.input.bias if ahead is None else ahead
        gates = gates + self.model.recurrent(h)
        if x.shape[-1]:
            gates = gates + fast.linear(x, self.arriving)
        write, keep, candidate, read = gates.chunk(4, -1)
        c = torch.sigmoid(keep) * c + torch.sigmoid(write) * torch.tanh(candidate)
        h = torch.sigmoid(read) * torch.tanh(c)
        return h, (h, c)
