"""Simplified state-space layers, S5 (Smith et al. 2023, arXiv:2208.04933), as in S4WM (arXiv:2307.02064).

One linear system of P states per layer, many inputs to many outputs, diagonal and complex::

    x_t = Λ̄ x_{t-1} + B̄ u_t          y_t = Re(C x_t) + D u_t          Λ̄, B̄ from Λ, B, Δ

States come in conjugate pairs, of which one is kept: C holds the factor two. The real part of Λ is
``-exp(α)``, so that no update makes a rollout unstable. Each layer around it, with a norm in front::

    x = x + act(S5(LN x))            act: gelu(y), or gelu(y) σ(W gelu(y)) as a half-GLU
    x = x + W_2 gelu(W_1 LN x)       with ``hidden``

A window is scanned without a loop over time, and a step costs the same at any age: memory has no
window. The paper trains the systems' parameters (Λ, B, Δ) without weight decay and often at a lower
learning rate; :meth:`S5.system_parameters` names them for optimisers that do so. Those of wmkit's pages
make no such groups: TWM's weight decay of 1e-6 falls on Λ, B and Δ as on every weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmkit.backbones.base import (
    IN_KEYS,
    OUT_KEYS,
    Keys,
    Loop,
    SequenceModel,
    check_input,
    joined,
    resets,
    stack,
)
from wmkit.errors import ConfigError
from wmkit.functional import discretise, hippo_normal, linear_scan
from wmkit.nn import Linear
from wmkit.nn.attention import FeedForward


class S5Carry(NamedTuple):
    """The memory of the layers.

    Attributes:
        states: one ``[B, P/2, 2]`` per layer, real and imaginary parts.
        output: ``[B, U]``, the last.
    """

    states: tuple[Tensor, ...]
    output: Tensor


class S5(SequenceModel):
    """A stack of S5 layers.

    Args:
        in_dim: input width D; projected linearly where it is not ``width``.
        out_dim: output width U; projected linearly where it is not ``width``.
        width: between the layers; ``out_dim`` if not given.
        layers: how many.
        states: P of each layer, even, counting both of each conjugate pair.
        blocks: of the initialisation: each has the eigenvalues of a HiPPO matrix of size P / blocks.
        hidden: width of dense layers after each system; none without.
        discretisation: ``"zoh"`` or ``"bilinear"``.
        half_glu: gate each layer's output.
        delta: range that the steps Δ are drawn from; the longest memory at first is about 2 / Δ steps.
        dropout: on each layer's output.
        scan_form: see :func:`~wmkit.functional.linear_scan`.
        in_keys: see :class:`~wmkit.backbones.base.SequenceModel`.
        out_keys: see :class:`~wmkit.backbones.base.SequenceModel`.

    Raises:
        ConfigError: ``states`` cannot be cut into blocks of conjugate pairs; an unknown discretisation; a
            range of steps that is none; no layers.

    >>> model = S5(3, 8)
    >>> u, carry = model.scan(torch.randn(2, 5, 3))
    >>> u.shape, carry.states[0].shape
    (torch.Size([2, 5, 8]), torch.Size([2, 32, 2]))
    """

    layers: Any  # of S5Layer

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        width: int | None = None,
        layers: int = 2,
        states: int = 64,
        blocks: int = 1,
        hidden: int | None = None,
        discretisation: str = "zoh",
        half_glu: bool = True,
        delta: Sequence[float] = (1e-3, 1e-1),
        dropout: float = 0.0,
        scan_form: str = "doubling",
        in_keys: Keys = IN_KEYS,
        out_keys: Keys = OUT_KEYS,
    ) -> None:
        super().__init__(in_dim, out_dim, in_keys=in_keys, out_keys=out_keys)
        width = out_dim if width is None else width
        self.width, self.scan_form = width, scan_form
        self.project_in = nn.Identity() if in_dim == width else Linear(in_dim, width)
        self.project_out = nn.Identity() if out_dim == width else Linear(width, out_dim)
        self.layers = stack(
            layers,
            lambda: S5Layer(
                width,
                states,
                blocks=blocks,
                hidden=hidden,
                discretisation=discretisation,
                half_glu=half_glu,
                delta=delta,
                dropout=dropout,
            ),
        )

    def system_parameters(self) -> list[nn.Parameter]:
        """Λ, B and Δ of every layer, should an optimiser treat them apart; wmkit's schedules do not."""
        names = ("log_decay", "frequency", "log_delta", "write.weight")
        return [p for layer in self.layers for name, p in layer.named_parameters() if name in names]

    def initial(self, batch: int) -> S5Carry:
        """Zeros; see :meth:`SequenceModel.initial <wmkit.backbones.base.SequenceModel.initial>`."""
        like = self.layers[0].log_decay
        states = like.new_zeros(1, len(like), 2).expand(batch, -1, -1)
        return S5Carry((states,) * len(self.layers), like.new_zeros(1, self.out_dim).expand(batch, -1))

    def output(self, carry: S5Carry) -> Tensor:
        """The last output ``[B, U]``; zeros before the first."""
        return carry.output

    def step(self, x: Tensor, carry: S5Carry, reset: Tensor) -> tuple[Tensor, S5Carry]:
        """See :meth:`SequenceModel.step <wmkit.backbones.base.SequenceModel.step>`."""
        check_input(self, x, carry, reset, 2)
        return self.bind().step(x, carry, reset)

    def scan(
        self, x: Tensor, carry: S5Carry | None = None, reset: Tensor | None = None, read: slice | None = None
    ) -> tuple[Tensor, S5Carry]:
        """See :meth:`SequenceModel.scan <wmkit.backbones.base.SequenceModel.scan>`."""
        check_input(self, x, carry, reset, 3)
        return self.bind().scan(x, carry, reset, read)

    def bind(self, known: int = 0, tokens: int = 1) -> S5Loop:
        """See :meth:`SequenceModel.bind <wmkit.backbones.base.SequenceModel.bind>`."""
        return S5Loop(self, [layer.discretised() for layer in self.layers])


