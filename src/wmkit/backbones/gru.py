"""The ordinary GRU of Cho et al. (2014, arXiv:1406.1078), as PyTorch computes it."""

from __future__ import annotations

from torch import Tensor, nn

from wmkit.backbones.base import IN_KEYS, OUT_KEYS, Keys, RecurrentCell


class GRU(RecurrentCell):
    """A thin coat around :class:`torch.nn.GRUCell`.

    Args:
        in_dim: input width D.
        out_dim: state width U.
        learned_initial: see :class:`~wmkit.backbones.base.RecurrentCell`.
        in_keys: see :class:`~wmkit.backbones.base.SequenceModel`.
        out_keys: see :class:`~wmkit.backbones.base.SequenceModel`.

    >>> import torch
    >>> gru = GRU(3, 8)
    >>> gru.scan(torch.zeros(2, 5, 3))[0].shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        learned_initial: bool = False,
        in_keys: Keys = IN_KEYS,
        out_keys: Keys = OUT_KEYS,
    ) -> None:
        super().__init__(in_dim, out_dim, learned_initial=learned_initial, in_keys=in_keys, out_keys=out_keys)
        self.gru = nn.GRUCell(in_dim, out_dim)

    def cell(self, x: Tensor, belief: Tensor) -> Tensor:
        """One step without reset."""
        return self.gru(x, belief)
