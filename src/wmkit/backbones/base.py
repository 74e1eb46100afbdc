"""The contract of every sequence model.

Four laws hold for each registered backbone, with resets anywhere (one parametrised test):

1. ``scan`` equals a loop over ``step``.
2. Nothing before a reset influences anything after it, gradients included.
3. ``scan(x[:, :k])`` and then ``scan(x[:, k:])`` equal ``scan(x)``.
4. Causality: no output depends on a later input.

A carry is a value (any pytree of tensors with a leading batch dimension). It belongs to a
rollout and is never stored on the module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from wmkit.errors import ConfigError

Carry = Any


@runtime_checkable
class SequenceModel(Protocol):
    """What dynamics ask of a backbone.

    Attributes:
        in_dim: width D of an input.
        out_dim: width U of an output.
        carry_is_output: the carry is exactly the last output, so that a stored output can
            be resumed from (true of plain recurrent cells).
    """

    in_dim: int
    out_dim: int
    carry_is_output: bool

    def initial(self, batch: int) -> Carry:
        """Carry of ``batch`` rollouts that have seen nothing."""
        ...

    def output(self, carry: Carry) -> Tensor:
        """The last output ``[B, U]`` that led to this carry (initial: what stands for it)."""
        ...

    def step(self, x: Tensor, carry: Carry, reset: Tensor) -> tuple[Tensor, Carry]:
        """One step: ``x [B, D]``, ``reset [B]`` bool -> ``u [B, U]`` and the new carry."""
        ...

    def scan(self, x: Tensor, carry: Carry, reset: Tensor) -> tuple[Tensor, Carry]:
        """Many steps: ``x [B, T, D]``, ``reset [B, T]`` bool -> ``u [B, T, U]`` and the last carry."""
        ...


class RecurrentCell(nn.Module):
    """Base of cells whose carry is their output: the learned start, and ``scan`` as a loop.

    A subclass implements :meth:`cell`.

    Args:
        in_dim: input width D.
        out_dim: state width U.
        learned_initial: start from ``tanh`` of a learned vector (zero at first) instead of zeros.
    """

    carry_is_output = True

    def __init__(self, in_dim: int, out_dim: int, *, learned_initial: bool = False) -> None:
        super().__init__()
        self.in_dim, self.out_dim = in_dim, out_dim
        start = torch.zeros(out_dim)
        if learned_initial:
            self.start: Tensor = nn.Parameter(start)
        else:
            self.register_buffer("start", start, persistent=False)

    def cell(self, x: Tensor, belief: Tensor) -> Tensor:
        """``x [B, D]``, ``belief [B, U]`` -> the next belief ``[B, U]``."""
        raise NotImplementedError

    def initial(self, batch: int) -> Tensor:
        """See :meth:`SequenceModel.initial`."""
        return torch.tanh(self.start).expand(batch, -1)

    def output(self, carry: Tensor) -> Tensor:
        """The carry itself."""
        return carry

    def step(self, x: Tensor, carry: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`SequenceModel.step`."""
        belief = self.cell(x, torch.where(reset.unsqueeze(-1), torch.tanh(self.start), carry))
        return belief, belief

    def scan(self, x: Tensor, carry: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`SequenceModel.scan`."""
        outputs = []
        for t in range(x.shape[1]):
            u, carry = self.step(x[:, t], carry, reset[:, t])
            outputs.append(u)
        return torch.stack(outputs, 1), carry


def stack(count: int, make: Callable[[], nn.Module]) -> nn.ModuleList:
    """``count`` layers, each made by itself.

    Raises:
        ConfigError: not one layer.

    >>> len(stack(2, nn.Identity))
    2
    """
    if count < 1:
        raise ConfigError(f"the sequence model has {count} layers: wanted 1 or more; set layers")
    return nn.ModuleList(make() for _ in range(count))


def resets(reset: Tensor | None, x: Tensor) -> Tensor:
    """``reset``, or for none a ``[B]`` bool for ``x [B, ...]`` in which no row starts an episode."""
    return torch.zeros(x.shape[0], dtype=torch.bool, device=x.device) if reset is None else reset