@dataclass(frozen=True)
class S5Loop(Loop):
    """An :class:`S5` ready for a time loop, its systems discretised.

    Attributes:
        model: whose weights these are.
        systems: Λ̄ and the factor on B of each layer.

    >>> model, reset = S5(6, 16), torch.zeros(2, dtype=torch.bool)
    >>> x, loop = torch.randn(2, 6), model.bind(known=4)
    >>> u, _ = loop.step(x[:, :2], model.initial(2), reset, loop.ahead(x[:, 2:]))
    >>> torch.allclose(u, model.step(x, model.initial(2), reset)[0])
    True
    """

    systems: list[tuple[Tensor, Tensor]]

    def step(
        self, x: Tensor, carry: S5Carry, reset: Tensor | None = None, ahead: Tensor | None = None
    ) -> tuple[Tensor, S5Carry]:
        """One step: ``x [B, D - known]``, ``reset [B]``, ``ahead [B, known]`` -> ``u [B, U]`` and carry."""
        model = self.model
        x = model.project_in(joined(x, ahead))
        states, forget = [], resets(reset, x).view(-1, 1, 1)
        for layer, (decay, factor), state in zip(model.layers, self.systems, carry.states, strict=True):
            before = torch.view_as_complex(state.masked_fill(forget, 0))
            normed = layer.norm(x)
            after = decay * before + factor * layer.written(normed)  # [B, P/2]
            x = layer.read_out(x, normed, after)
            states.append(torch.view_as_real(after))
        u = model.project_out(x)
        return u, S5Carry(tuple(states), u)

    def scan(
        self, x: Tensor, carry: S5Carry | None = None, reset: Tensor | None = None, read: slice | None = None
    ) -> tuple[Tensor, S5Carry]:
        """See :meth:`S5.scan`; there is no loop over time."""
        model, states, reset = self.model, [], resets(reset, x)
        carry = model.initial(len(x)) if carry is None else carry
        x = model.project_in(x)
        for layer, (decay, factor), state in zip(model.layers, self.systems, carry.states, strict=True):
            normed = layer.norm(x)
            inputs = factor * layer.written(normed)  # [B, T, P/2]
            visited = linear_scan(decay, inputs, torch.view_as_complex(state), reset, model.scan_form)
            x = layer.read_out(x, normed, visited)
            states.append(torch.view_as_real(visited[:, -1]))
        u = model.project_out(x)
        return u if read is None else u[:, read], S5Carry(tuple(states), u[:, -1])


