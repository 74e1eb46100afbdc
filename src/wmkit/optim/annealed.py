"""Adam whose rate rises to its peak and falls along a cosine, counted in its own steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from wmkit.arguments import check_range
from wmkit.errors import ConfigError


class AnnealedAdam(torch.optim.Adam):
    """Adam, or AdamW (arXiv:1711.05101), with a linear warm-up and a cosine decay.

    A checkpoint keeps how many steps were made; peak and length are the page's.

    Args:
        parameters: what it trains.
        lr: the peak.
        updates: steps until the rate is down; it stays there.
        warmup: share of them in which it rises from zero.
        floor: share of the peak that is left at the end.
        **options: of :class:`torch.optim.Adam`; ``decoupled_weight_decay`` makes it AdamW.

    >>> optimizer = AnnealedAdam([nn.Parameter(torch.zeros(1))], lr=1.0, updates=10, warmup=0.2)
    >>> rates = []
    >>> for _ in range(10):
    ...     optimizer.step()
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 2))
    >>> rates
    [0.0, 0.5, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04]
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        updates: int,
        warmup: float = 0.01,
        floor: float = 0.0,
        **options: Any,
    ) -> None:
        check_range("updates", updates, 1)
        check_range("warmup", warmup, 0, 1)
        check_range("floor", floor, 0, 1)
        super().__init__(parameters, lr=lr, **options)
        self.peak, self.updates, self.floor = lr, updates, floor
        self.rising = round(warmup * updates)
        for group in self.param_groups:
            group["step"] = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0 on."""
        if step < self.rising:
            return self.peak * step / self.rising
        done = min(1.0, (step - self.rising) / max(1, self.updates - self.rising))
        return self.peak * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done)))

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """One step at its rate.

        Raises:
            ConfigError: a CUDA graph records it, which would repeat one rate.
        """
        if self.param_groups[0]["params"][0].is_cuda and torch.cuda.is_current_stream_capturing():
            raise ConfigError(
                "a CUDA graph repeats one learning rate, and that of AnnealedAdam changes: found "
                "training.cuda_graph=true, wanted false; set it"
            )
        for group in self.param_groups:
            group["lr"] = self.rate(group["step"])
            group["step"] += 1
        return super().step(closure)
