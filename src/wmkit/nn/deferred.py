"""Gone: a weight used at every step of a loop is a plain tensor; here until its last callers are changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from wmkit.fast import block_product, linear


class LoopWeight:
    """A weight ``[D, K]`` or ``[g, I, O]`` and a bias, called on rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """``[*B, K] -> [*B, D]``, or ``[B, g*I] -> [g, B, O]``."""
        return (linear if self.weight.ndim == 2 else block_product)(x, self.weight, self.bias)


@contextlib.contextmanager
def loop_weights(*modules: nn.Module) -> Iterator[None]:
    """Does nothing."""
    yield
