"""GRU with LayerNorm over its gates (DreamerV2 and DreamerV3 of 2023).

``r, c, u = LN(W [x, h])``; the reset gate acts on the candidate's pre-activation, and the
update gate starts nearly closed: ``h' = σ(u-1) tanh(σ(r) c) + (1 - σ(u-1)) h``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wmkit.backbones.base import IN_KEYS, OUT_KEYS, Keys, RecurrentCell
from wmkit.nn import Linear, init_hidden


class LayerNormGRU(RecurrentCell):
    """The recurrent cell of DreamerV3 (2023) and LS-Imagine.

    Args:
        in_dim: input width D.
        out_dim: state width U.
        learned_initial: see :class:`~wmkit.backbones.base.RecurrentCell`.
        norm_eps: epsilon of the LayerNorm (PyTorch's default in the 2023 PyTorch code).
        bias: a learned constant under the norm.
        in_keys: see :class:`~wmkit.backbones.base.SequenceModel`.
        out_keys: see :class:`~wmkit.backbones.base.SequenceModel`.

    >>> gru = LayerNormGRU(3, 8)
    >>> u, carry = gru.step(torch.zeros(2, 3), gru.initial(2), torch.tensor([True, False]))
    >>> u.shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        learned_initial: bool = False,
        norm_eps: float = 1e-3,
        bias: bool = False,
        in_keys: Keys = IN_KEYS,
        out_keys: Keys = OUT_KEYS,
    ) -> None:
        super().__init__(in_dim, out_dim, learned_initial=learned_initial, in_keys=in_keys, out_keys=out_keys)
        # Rows: reset, candidate, update; columns: input, then state.
        self.linear: nn.Linear = init_hidden(Linear(in_dim + out_dim, 3 * out_dim, bias=bias))
        self.norm = nn.LayerNorm(3 * out_dim, eps=norm_eps)

    def cell(self, x: Tensor, belief: Tensor) -> Tensor:
        """One step without reset."""
        gates = self.norm(self.linear(torch.cat([x, belief], -1)))  # [B, 3U]
        reset, candidate, update = gates.to(belief.dtype).chunk(3, -1)  # autocast may have lowered them
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(belief, candidate, torch.sigmoid(update - 1))


class BiasedLayerNormGRU(LayerNormGRU):
    """The recurrent cell of DreamerV2 (arXiv:2010.02193): a bias under the norm, and zeros for a start.

    Args:
        in_dim: input width D.
        out_dim: state width U.
        norm_eps: epsilon of the LayerNorm.
        in_keys: see :class:`~wmkit.backbones.base.SequenceModel`.
        out_keys: see :class:`~wmkit.backbones.base.SequenceModel`.

    >>> BiasedLayerNormGRU(3, 8).initial(1).abs().max().item()
    0.0
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        norm_eps: float = 1e-3,
        in_keys: Keys = IN_KEYS,
        out_keys: Keys = OUT_KEYS,
    ) -> None:
        super().__init__(in_dim, out_dim, norm_eps=norm_eps, bias=True, in_keys=in_keys, out_keys=out_keys)
