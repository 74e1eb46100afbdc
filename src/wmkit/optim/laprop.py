"""LaProp with adaptive gradient clipping: the optimiser of the current DreamerV3.

LaProp (Ziyin et al. 2020, arXiv:2002.04839) divides by the RMS of the gradient *before* it takes
the momentum, Adam after. Clipping by the size of what is clipped is from Brock et al. 2021
(arXiv:2102.06171). Chain and constants as in DreamerV3, danijar/dreamerv3 e3f0224.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from wmkit.errors import ConfigError

_SCALARS = ("lr", "step")
_OPTIONS = ("betas", "eps", "agc", "pmin", "warmup")


class LaProp(Optimizer):
    """Clip each tensor, scale by RMS, take the momentum, step.

    For every parameter tensor θ with gradient g, at update t = 1, 2, ...::

        g  <- g / max(1, |g| / (agc * max(pmin, |θ|)))        norms of whole tensors
        ν  <- β2 ν + (1-β2) g²      g <- g / (sqrt(ν / (1-β2^t)) + eps)
        μ  <- β1 μ + (1-β1) g       θ <- θ - lr * min(1, (t-1) / warmup) * μ / (1-β1^t)

    so the first update changes nothing, and a gradient of zero stays zero. Parameters whose ``grad``
    is ``None`` are left alone. Learning rate and step count are tensors beside the parameters and
    nothing is read back from them: an update captures in a CUDA graph once it has run before.

    Args:
        params: tensors or groups of tensors, float32 or float64; one device per group.
        lr: learning rate after the warm-up.
        betas: decay of the momentum and of the squared gradient.
        eps: added to the RMS.
        agc: largest norm of a gradient as a share of its parameter's; ``inf`` clips nothing.
        pmin: least norm that a parameter counts for in clipping.
        warmup: updates until the learning rate is reached; zero for none.

    Raises:
        ConfigError: a parameter of lower precision, or an option out of range.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    >>> optimizer = LaProp([weight], lr=0.1, warmup=2)
    >>> for _ in range(3):
    ...     weight.grad = torch.tensor([0.5, 2.0])
    ...     optimizer.step()
    ...     print(weight.data)
    tensor([ 1., -1.])
    tensor([ 0.9500, -1.0500])
    tensor([ 0.8500, -1.1500])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 4e-5,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        agc: float = 0.3,
        pmin: float = 1e-3,
        warmup: int = 1000,
    ) -> None:
        options = {"lr": lr, "betas": tuple(betas), "eps": eps, "agc": agc, "pmin": pmin, "warmup": warmup}
        super().__init__(params, options | {"step": 0.0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with options of their own where given."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check(group)
        for name in _SCALARS:  # a tensor of its own for every group
            value = torch.as_tensor(group[name], dtype=torch.float32)
            group[name] = value.clone().to(group["params"][0].device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss and the gradients; not needed if they are there.

        Returns:
            What ``closure`` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)
        return loss

    def prepared(self) -> list[PreparedStep]:
        """The step of each group on all of its parameters, for a compiler: tensors and arithmetic alone.

        Good until a state is loaded.
        """
        return [self._prepare(group, list(group["params"])) for group in self.param_groups]

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        self._prepare(group, params)([p.grad for p in params])

    def _prepare(self, group: dict[str, Any], params: list[Tensor]) -> PreparedStep:
        scalars = self._scalars(group, params[0].device)
        return PreparedStep(params, *self._moments(params), *scalars, *(group[name] for name in _OPTIONS))

    def _moments(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Momentum μ and squared gradient ν of each parameter, zero at first."""
        for p in params:
            if not self.state[p]:
                self.state[p] = {"momentum": torch.zeros_like(p), "square": torch.zeros_like(p)}
        states = [self.state[p] for p in params]
        return [state["momentum"] for state in states], [state["square"] for state in states]

    @staticmethod
    def _scalars(group: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
        """Learning rate and step count on ``device``: the model may have moved, or the state been loaded."""
        for name in _SCALARS:
            if not isinstance(group[name], Tensor) or group[name].device != device:
                group[name] = torch.as_tensor(group[name], dtype=torch.float32, device=device)
        return group["lr"], group["step"]


@dataclass(frozen=True, eq=False)
class PreparedStep:
    """One step of :class:`LaProp` on some tensors, see there; called with their gradients.

    Attributes:
        params: what is changed.
        momentum: μ of each, changed too.
        square: ν of each, of the same shapes.
        lr: scalar on their device.
        step: updates so far; one more afterwards.
        betas: see :class:`LaProp`, as the others.
    """

    params: list[Tensor]
    momentum: list[Tensor]
    square: list[Tensor]
    lr: Tensor
    step: Tensor
    betas: tuple[float, float]
    eps: float
    agc: float
    pmin: float
    warmup: int

    def __call__(self, grads: list[Any]) -> None:
        """Change :attr:`params` along ``grads``, whose tensors stay as they are."""
        momentum, square, step, lr = self.momentum, self.square, self.step, self.lr
        beta1, beta2 = self.betas
        if self.warmup:
            lr = lr * (step / self.warmup).clamp(max=1)  # of the updates before this one
        step += 1
        # 1 - β^t, without the cancellation
        debias1, debias2 = (-torch.expm1(step * math.log(beta)) for beta in (beta1, beta2))

        grads = _clip(grads, self.params, self.agc, self.pmin)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, grads, grads, value=1 - beta2)
        rms = torch._foreach_div(square, debias2)
        torch._foreach_sqrt_(rms)
        torch._foreach_add_(rms, self.eps)
        torch._foreach_div_(grads, rms)
        torch._foreach_lerp_(momentum, grads, 1 - beta1)
        torch._foreach_add_(self.params, list(torch._foreach_mul(momentum, -lr / debias1)))


def _clip(grads: list[Any], params: list[Tensor], agc: float, pmin: float) -> list[Tensor]:
    """New gradients, none longer than ``agc`` times its parameter."""
    longest = list(torch._foreach_norm(params))
    torch._foreach_clamp_min_(longest, pmin)
    torch._foreach_mul_(longest, agc)
    excess = list(torch._foreach_norm(grads))
    torch._foreach_div_(excess, longest)
    torch._foreach_clamp_min_(excess, 1.0)
    return list(torch._foreach_div(grads, excess))


def _check(group: dict[str, Any]) -> None:
    """Raise :class:`ConfigError` unless the options of a group make sense."""
    for param in group["params"]:
        if param.dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"a parameter of shape {tuple(param.shape)} has dtype {param.dtype}: LaProp wanted "
                "torch.float32 (its eps vanishes below that); keep the weights in float32 and use autocast"
            )
    ranges = {
        "lr": group["lr"] >= 0,
        "betas": all(0 < beta < 1 for beta in group["betas"]),
        "eps": group["eps"] > 0,
        "agc": group["agc"] > 0,
        "pmin": group["pmin"] > 0,
        "warmup": group["warmup"] >= 0,
    }
    for name, fits in ranges.items():
        if not fits:
            raise ConfigError(
                f"option {name} of LaProp is {group[name]}: wanted lr and warmup of zero or more, betas "
                "between zero and one, eps, agc and pmin above zero; correct the optimizer"
            )
