"""Stochastic states: their statistics, its chance, its samples.

Dynamics hold one of these and never ask which. ``statistics`` are what prior and posterior
predict and a KL compares; chance is drawn by ``noise``, for all steps of a loop at once.

=======================  ======================  ==========================  =====================
latent                   statistics              state                       system
=======================  ======================  ==========================  =====================
``CategoricalLatent``    logits ``[*B, G, C]``   ``G`` one-hots, flat        DreamerV2, DreamerV3
``GaussianLatent``       mean, std ``[*B, 2, D]``  ``D`` numbers             DreamerV1
``SimNormLatent``        logits ``[*B, G, C]``   ``G`` points of simplices   TD-MPC2
``DeterministicLatent``  itself ``[*B, 1, D]``   ``D`` numbers               LeWorldModel, PLDM
=======================  ======================  ==========================  =====================
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.arguments import check_range
from wmkit.errors import ConfigError
from wmkit.functional import check_shape, one_hot, sample_index, straight_through, unimix_probs, widened


class CategoricalLatent:
    """``G`` independent categoricals of ``C`` classes (DreamerV2, arXiv:2010.02193, section 2.1).

    Args:
        groups: categoricals G.
        classes: classes C of each.
        unimix: share of the uniform that samples are drawn with: 0.01 in DreamerV3, none in DreamerV2.

    Attributes:
        state_dim: width of a state, G * C.
        stats_dim: numbers that predict its statistics, G * C.

    >>> latent = CategoricalLatent(groups=2, classes=3, unimix=0.0)
    >>> logits = latent.statistics(torch.tensor([[0.0, 0.0, 99.0, 99.0, 0.0, 0.0]]))
    >>> latent.sample(logits, latent.noise(1))[0]
    tensor([[0., 0., 1., 1., 0., 0.]])
    """

    def __init__(self, groups: int = 32, classes: int = 32, unimix: float = 0.01) -> None:
        check_range("unimix", unimix, 0, 1, open_end=True)
        self.groups, self.classes, self.unimix = groups, classes, unimix
        self.state_dim = self.stats_dim = groups * classes

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """Uniforms ``[*lead, G, 1]``."""
        return torch.rand(*lead, self.groups, 1, device=device)

    def statistics(self, x: Tensor) -> Tensor:
        """``[*B, G*C] -> [*B, G, C]`` logits."""
        return x.unflatten(-1, (self.groups, self.classes))

    def sample(self, statistics: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Straight-through sample ``[*B, G*C]``, and its classes ``[*B, G]``."""
        probs = unimix_probs(statistics, self.unimix)
        index = sample_index(probs.detach(), noise)
        state = one_hot(index, self.classes, probs.dtype)
        if torch.is_grad_enabled():
            state = straight_through(state, probs)
        return state.flatten(-2), index

    def mode(self, statistics: Tensor, gradient: bool = False) -> tuple[Tensor, Tensor | None]:
        """The likeliest state ``[*B, G*C]``, and its classes ``[*B, G]``.

        With ``gradient`` it carries that of the log-probabilities (NM512/dreamerv3-torch 49d12ba), else none.
        """
        index = statistics.argmax(-1)
        state = one_hot(index, self.classes, statistics.dtype)
        if gradient and torch.is_grad_enabled():
            state = straight_through(state, self._log_probs(statistics).to(statistics.dtype))
        return state.flatten(-2), index

    def _log_probs(self, statistics: Tensor) -> Tensor:
        if self.unimix:
            return unimix_probs(statistics, self.unimix).log()
        return torch.log_softmax(widened(statistics), -1)

    def one_hot(self, classes: Tensor) -> Tensor:
        """Classes ``[*B, G]`` to states ``[*B, G*C]``."""
        return one_hot(classes, self.classes, torch.float32).flatten(-2)

    def classes_of(self, state: Tensor) -> Tensor | None:
        """States ``[*B, G*C]`` to classes ``[*B, G]``."""
        return state.unflatten(-1, (self.groups, self.classes)).argmax(-1)


