"""A leaky integrator as a wmkit backbone: the smallest sequence model that obeys the contract.

``u_t = (1 - leak) * u_{t-1} + leak * tanh(W x_t)``, with one learned leak per channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmkit.backbones import SequenceModel


class LeakyIntegrator(SequenceModel):
    """A diagonal linear recurrence with a squashed input.

    Three methods say what it is; the base adds ``scan``, and a TensorDict face that collectors call. The four
    laws of a sequence model hold: ``scan`` equals looped ``step``; nothing before a reset reaches what
    follows it; a scan may be cut anywhere; outputs depend on the past only.

    Args:
        in_dim: width of the inputs.
        out_dim: width of the outputs, and of the carry.

    >>> model = LeakyIntegrator(3, 4)
    >>> u, carry = model.scan(torch.zeros(2, 5, 3))
    >>> u.shape, carry.shape
    (torch.Size([2, 5, 4]), torch.Size([2, 4]))
    """

    carry_is_output = True  # a roll-out can go on from a stored output alone

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.input = nn.Linear(in_dim, out_dim)
        self.leak_logit = nn.Parameter(torch.zeros(out_dim))

    def initial(self, batch: int) -> Tensor:
        """The carry before anything was seen: zeros ``[batch, out_dim]``."""
        return self.leak_logit.new_zeros(batch, self.out_dim)

    def output(self, carry: Tensor) -> Tensor:
        """The last output that a carry stands for."""
        return carry

    def step(self, x: Tensor, carry: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """One step: ``x [B, in_dim]``, ``carry [B, out_dim]``, ``reset [B]`` bool."""
        before = carry.masked_fill(reset.unsqueeze(-1), 0)
        u = torch.lerp(before, torch.tanh(self.input(x)), torch.sigmoid(self.leak_logit))
        return u, u
