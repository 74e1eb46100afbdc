"""Diagonal linear state-space models: initialisation, discretisation, scans with resets.

S5 (Smith et al. 2023, arXiv:2208.04933). A complex diagonal system ``x' = Λ x + B u`` is sampled at a
step Δ and becomes ``x_t = Λ̄ x_{t-1} + B̄ u_t``; B̄ is B times one factor per state. A scan computes
all states of a window without a loop over time; where a reset stands, what came before is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wmkit.errors import ConfigError
from wmkit.functional.shapes import check_shape

DISCRETISATIONS = ("zoh", "bilinear")
SCANS = ("doubling", "masked_dual", "loop")


def hippo_normal(size: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the normal part of the HiPPO-LegS matrix (S5, appendix B.1).

    Args:
        size: N.

    Returns:
        ``[N]`` complex128 by rising imaginary part, the first half of each conjugate pair first, every
        real part ``-1/2``; and the unitary ``[N, N]`` complex128 whose columns are the eigenvectors.

    >>> eigenvalues, vectors = hippo_normal(4)
    >>> eigenvalues.real
    tensor([-0.5000, -0.5000, -0.5000, -0.5000], dtype=torch.float64)
    >>> torch.allclose(eigenvalues[:2].conj(), eigenvalues[2:].flip(0))
    True
    """
    index = torch.arange(size, dtype=torch.float64)
    root = (2 * index + 1).sqrt()
    legs = -torch.tril(torch.outer(root, root), -1) - torch.diag(index + 1)
    half = (index + 0.5).sqrt()
    normal = legs + torch.outer(half, half)  # -I/2 plus a skew-symmetric matrix
    imaginary, vectors = torch.linalg.eigh(normal.to(torch.complex128) / 1j)
    return torch.complex(normal.diagonal().mean().expand(size), imaginary), vectors


def discretise(eigenvalues: Tensor, delta: Tensor, method: str = "zoh") -> tuple[Tensor, Tensor]:
    """Sample a diagonal system at a step.

    Args:
        eigenvalues: ``[P]`` complex, Λ with negative real parts.
        delta: ``[P]`` real and positive, the step Δ in the unit of time of Λ.
        method: ``"zoh"`` (the input holds still between samples) or ``"bilinear"`` (trapezium rule). They
            differ much at high frequencies: weights are good for the one they were trained with.

    Returns:
        Λ̄ and the factor that turns B into B̄, ``[P]`` complex each.

    Raises:
        ConfigError: an unknown method.

    >>> decay, factor = discretise(torch.tensor([-1.0 + 0j]), torch.tensor([0.5]))
    >>> decay.real, factor.real  # e^(-1/2), 1 - e^(-1/2)
    (tensor([0.6065]), tensor([0.3935]))
    """
    check_shape("discretise", "delta", delta, eigenvalues.shape, "[P]")
    z = eigenvalues * delta
    if method == "zoh":
        growth = torch.complex(*_expm1(z.real, z.imag))
        return growth + 1, growth / eigenvalues
    if method == "bilinear":
        inverse = 1 / (1 - z / 2)
        return inverse * (1 + z / 2), inverse * delta
    raise ConfigError(
        f"discretisation {method!r} is unknown: wanted one of {', '.join(DISCRETISATIONS)}; "
        "correct the option discretisation"
    )


