"""GRU in blocks: the recurrent cell of DreamerV3 since 2024 (danijar/dreamerv3 e3f0224).

The belief u is cut into g blocks that see each other only through a narrow layer ``b``::

    b  = act(norm(W_b u))                                                      [B, H]
    h  = act(norm(W_h [u_k, b, x] for each block k))                           [B, U]
    r, c, z = W_g h_k for each block k                                         [B, U] each
    u' = σ(z-1) tanh(σ(r) c) + (1 - σ(z-1)) u

``W_h`` is kept as block weights ``[g, U/g + H + D, U/g]``, rows in the order ``u_k, b, x``. All
blocks read the same ``b`` and ``x``; those rows are laid side by side to one dense matrix, once
for a whole loop, so that nothing is copied g times. :meth:`BlockGRU.bind` does so, and takes
the product with whatever part of the input is known ahead out of the loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wmkit import fast
from wmkit.backbones.base import IN_KEYS, OUT_KEYS, Keys, Loop, RecurrentCell
from wmkit.errors import ConfigError
from wmkit.nn import STYLE_2024, BlockLinear, DenseNormAct, LayerStyle


class BlockGRU(RecurrentCell):
    """The recurrent cell of DreamerV3 since 2024.

    Args:
        in_dim: input width D. In DreamerV3 an input is two layers of width H side by side, one
            over the state and one over the action.
        out_dim: state width U.
        blocks: how many blocks g; divides ``out_dim``.
        hidden: width H of the layer through which blocks see each other; half of ``in_dim`` if
            not given, as in DreamerV3.
        style: norm, activation and initialisation of that layer and of h.
        learned_initial: see :class:`~wmkit.backbones.base.RecurrentCell`.
        in_keys: see :class:`~wmkit.backbones.base.SequenceModel`.
        out_keys: see :class:`~wmkit.backbones.base.SequenceModel`.

    Raises:
        ConfigError: ``blocks`` does not divide ``out_dim``.

    >>> gru = BlockGRU(6, 16, blocks=4)
    >>> u, carry = gru.step(torch.zeros(2, 6), gru.initial(2), torch.tensor([True, False]))
    >>> u.shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        blocks: int = 8,
        hidden: int | None = None,
        style: LayerStyle = STYLE_2024,
        learned_initial: bool = False,
        in_keys: Keys = IN_KEYS,
        out_keys: Keys = OUT_KEYS,
    ) -> None:
        super().__init__(in_dim, out_dim, learned_initial=learned_initial, in_keys=in_keys, out_keys=out_keys)
        if blocks < 1 or out_dim % blocks:
            raise ConfigError(
                f"block_gru of width {out_dim} cannot be cut into {blocks} equal blocks: wanted a divisor "
                "of the belief's width; change blocks or deter"
            )
        hidden = max(in_dim // 2, 1) if hidden is None else hidden
        self.blocks, self.style = blocks, style
        self.belief_in = DenseNormAct(out_dim, hidden, style)
        self.hidden = BlockLinear(out_dim + blocks * (hidden + in_dim), out_dim, blocks)
        self.norm = style.make_norm(out_dim)
        self.gates = BlockLinear(out_dim, 3 * out_dim, blocks)  # per block: reset, candidate, update

    def bind(self, known: int = 0, tokens: int = 1) -> BlockGRULoop:
        """See :meth:`SequenceModel.bind <wmkit.backbones.base.SequenceModel.bind>`."""
        width = self.out_dim // self.blocks
        own, shared = self.hidden.weight.split([width, self.hidden.weight.shape[1] - width], 1)
        dense = shared.transpose(0, 1).reshape(-1, self.out_dim)  # [H + D, U]
        step, ahead = dense.split([len(dense) - known, known])
        return BlockGRULoop(self, torch.tanh(self.start), own, step.t(), ahead.t())

    def cell(self, x: Tensor, belief: Tensor) -> Tensor:
        """One step without reset."""
        return self.bind().step(x, belief)[0]


@dataclass(frozen=True)
class BlockGRULoop(Loop):
    """A :class:`BlockGRU` with its weights laid out for a time loop.

    It is a value of the loop that asked for it (:meth:`BlockGRU.bind`), good until the weights
    change: gradients of the cut weights are then put together once instead of at each step.

    Attributes:
        model: whose weights these are.
        start: ``[U]`` belief after a reset.
        own: weight ``[g, U/g, U/g]`` of the hidden layer for a block's own belief.
        shared: weight ``[U, H + D - K]`` for what all blocks read at a step.
        known: weight ``[U, K]`` for what all blocks read and is known ahead.

    >>> gru = BlockGRU(6, 16)
    >>> x, reset = torch.randn(2, 5, 6), torch.zeros(2, dtype=torch.bool)
    >>> loop = gru.bind(known=4)
    >>> ahead = loop.ahead(x[..., 2:])  # all five steps at once
    >>> u, _ = loop.step(x[:, 0, :2], gru.initial(2), reset, ahead[:, 0])
    >>> torch.allclose(u, gru.step(x[:, 0], gru.initial(2), reset)[0], atol=1e-6)
    True
    """

    start: Tensor
    own: Tensor
    shared: Tensor
    known: Tensor

    def ahead(self, x: Tensor) -> Tensor:
        """Share of the last K columns ``[*B, K]`` of inputs in the hidden layer: ``[*B, U]``, with bias."""
        return fast.linear(x, self.known, self.model.hidden.bias)

    def step(
        self, x: Tensor, carry: Tensor, reset: Tensor | None = None, ahead: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step: ``x [B, D - K]``, ``reset [B]`` bool, ``ahead [B, U]`` -> output and carry ``[B, U]``."""
        if reset is not None:
            carry = torch.where(reset.unsqueeze(-1), self.start, carry)
        belief = self.cell(x, carry, self.model.hidden.bias if ahead is None else ahead)
        return belief, belief

    def cell(self, x: Tensor, belief: Tensor, ahead: Tensor) -> Tensor:
        """One step without reset."""
        gru: BlockGRU = self.model
        shared = fast.linear(torch.cat([gru.belief_in(belief), x], -1), self.shared)  # [B, U]
        own = fast.block_product(belief, self.own)  # [g, B, U/g]
        hidden = gru.style.activate(gru.norm(fast.add_blocks(shared, ahead, own)), fresh=True)
        return fast.gated_update(hidden, gru.gates.weight, gru.gates.bias, belief)
