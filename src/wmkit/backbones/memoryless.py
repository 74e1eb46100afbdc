"""No memory at all: what comes out is what went in (TD-MPC2, whose latent is all that a step needs)."""

from __future__ import annotations

import torch
from torch import Tensor

from wmkit.backbones.base import IN_KEYS, OUT_KEYS, Keys, SequenceModel, check_input
from wmkit.errors import ConfigError


class Memoryless(SequenceModel):
    """The identity as a sequence model.

    Args:
        in_dim: input width D.
        out_dim: the same.
        in_keys: see :class:`~wmkit.backbones.base.SequenceModel`.
        out_keys: see :class:`~wmkit.backbones.base.SequenceModel`.

    Raises:
        ConfigError: an output of another width.

    >>> Memoryless(3, 3).scan(torch.ones(2, 5, 3))[0].shape
    torch.Size([2, 5, 3])
    """

    carry_is_output = True

    def __init__(
        self, in_dim: int, out_dim: int, *, in_keys: Keys = IN_KEYS, out_keys: Keys = OUT_KEYS
    ) -> None:
        if in_dim != out_dim:
            raise ConfigError(
                f"out_dim is {out_dim}: wanted {in_dim}, the width of an input, since nothing is computed; "
                "set deter=null"
            )
        super().__init__(in_dim, out_dim, in_keys=in_keys, out_keys=out_keys)
        self.register_buffer("nothing", torch.zeros(out_dim), persistent=False)
        self.nothing: Tensor

    def initial(self, batch: int) -> Tensor:
        """Zeros."""
        return self.nothing.expand(batch, -1)

    def output(self, carry: Tensor) -> Tensor:
        """The carry itself."""
        return carry

    def step(self, x: Tensor, carry: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`SequenceModel.step`."""
        return x, x

    def scan(
        self, x: Tensor, carry: Tensor | None = None, reset: Tensor | None = None, read: slice | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`SequenceModel.scan`."""
        check_input(self, x, carry, reset, 3)
        return x[:, read or slice(None)], x[:, -1]
