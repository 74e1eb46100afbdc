"""A memory of an actor's own: what it has seen so far, apart from what the world model carries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from wmkit.backbones import Carry, SequenceModel, carry_width, flatten_carry, unflatten_carry
from wmkit.errors import ConfigError
from wmkit.nn import STYLE_2023, LayerStyle
from wmkit.plug import Plug, as_keys

MEMORY = "memory"  # what an actor and its critic read
CARRIED = "actor_memory"  # under this a policy carries it from step to step


class ActorMemory(Plug):
    """An image half and a sequence model over what the decoder shows (IRIS, arXiv:2209.00588, section 2.3).

    The actor owns it and reads its output, and so may a critic: ``in_keys: [memory]``. ``forward`` takes one
    step: it reads images, ``is_init`` and, where it is there, ``actor_memory``, and writes ``memory`` and the
    next ``actor_memory``.

    Args:
        in_dim: numbers of all images that are read.
        image: the image half, called as ``image(shapes, depth=..., style=...)``.
        depth: its width.
        backbone: called as ``backbone(in_dim=..., out_dim=...)``, gives the sequence model.
        units: width M of what it gives.
        channels: of the image that is read.
        style: of the image half.
        in_keys: of the image.
        out_keys: of the output.

    Raises:
        ConfigError: no square image has as many numbers.

    >>> from functools import partial
    >>> import torch
    >>> from wmkit import backbones
    >>> from wmkit.codecs import MaxPooledImageEncoder
    >>> lstm = partial(backbones.build, "lstm")
    >>> memory = ActorMemory(3 * 64 * 64, image=MaxPooledImageEncoder, depth=4, backbone=lstm, units=8)
    >>> out, carry = memory.scan(torch.zeros(2, 5, 3 * 64 * 64), memory.initial(2))
    >>> out.shape
    torch.Size([2, 5, 8])
    """

    default_in_keys: Sequence[NestedKey] = (("predicted", "pixels"),)

    def __init__(
        self,
        in_dim: int,
        *,
        image: Callable[..., Any],
        depth: int,
        backbone: Callable[..., SequenceModel],
        units: int,
        channels: int = 3,
        style: LayerStyle = STYLE_2023,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] = (MEMORY,),
    ) -> None:
        super().__init__()
        side = math.isqrt(in_dim // channels)
        if channels * side**2 != in_dim:
            raise ConfigError(
                f"an actor's memory reads {in_dim} numbers: wanted a square image of {channels} channels; "
                "correct channels, or in_keys"
            )
        self.shape, self.out_dim = (channels, side, side), units
        self.image: Any = image({"image": self.shape}, depth=depth, style=style)
        self.backbone: Any = backbone(in_dim=self.image.out_dim, out_dim=units)
        self.set_plug(
            as_keys(self.default_in_keys if in_keys is None else in_keys, 1, "in_keys"),
            as_keys(out_keys, 1, "out_keys"),
        )

    def initial(self, batch: int) -> Carry:
        """The carry of ``batch`` actors that have seen nothing."""
        return self.backbone.initial(batch)

    def look(self, features: Tensor) -> Tensor:
        """Images ``[*B, F]`` to what the sequence model reads, ``[*B, D]``."""
        return self.image(features.reshape(-1, *self.shape)).unflatten(0, features.shape[:-1])

    def step(self, features: Tensor, carry: Carry, reset: Tensor) -> tuple[Tensor, Carry]:
        """One image ``[B, F]``, ``reset [B]`` bool -> ``[B, M]`` and the new carry."""
        return self.backbone.step(self.look(features), carry, reset)

    def scan(
        self, features: Tensor, carry: Carry | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """Images ``[B, T, F]``, ``reset [B, T]`` bool -> ``[B, T, M]`` and the carry after the last."""
        return self.backbone.scan(self.look(features), carry, reset)

    # -- as rows of numbers ----------------------------------------------------------------

    @property
    def carry_dim(self) -> int:
        """Numbers in a row of a carry."""
        return carry_width(self.initial(1))

    def pack(self, carry: Carry) -> Tensor:
        """A carry as rows ``[B, carry_dim]``."""
        return flatten_carry(carry)

    def unpack(self, rows: Tensor) -> Carry:
        """Undo :meth:`pack`."""
        return unflatten_carry(rows, self.initial(1))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """One step of a TensorDict ``[B]``."""
        features = tensordict.get(self.in_keys[0]).reshape(*tensordict.batch_size, -1)
        rows = tensordict.get(CARRIED, None)
        carry = self.initial(len(features)) if rows is None else self.unpack(rows)
        out, after = self.step(features, carry, tensordict.get("is_init").reshape(len(features)))
        return tensordict.set(self.out_keys[0], out).set(("next", CARRIED), self.pack(after))
