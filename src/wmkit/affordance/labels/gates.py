"""When a score is paid as intrinsic reward.

LS-Imagine, arXiv:2410.03618, section 3.2, and its released code. A *score* says
how well the current view suits the task and lies in [0, 1]. A *gate* decides how much of it
is paid on arriving at a record. All gates are pure: the memory of an episode (float32 ``[E]``,
one number per environment stream) goes in and comes out, so that the same object serves a
live environment, a batch of them, and sequences drawn from replay.

    gate         paid on arriving at t                               memory
    record       s_t if s_t beats the episode's record, else 0       the record, 0 at reset
    dense        s_t (the paper)                                     none
    potential    gamma * s_t - s_{t-1}, 0 at reset                   s_{t-1}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Gate(Protocol):
    """Turns scores into payments, one step of E streams at a time."""

    def __call__(
        self, score: Tensor, memory: Tensor, is_init: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pay for the records just arrived at; all ``[E]``; returns payment and the new memory."""
        ...

    def zoomed(
        self, zoomed: Tensor, score: Tensor, memory: Tensor, zoomed_memory: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pay for the zoomed views of the same records; returns payment and the new zoomed memory.

        Where ``valid`` is false there is no view: it pays 0 and leaves the memory as it was.
        """
        ...


@dataclass(frozen=True)
class RecordGate:
    """Pay the whole score (not the increment) when it beats the episode's record: the released rule.

    The record starts at 0, so the reset frame is judged as well. A zoomed view is paid when it beats
    both the record of real views, the current one included, and that of zoomed views.

    >>> gate, memory = RecordGate(), torch.zeros(1)
    >>> no = torch.zeros(1, dtype=torch.bool)
    >>> for score in (0.2, 0.1, 0.3):
    ...     paid, memory = gate(torch.tensor([score]), memory, no, no)
    ...     print(round(paid.item(), 1))
    0.2
    0.0
    0.3
    """

    def __call__(
        self, score: Tensor, memory: Tensor, is_init: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All ``[E]``; see :class:`Gate`."""
        memory = memory.masked_fill(is_init, 0.0)
        return score.masked_fill(score <= memory, 0.0), torch.maximum(memory, score)

    def zoomed(
        self, zoomed: Tensor, score: Tensor, memory: Tensor, zoomed_memory: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All ``[E]``; ``memory`` is the record *after* the current view."""
        fires = valid & (zoomed > memory) & (zoomed > zoomed_memory)
        return zoomed.masked_fill(~fires, 0.0), torch.where(fires, zoomed, zoomed_memory)


@dataclass(frozen=True)
class DenseGate:
    """Pay every score: the paper's rule."""

    def __call__(
        self, score: Tensor, memory: Tensor, is_init: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All ``[E]``; see :class:`Gate`."""
        return score, memory

    def zoomed(
        self, zoomed: Tensor, score: Tensor, memory: Tensor, zoomed_memory: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All ``[E]``."""
        return zoomed.masked_fill(~valid, 0.0), zoomed_memory


@dataclass(frozen=True)
class PotentialGate:
    """Potential-based shaping (Ng, Harada & Russell 1999) with the score as potential.

    Pays ``gamma * phi(s_t) - phi(s_{t-1})``, 0 on the first record, and takes ``phi = 0`` at a true
    end (not at a time limit), which is what leaves the optimal policy unchanged in episodic tasks.
    The discounted sum over an episode telescopes to ``gamma^T phi(s_T) - phi(s_0)``. A zoomed view is
    paid ``gamma * phi(zoomed) - phi(s_t)``, as if it came one step after its own record.
    """

    gamma: float = 0.997

    def __call__(
        self, score: Tensor, memory: Tensor, is_init: Tensor, terminated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All ``[E]``; see :class:`Gate`."""
        potential = score.masked_fill(terminated, 0.0)
        return (self.gamma * potential - memory).masked_fill(is_init, 0.0), score

    def zoomed(
        self, zoomed: Tensor, score: Tensor, memory: Tensor, zoomed_memory: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All ``[E]``."""
        return (self.gamma * zoomed - score).masked_fill(~valid, 0.0), zoomed_memory