class S5Layer(nn.Module):
    """Norm, one linear system, activation, and a way around; after them dense layers, if wanted.

    Args:
        width: H of input and output.
        states: P, counting both of each conjugate pair.
        blocks: see :class:`S5`.
        hidden: see :class:`S5`.
        discretisation: see :class:`S5`.
        half_glu: see :class:`S5`.
        delta: see :class:`S5`.
        dropout: see :class:`S5`.
    """

    def __init__(
        self,
        width: int,
        states: int,
        *,
        blocks: int = 1,
        hidden: int | None = None,
        discretisation: str = "zoh",
        half_glu: bool = True,
        delta: Sequence[float] = (1e-3, 1e-1),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if blocks < 1 or states < 2 or states % (2 * blocks):
            raise ConfigError(
                f"s5 with {states} states cannot be cut into {blocks} blocks of conjugate pairs: wanted a "
                "multiple of twice the blocks; change states or blocks"
            )
        if len(delta) != 2 or not 0 < delta[0] <= delta[1] < math.inf:
            raise ConfigError(
                f"s5 draws its steps from {list(delta)}: wanted two positive numbers, the smaller first; "
                "correct delta"
            )
        self.discretisation = discretisation
        size = states // blocks
        eigenvalues, vectors = hippo_normal(size)
        kept = slice(size // 2)  # one of each pair
        one = eigenvalues[kept].repeat(blocks)
        self.log_decay = nn.Parameter((-one.real).log().float())  # α
        self.frequency = nn.Parameter(one.imag.float())
        low, high = (torch.tensor(float(end)).log() for end in delta)
        self.log_delta = nn.Parameter(low + (high - low) * torch.rand(states // 2))
        # Real matrices over [real part, imaginary part] of every state.
        self.write = Linear(width, states, bias=False)  # B
        self.read = Linear(states, width, bias=False)  # C, and the factor two of the pairs
        with torch.no_grad():
            real = torch.randn(blocks, size, width, dtype=torch.float64) * width**-0.5
            rotated = (vectors.mH @ real.to(vectors.dtype))[:, kept].reshape(-1, width)  # [P/2, H]
            self.write.weight.copy_(torch.view_as_real(rotated).permute(0, 2, 1).reshape(states, width))
            self.read.weight.normal_(std=2 * (2 * states) ** -0.5)
        self.through = nn.Parameter(torch.randn(width))  # D
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.gate = Linear(width, width) if half_glu else None
        self.dense = None
        if hidden is not None:
            self.dense = nn.Sequential(nn.LayerNorm(width), FeedForward(width, hidden, "gelu", dropout))
        discretise(one.to(torch.complex64), self.log_delta.detach().exp(), discretisation)  # knows the name

    def discretised(self) -> tuple[Tensor, Tensor]:
        """Λ̄ and the factor on B, ``[P/2]`` complex each."""
        eigenvalues = torch.complex(-self.log_decay.exp(), self.frequency)
        return discretise(eigenvalues, self.log_delta.exp(), self.discretisation)

    def written(self, normed: Tensor) -> Tensor:
        """``B u``, before discretisation, of normed inputs: ``[*B, H] -> [*B, P/2]`` complex."""
        return torch.view_as_complex(self.write(normed).unflatten(-1, (-1, 2)))

    def read_out(self, x: Tensor, normed: Tensor, states: Tensor) -> Tensor:
        """The layer's output ``[*B, H]`` from inputs, before and after the norm, and states."""
        y = self.read(torch.view_as_real(states).flatten(-2)) + self.through * normed
        y = F.gelu(y)
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(y))
        x = x + self.dropout(y)
        return x if self.dense is None else x + self.dropout(self.dense(x))
