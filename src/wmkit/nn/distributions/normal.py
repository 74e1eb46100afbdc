"""Numbers: predictions scored by their squared error, and policies over continuous actions.

A prediction is scored by squared error plainly, in symlog units, or as a normal's log-density. Policies are
normals that are bounded, squashed or cut; all are reparameterised, so that a return's gradient reaches the
actor through the action.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit import fast
from wmkit.functional import check_equal, check_samples, check_shape, symlog, widened

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_LIMIT = 0.99999997  # what an inverse tanh still takes


class SquaredError:
    """A mean scored by its squared error, summed over the event, without a half.

    Args:
        mean: ``[*B, *event]`` float; below float32 it is computed with in float32.
        event_dims: how many trailing dimensions are one event.

    >>> SquaredError(torch.zeros(2, 3, 4, 4), 3).loss(torch.ones(2, 3, 4, 4))
    tensor([48., 48.])
    >>> SquaredError(torch.zeros(1, 2), 1).loss(torch.tensor([[3.0, -torch.inf]]))
    tensor([9.])
    """

    def __init__(self, mean: Tensor, event_dims: int) -> None:
        self.mean = self.mode = widened(mean)
        self.event_dims = event_dims

    def loss(self, target: Tensor) -> Tensor:
        """Squared error to ``target`` of the same shape; ``[*B]``.

        Targets in uint8 are read as /255; a float of -inf is one that is missing and costs nothing.
        """
        check_shape(type(self).__name__ + ".loss", "target", target, self.mean.shape, "[*B, *event]")
        scale = 1 / 255 if target.dtype == torch.uint8 else 1.0
        if target.is_floating_point():
            target = torch.where(target == -math.inf, self.mean.detach(), target)
        difference = torch.sub(self.mean, target, alpha=scale)
        return fast.squared_norm(
            difference.flatten(-self.event_dims) if self.event_dims else difference.unsqueeze(-1)
        )


class AbsoluteError(SquaredError):
    """A mean scored by its absolute error, a mean over the event (IRIS, arXiv:2209.00588).

    >>> AbsoluteError(torch.zeros(2, 3), 1).loss(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
    tensor([2., 0.])
    """

    def loss(self, target: Tensor) -> Tensor:
        """Absolute error to ``target`` of the same shape; uint8 targets are read as /255; ``[*B]``."""
        check_shape("AbsoluteError.loss", "target", target, self.mean.shape, "[*B, *event]")
        if target.dtype == torch.uint8:
            target = target * (1 / 255)
        return (self.mean - target).abs().flatten(-self.event_dims).mean(-1)


class SymlogSquaredError(SquaredError):
    """Squared error in symlog units; :attr:`mean` stays in symlog units.

    >>> SymlogSquaredError(torch.zeros(1, 1), 1).loss(torch.zeros(1, 1))
    tensor([0.])
    """

    def loss(self, target: Tensor) -> Tensor:
        """Squared error to ``symlog(target)``; ``[*B]``."""
        return super().loss(symlog(target.float()))


class UnitNormal(SquaredError):
    """A mean scored by the log-density of a normal of unit variance (DreamerV1 and V2).

    Half the squared error and a constant: losses are on the scale of the papers', and gradients are
    half of :class:`SquaredError`'s.

    Args:
        mean: ``[*B, *event]`` float.
        event_dims: how many trailing dimensions are one event.

    >>> UnitNormal(torch.zeros(2, 1), 1).loss(torch.tensor([[0.0], [2.0]]))
    tensor([0.9189, 2.9189])
    """

    def loss(self, target: Tensor) -> Tensor:
        """Negative log-density of ``target`` of the same shape; uint8 targets are read as /255; ``[*B]``."""
        count = math.prod(self.mean.shape[self.mean.ndim - self.event_dims :])
        return 0.5 * super().loss(target) + 0.5 * count * math.log(2 * math.pi)


class BoundedNormal:
    """A continuous action: independent normals of bounded mean and spread (DreamerV3, danijar/dreamerv3
    e3f0224).

    Samples are neither squashed nor clipped: the environment clips, replay and model keep what
    was drawn, and :meth:`log_prob` is that of the plain normal.

    Args:
        mean: ``[*B, A]`` float before the tanh.
        std: ``[*B, A]`` float before the sigmoid; zero gives 0.88 of the way from ``low`` to ``high``.
        low: smallest standard deviation.
        high: largest.

    >>> policy = BoundedNormal(torch.zeros(1, 2), torch.zeros(1, 2))
    >>> policy.mode, policy.entropy / 2
    (tensor([[0., 0.]]), tensor([1.3055]))
    >>> policy.sample(torch.tensor([[1.0, -1.0]]))
    tensor([[ 0.8927, -0.8927]])
    """

    def __init__(self, mean: Tensor, std: Tensor, low: float = 0.1, high: float = 1.0) -> None:
        check_equal(type(self).__name__, "[*B, A]", mean=mean, std=std)
        self.mean = torch.tanh(mean.float())  # [*B, A]
        self.std = (high - low) * torch.sigmoid(std.float() + 2.0) + low  # [*B, A]

    @property
    def mode(self) -> Tensor:
        """The likeliest action, ``[*B, A]``."""
        return self.mean

    @property
    def entropy(self) -> Tensor:
        """Nats, summed over the action, ``[*B]``."""
        return (torch.log(self.std) + (0.5 + _LOG_SQRT_2PI)).sum(-1)

    def sample(self, normal: Tensor | None = None) -> Tensor:
        """Sample ``[*B, A]`` from standard normals ``[*B, A]`` (drawn here if none are given).

        Reparameterised: gradients reach mean and spread.
        """
        if normal is None:
            normal = torch.randn_like(self.mean)
        check_samples("BoundedNormal.sample", "an argument", normal, self.mean.shape, "[*B, A]")
        return self.mean + self.std * normal

    rsample = sample

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of an ``action`` ``[*B, A]``, summed over it; ``[*B]``."""
        check_samples("BoundedNormal.log_prob", "an argument", action, self.mean.shape, "[*B, A]")
        distance = (action - self.mean) / self.std
        return -(0.5 * distance.square() + torch.log(self.std) + _LOG_SQRT_2PI).sum(-1)


class TanhNormal:
    """The tanh of a normal (DreamerV1, arXiv:1912.01603, eq. 8).

    ``a = tanh(μ + σ ε)``, ``μ = 5 tanh(mean / 5)``, ``σ = softplus(std + softplus⁻¹(initial)) + low``. It has
    neither mode nor entropy in closed form; both come from ``draws`` samples, as in the original.

    Args:
        mean: ``[*B, A]`` float as the network gives it.
        std: ``[*B, A]`` float as the network gives it; zero gives ``initial``.
        scale: bound of the mean before the tanh.
        initial: standard deviation before the tanh of a network that says zero.
        low: added to the standard deviation.
        draws: samples behind :attr:`mode` and :attr:`entropy`.

    >>> policy = TanhNormal(torch.zeros(1, 2), torch.zeros(1, 2))
    >>> policy.std
    tensor([[5.0001, 5.0001]])
    >>> policy.sample(torch.tensor([[0.0, 0.1]]))
    tensor([[0.0000, 0.4621]])
    """

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        *,
        scale: float = 5.0,
        initial: float = 5.0,
        low: float = 1e-4,
        draws: int = 100,
    ) -> None:
        check_equal(type(self).__name__, "[*B, A]", mean=mean, std=std)
        self.location = scale * torch.tanh(mean.float() / scale)  # [*B, A], before the tanh
        self.std = F.softplus(std.float() + math.log(math.expm1(initial))) + low  # [*B, A]
        self.draws = draws

    @property
    def mode(self) -> Tensor:
        """The likeliest of :attr:`draws` samples, ``[*B, A]``."""
        samples = self._samples()  # [D, *B, A]
        best = self.log_prob(samples).argmax(0)[None, ..., None]  # [1, *B, 1]
        return samples.gather(0, best.expand(1, *samples.shape[1:])).squeeze(0)

    @property
    def entropy(self) -> Tensor:
        """Nats, summed over the action, estimated from :attr:`draws` samples, ``[*B]``."""
        return -self.log_prob(self._samples()).mean(0)

    def sample(self, normal: Tensor | None = None) -> Tensor:
        """Sample ``[*B, A]`` in (-1, 1) from standard normals ``[*B, A]`` (drawn here if none are given)."""
        if normal is None:
            normal = torch.randn_like(self.location)
        check_samples("TanhNormal.sample", "an argument", normal, self.location.shape, "[*B, A]")
        return torch.tanh(self.location + self.std * normal)

    rsample = sample

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of an ``action`` ``[*B, A]``, summed over it; ``[*B]``."""
        check_samples("TanhNormal.log_prob", "an argument", action, self.location.shape, "[*B, A]")
        before = torch.atanh(action.clamp(-_LIMIT, _LIMIT))
        normal = -0.5 * ((before - self.location) / self.std).square() - torch.log(self.std) - _LOG_SQRT_2PI
        slope = 2 * (math.log(2) - before - F.softplus(-2 * before))  # log of tanh's derivative
        return (normal - slope).sum(-1)

    def _samples(self) -> Tensor:
        return self.sample(torch.randn(self.draws, *self.location.shape, device=self.location.device))


class SquashedNormal:
    """The tanh of a normal whose log-spread is bounded (TD-MPC2, arXiv:2310.16828).

    ``a = tanh(mean + σ ε)``, ``log σ = l + (h - l) (tanh(spread) + 1) / 2``. Its :attr:`entropy` is that of
    the normal before the tanh: what TD-MPC2's code climbs, whose correction for the tanh cancels.

    Args:
        mean: ``[*B, A]`` float as the network gives it.
        spread: ``[*B, A]`` float as the network gives it.
        low: smallest standard deviation before the tanh, ``e^l``.
        high: largest, ``e^h``.

    >>> SquashedNormal(torch.zeros(1, 2), torch.zeros(1, 2), low=0.1, high=10.0).std
    tensor([[1., 1.]])
    """

    def __init__(self, mean: Tensor, spread: Tensor, *, low: float, high: float) -> None:
        check_equal(type(self).__name__, "[*B, A]", mean=mean, spread=spread)
        self.location = mean.float()
        least, most = math.log(low), math.log(high)
        self.log_std = least + 0.5 * (most - least) * (torch.tanh(spread.float()) + 1)

    @property
    def std(self) -> Tensor:
        """Before the tanh, ``[*B, A]``."""
        return self.log_std.exp()

    @property
    def mode(self) -> Tensor:
        """The tanh of the mean, ``[*B, A]``."""
        return torch.tanh(self.location)

    @property
    def entropy(self) -> Tensor:
        """Nats of the normal before the tanh, summed over the action; ``[*B]``."""
        return (self.log_std + _LOG_SQRT_2PI + 0.5).sum(-1)

    def sample(self, normal: Tensor | None = None) -> Tensor:
        """Sample ``[*B, A]`` in (-1, 1) from standard normals ``[*B, A]`` (drawn here if none are given)."""
        if normal is None:
            normal = torch.randn_like(self.location)
        check_samples("SquashedNormal.sample", "an argument", normal, self.location.shape, "[*B, A]")
        return torch.tanh(self.location + self.std * normal)

    rsample = sample

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of an ``action`` ``[*B, A]``, summed over it; ``[*B]``."""
        check_samples("SquashedNormal.log_prob", "an argument", action, self.location.shape, "[*B, A]")
        before = torch.atanh(action.clamp(-_LIMIT, _LIMIT))
        normal = -0.5 * ((before - self.location) / self.std).square() - self.log_std - _LOG_SQRT_2PI
        return (normal - 2 * (math.log(2) - before - F.softplus(-2 * before))).sum(-1)