class GaussianLatent:
    """``D`` independent normals (DreamerV1, arXiv:1912.01603, section 4).

    ``std = softplus(raw) + low``; samples are reparameterised, so that gradients reach both.

    Args:
        size: numbers D in a state.
        low: smallest standard deviation.

    Attributes:
        state_dim: width of a state, D.
        stats_dim: numbers that predict its statistics, 2 D: means first.

    >>> latent = GaussianLatent(2)
    >>> statistics = latent.statistics(torch.tensor([[5.0, 7.0, 0.0, -99.0]]))
    >>> statistics
    tensor([[[5.0000, 7.0000],
             [0.7931, 0.1000]]])
    >>> latent.sample(statistics, torch.tensor([[1.0, -1.0]]))[0]
    tensor([[5.7931, 6.9000]])
    """

    def __init__(self, size: int = 30, low: float = 0.1) -> None:
        self.low = low
        self.state_dim, self.stats_dim = size, 2 * size

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """Standard normals ``[*lead, D]``."""
        return torch.randn(*lead, self.state_dim, device=device)

    def statistics(self, x: Tensor) -> Tensor:
        """``[*B, 2D] -> [*B, 2, D]``, mean and standard deviation."""
        mean, raw = widened(x).chunk(2, -1)
        return torch.stack([mean, F.softplus(raw) + self.low], -2)

    def sample(self, statistics: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sample ``[*B, D]`` with gradient; there are no classes."""
        mean, std = statistics.unbind(-2)
        check_shape("GaussianLatent.sample", "noise", noise, mean.shape, "[*B, D]")
        return mean + std * noise, None

    def mode(self, statistics: Tensor, gradient: bool = False) -> tuple[Tensor, Tensor | None]:
        """The mean ``[*B, D]``, with its gradient in any case; there are no classes."""
        return statistics.select(-2, 0), None

    def classes_of(self, state: Tensor) -> Tensor | None:
        """There are none."""
        return None


class SimNormLatent:
    """Numbers in groups, each a point of a simplex, without chance (TD-MPC2, arXiv:2310.16828, section 3.1).

    Args:
        size: numbers D in a state.
        simplex: numbers of a group.

    Attributes:
        state_dim: width of a state, D.
        stats_dim: numbers that it is made of, D.

    Raises:
        ConfigError: a size that cannot be cut into groups.

    >>> latent = SimNormLatent(4, simplex=2)
    >>> latent.sample(latent.statistics(torch.tensor([[0.0, 0.0, 0.0, -999.0]])), latent.noise(1))[0]
    tensor([[0.5000, 0.5000, 1.0000, 0.0000]])
    """

    def __init__(self, size: int = 512, simplex: int = 8) -> None:
        check_range("simplex", simplex, 1)
        if size < simplex or size % simplex:
            raise ConfigError(
                f"size is {size}: wanted a multiple of {simplex}, the numbers of a simplex; correct size"
            )
        self.simplex = simplex
        self.state_dim = self.stats_dim = size

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """None is needed: ``[*lead, 0]``."""
        return torch.empty(*lead, 0, device=device)

    def statistics(self, x: Tensor) -> Tensor:
        """``[*B, D] -> [*B, G, C]`` logits."""
        return x.unflatten(-1, (-1, self.simplex))

    def sample(self, statistics: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """The state ``[*B, D]``, with gradient; there are no classes."""
        return torch.softmax(widened(statistics), -1).flatten(-2), None

    def mode(self, statistics: Tensor, gradient: bool = False) -> tuple[Tensor, Tensor | None]:
        """The same."""
        return self.sample(statistics, statistics)

    def classes_of(self, state: Tensor) -> Tensor | None:
        """There are none."""
        return None


class DeterministicLatent:
    """``D`` numbers without chance: an embedding (LeWorldModel, PLDM).

    Args:
        size: numbers D.

    Attributes:
        state_dim: width of a state, D.
        stats_dim: numbers that predict it, D.

    >>> latent = DeterministicLatent(2)
    >>> statistics = latent.statistics(torch.tensor([[5.0, 7.0]]))
    >>> statistics.shape, latent.sample(statistics, latent.noise(1))[0]
    (torch.Size([1, 1, 2]), tensor([[5., 7.]]))
    """

    def __init__(self, size: int) -> None:
        check_range("size", size, 1)
        self.state_dim = self.stats_dim = size

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """No numbers, ``[*lead, 0]``."""
        return torch.empty(*lead, 0, device=device)

    def statistics(self, x: Tensor) -> Tensor:
        """``[*B, D] -> [*B, 1, D]``."""
        return x.unsqueeze(-2)

    def sample(self, statistics: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """The state ``[*B, D]``, with gradient; there are no classes."""
        return statistics.squeeze(-2), None

    def mode(self, statistics: Tensor, gradient: bool = False) -> tuple[Tensor, Tensor | None]:
        """The state too."""
        return statistics.squeeze(-2), None

    def classes_of(self, state: Tensor) -> Tensor | None:
        """There are none."""
        return None
