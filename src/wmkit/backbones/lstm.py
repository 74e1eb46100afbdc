"""Long short-term memory (Hochreiter and Schmidhuber 1997) with forget gates, as PyTorch computes it.

::

    i, f, g, o = W [x, h] + b
    c' = σ(f) c + σ(i) tanh(g)          h' = σ(o) tanh(c')
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmkit.nn import Linear

Carry = tuple[Tensor, Tensor]


class LSTM(nn.Module):
    """An LSTM whose output is its short-term half; the carry is both, ``(h, c)``.

    Unlike :class:`torch.nn.LSTM` it has one bias, not two that are only ever added.

    Args:
        in_dim: input width D.
        out_dim: width U of h and of c.

    >>> lstm = LSTM(3, 8)
    >>> u, (h, c) = lstm.step(torch.zeros(2, 3), lstm.initial(2), torch.tensor([True, False]))
    >>> u.shape, bool((u == h).all())
    (torch.Size([2, 8]), True)
    """

    carry_is_output = False

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.in_dim, self.out_dim = in_dim, out_dim
        # Rows: input, forget, candidate, output, as in torch.nn.LSTM.
        self.input = Linear(in_dim, 4 * out_dim)
        self.recurrent = Linear(out_dim, 4 * out_dim, bias=False)
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
        return self._step(self.input(x), carry, reset)

    def scan(self, x: Tensor, carry: Carry, reset: Tensor) -> tuple[Tensor, Carry]:
        """See :meth:`SequenceModel.scan <wmkit.backbones.base.SequenceModel.scan>`."""
        outputs = []
        for ahead, reset_t in zip(self.input(x).unbind(1), reset.unbind(1), strict=True):
            u, carry = self._step(ahead, carry, reset_t)
            outputs.append(u)
        return torch.stack(outputs, 1), carry

    def _step(self, ahead: Tensor, carry: Carry, reset: Tensor) -> tuple[Tensor, Carry]:
        """One step with the input's share ``[B, 4U]`` of the gates."""
        h, c = (x.masked_fill(reset.unsqueeze(-1), 0) for x in carry)
        write, keep, candidate, read = (ahead + self.recurrent(h)).chunk(4, -1)
        c = torch.sigmoid(keep) * c + torch.sigmoid(write) * torch.tanh(candidate)
        h = torch.sigmoid(read) * torch.tanh(c)
        return h, (h, c)