def _expm1(real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of ``exp(z) - 1``, exact for small z too."""
    turned = -2 * (imaginary / 2).sin().square()  # cos - 1
    return torch.expm1(real) * imaginary.cos() + turned, real.exp() * imaginary.sin()


def linear_scan(
    decay: Tensor, inputs: Tensor, initial: Tensor, reset: Tensor, form: str = "doubling"
) -> Tensor:
    """All states of ``x_t = λ x_{t-1} + b_t`` (``x_t = b_t`` at a reset).

    Args:
        decay: ``[P]`` λ, real or complex.
        inputs: ``[B, T, P]`` b.
        initial: ``[B, P]`` x before the window.
        reset: ``[B, T]`` bool.
        form: ``"doubling"`` sums over spans of 1, 2, 4, ... steps, ``O(T log T)`` work;
            ``"loop"`` goes step by step. ``"masked_dual"`` weighs every earlier input at once, without
            recursion: a check on the others, for short windows. Its ``O(B T² P)`` work and memory are as
            fast as doubling at 16 steps, and some fifty times slower on a CPU at 128 (16 rows, 32 states).

    Returns:
        ``[B, T, P]`` x.

    Raises:
        ConfigError: an unknown form.

    >>> x = linear_scan(torch.tensor([0.5]), torch.ones(1, 4, 1), torch.tensor([[4.0]]),
    ...                 torch.tensor([[False, False, True, False]]))
    >>> x.flatten()
    tensor([3.0000, 2.5000, 1.0000, 1.5000])
    """
    batch, steps, _ = inputs.shape
    check_shape("linear_scan", "initial", initial, (batch, inputs.shape[2]), "[B, P]")
    check_shape("linear_scan", "reset", reset, (batch, steps), "[B, T]")
    check_shape("linear_scan", "decay", decay, inputs.shape[2:], "[P]")
    if form == "doubling":
        return _doubling(decay, inputs, initial, reset)
    if form == "masked_dual":
        return _masked_dual(decay, inputs, initial, reset)
    if form == "loop":
        return _loop(decay, inputs, initial, reset)
    raise ConfigError(
        f"scan {form!r} is unknown: wanted one of {', '.join(SCANS)}; correct the option scan_form"
    )


def _loop(decay: Tensor, inputs: Tensor, initial: Tensor, reset: Tensor) -> Tensor:
    x, states = initial, []
    for b, reset_t in zip(inputs.unbind(1), reset.unbind(1), strict=True):
        x = decay * x.masked_fill(reset_t.unsqueeze(-1), 0) + b
        states.append(x)
    return torch.stack(states, 1)


def _doubling(decay: Tensor, inputs: Tensor, initial: Tensor, reset: Tensor) -> Tensor:
    """After a round each x holds the inputs of the last 2, 4, 8, ... steps of its segment."""
    alive = ~reset  # [B, T], no reset within the span that ends here
    first = inputs[:, :1] + (decay * initial * alive[:, :1]).unsqueeze(1)
    x = torch.cat([first, inputs[:, 1:]], 1)
    span = 1
    while span < x.shape[1]:
        earlier = decay * x[:, :-span] * alive[:, span:].unsqueeze(-1)
        x = torch.cat([x[:, :span], x[:, span:] + earlier], 1)
        alive = torch.cat([alive[:, :span], alive[:, span:] & alive[:, :-span]], 1)
        decay, span = decay * decay, 2 * span
    return x


def _masked_dual(decay: Tensor, inputs: Tensor, initial: Tensor, reset: Tensor) -> Tensor:
    """``x_t = Σ_s [same segment, s ≤ t] λ^(t-s) b_s + [no reset yet] λ^(t+1) x_0``.

    The first sum holds ``[B, T, T, P]``.
    """
    length = inputs.shape[1]
    one = torch.ones_like(decay).unsqueeze(0)
    powers = torch.cat([one, decay.expand(length, -1)]).cumprod(0)  # [T + 1, P], λ^0 ... λ^T
    segment = reset.cumsum(1)  # [B, T]
    same = (segment.unsqueeze(2) == segment.unsqueeze(1)).tril()  # [B, T, T]
    step = torch.arange(length, device=reset.device)
    weight = powers[(step.unsqueeze(1) - step).clamp(min=0)]  # [T, T, P]
    x = torch.einsum("bts,tsp,bsp->btp", same.to(inputs.dtype), weight, inputs)
    return x + torch.einsum("bt,tp,bp->btp", (segment == 0).to(inputs.dtype), powers[1:], initial)
