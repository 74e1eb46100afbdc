"""The ordinary GRU of Cho et al. (2014, arXiv:1406.1078), as PyTorch computes it."""

from __future__ import annotations

from torch import Tensor, nn

from wmkit.backbones.base import RecurrentCell


class GRU(RecurrentCell):
    """A thin coat around :class:`torch.nn.GRUCell`.

    Args:
        in_dim: input width D.
        out_dim: state width U.
        learned_initial: see :class:`~wmkit.backbones.base.RecurrentCell`.

    >>> import torch
    >>> gru = GRU(3, 8)
    >>> gru.scan(torch.zeros(2, 5, 3), gru.initial(2), torch.zeros(2, 5, dtype=torch.bool))[0].shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, in_dim: int, out_dim: int, *, learned_initial: bool = False) -> None:
        super().__init__(in_dim, out_dim, learned_initial=learned_initial)
        self.gru = nn.GRUCell(in_dim, out_dim)

    def cell(self, x: Tensor, belief: Tensor) -> Tensor:
        """One step without reset."""
        return self.gru(x, belief)
