"""What keeps embeddings from collapsing: normality, variance, covariance, cross-correlation.

Every one is a number that a joint-embedding model minimises beside its error of prediction, which alone is
smallest where all embeddings are equal.

===========================  =====================================================================
:func:`sigreg`               distance of one-dimensional projections from a standard normal
:func:`variance_hinge`       how far standard deviations lie below one
:func:`covariance_penalty`   squares off the diagonal of a covariance matrix
:func:`cross_correlation`    how far two views' correlation matrix is from the identity
===========================  =====================================================================
"""

from __future__ import annotations

import torch
from torch import Tensor

from wmkit.arguments import check_range
from wmkit.errors import SpecError
from wmkit.functional.shapes import check_equal


def epps_pulley(x: Tensor, *, nodes: int = 17, low: float = 0.0, high: float = 3.0) -> Tensor:
    """Squared distance of samples' characteristic function from that of a standard normal.

    ``Σ_k w_k exp(-t_k²/2) [(mean cos t_k x - exp(-t_k²/2))² + (mean sin t_k x)²]`` with trapezoid weights:
    an integral over [-high, high] (Epps and Pulley 1983). From ``low`` 0 on the half line stands for both.

    Args:
        x: ``[*B, N, M]``, N samples of each of M numbers.
        nodes: of the sum.
        low: first node, 0 or ``-high``.
        high: last node.

    Returns:
        ``[*B, M]``; not multiplied by N.

    >>> x = torch.linspace(-2, 2, 101)[:, None]
    >>> bool(epps_pulley(x) < epps_pulley(x + 1))
    True
    """
    check_range("nodes", nodes, 2)
    t = torch.linspace(low, high, nodes, device=x.device, dtype=x.dtype)
    step = (high - low) / (nodes - 1)
    weights = torch.full_like(t, step if low else 2 * step)
    weights[0] = weights[-1] = weights[0] / 2
    normal = torch.exp(-t.square() / 2)
    angle = x.unsqueeze(-1) * t  # [*B, N, M, K]
    error = (angle.cos().mean(-3) - normal).square() + angle.sin().mean(-3).square()
    return error @ (weights * normal)


def sigreg(z: Tensor, directions: Tensor, *, nodes: int = 17, limit: float = 3.0) -> Tensor:
    """Sketched isotropic Gaussian regularisation (LeJEPA, arXiv:2511.08544; LeWorldModel).

    Embeddings are projected on directions of unit length; the mean over directions and sets of N times the
    distance of the projections from a standard normal (:func:`epps_pulley`).

    Args:
        z: ``[*B, N, D]``, sets of N embeddings, e.g. one for each frame of a window.
        directions: ``[D, M]``, normalised here by column.
        nodes: of the integral.
        limit: of the integral.

    Returns:
        ``[]``.

    >>> _ = torch.manual_seed(0)
    >>> z, directions = torch.randn(4, 256, 8), torch.randn(8, 64)
    >>> bool(sigreg(z, directions) < sigreg(0.1 * z, directions))
    True
    """
    if directions.ndim != 2 or directions.shape[0] != z.shape[-1]:
        raise SpecError(
            f"sigreg got directions of shape {list(directions.shape)}: wanted [{z.shape[-1]}, M], a column "
            "for each; reshape them"
        )
    columns = directions / directions.norm(dim=0)
    return z.shape[-2] * epps_pulley(z @ columns, nodes=nodes, high=limit).mean()


def variance_hinge(x: Tensor, dim: int = 0, *, eps: float = 1e-4) -> Tensor:
    """``mean ReLU(1 - sqrt(var + eps))``, variances along ``dim`` (VICReg, arXiv:2105.04906, eq. 1).

    >>> variance_hinge(torch.tensor([[0.0, -9.0], [0.0, 9.0]]))
    tensor(0.4950)
    """
    return torch.relu(1 - torch.sqrt(x.var(dim) + eps)).mean()


def covariance_penalty(x: Tensor, *, centred: bool = False) -> Tensor:
    """Mean square of the covariances between two numbers (VICReg, arXiv:2105.04906, eq. 3-4).

    ``Σ_{i≠j} C_ij² / (D (D-1))``, the mean over sets. VICReg divides by D alone.

    Args:
        x: ``[*B, N, D]``, sets of N embeddings.
        centred: their mean is zero already, or is not to be taken off.

    Returns:
        ``[]``.

    >>> covariance_penalty(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    tensor(4.)
    """
    rows, width = x.shape[-2:]
    x = x if centred else x - x.mean(-2, keepdim=True)
    covariance = x.transpose(-1, -2) @ x / (rows - 1)
    diagonal = covariance.diagonal(dim1=-2, dim2=-1).square().sum(-1)
    return (covariance.square().sum((-2, -1)) - diagonal).mean() / (width * max(width - 1, 1))


def cross_correlation(x: Tensor, y: Tensor, off_diagonal: float = 5e-4, *, eps: float = 1e-8) -> Tensor:
    """``Σ_i (1 - C_ii)² + λ Σ_{i≠j} C_ij²`` (Barlow Twins, arXiv:2103.03230, eq. 1).

    C is the correlation matrix of two views. Where a number does not vary its correlations are zero.

    Args:
        x: ``[N, D]``.
        y: ``[N, D]``.
        off_diagonal: λ; 5e-3 in Barlow Twins, 5e-4 in R2-Dreamer.
        eps: added to standard deviations.

    Returns:
        ``[]``.

    >>> x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> cross_correlation(x, 3 * x + 1), cross_correlation(x, x.flip(1), 0.5)
    (tensor(0.), tensor(3.))
    """
    check_equal("cross_correlation", "[N, D]", x=x, y=y)
    x, y = ((part - part.mean(0)) / (part.std(0, correction=0) + eps) for part in (x, y))
    correlation = x.T @ y / len(x)
    diagonal = correlation.diagonal()
    others = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal * others