class TruncatedNormal:
    """A normal cut at -1 and 1 (DreamerV2 for continuous actions, arXiv:2010.02193).

    ``μ = tanh(mean)``, ``σ = 2 sigmoid(std / 2) + low``. Samples invert the cumulative distribution, so that
    gradients reach both.

    Args:
        mean: ``[*B, A]`` float as the network gives it.
        std: ``[*B, A]`` float as the network gives it; zero gives ``1 + low``.
        low: added to the standard deviation.

    >>> policy = TruncatedNormal(torch.zeros(1, 2), torch.zeros(1, 2))
    >>> policy.mode, policy.std
    (tensor([[0., 0.]]), tensor([[1.1000, 1.1000]]))
    >>> policy.sample(torch.tensor([[0.5, 0.0]]))
    tensor([[ 0., -1.]])
    """

    def __init__(self, mean: Tensor, std: Tensor, *, low: float = 0.1) -> None:
        check_equal(type(self).__name__, "[*B, A]", mean=mean, std=std)
        self.mean = torch.tanh(mean.float())  # [*B, A]
        self.std = 2 * torch.sigmoid(std.float() / 2) + low  # [*B, A]
        self.low, self.high = (-1 - self.mean) / self.std, (1 - self.mean) / self.std  # in deviations
        self.below, above = _cumulative(self.low), _cumulative(self.high)
        self.mass = above - self.below  # [*B, A], at least 0.33

    @property
    def mode(self) -> Tensor:
        """The likeliest action, ``[*B, A]``."""
        return self.mean

    @property
    def entropy(self) -> Tensor:
        """Nats, summed over the action, ``[*B]``."""
        edges = (self.low * _density(self.low) - self.high * _density(self.high)) / (2 * self.mass)
        return (torch.log(self.std * self.mass) + (0.5 + _LOG_SQRT_2PI) + edges).sum(-1)

    def sample(self, uniform: Tensor | None = None) -> Tensor:
        """Sample ``[*B, A]`` in [-1, 1] from uniforms ``[*B, A]`` (drawn here if none are given)."""
        if uniform is None:
            uniform = torch.rand_like(self.mean)
        check_samples("TruncatedNormal.sample", "an argument", uniform, self.mean.shape, "[*B, A]")
        share = 2 * (self.below + uniform * self.mass) - 1
        inside = share + (share.clamp(-1 + 1e-6, 1 - 1e-6) - share).detach()  # float32 ends there
        action = self.mean + self.std * (math.sqrt(2) * torch.erfinv(inside))
        return action + (action.clamp(-1, 1) - action).detach()

    rsample = sample

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of an ``action`` ``[*B, A]`` in [-1, 1], summed over it; ``[*B]``."""
        check_samples("TruncatedNormal.log_prob", "an argument", action, self.mean.shape, "[*B, A]")
        distance = (action - self.mean) / self.std
        return -(0.5 * distance.square() + torch.log(self.std * self.mass) + _LOG_SQRT_2PI).sum(-1)


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square() - _LOG_SQRT_2PI)


def _cumulative(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))
