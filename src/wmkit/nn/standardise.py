"""Numbers brought to mean 0 and deviation 1, by statistics of recorded data that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from wmkit.errors import SpecError


class Standardise(nn.Module):
    """``(x - mean) / std`` by the statistics of a key; what is not finite becomes 0, the mean.

    A run that learns from recorded data hands them over once (:func:`wmkit.training.records.teach`). They are
    buffers: a checkpoint holds them, and a loaded system needs no data set. Until then it changes nothing.

    Args:
        key: of the records, such as ``previous_action``.
        width: numbers in one value D.

    Raises:
        SpecError: statistics of another width.

    >>> norm = Standardise("speed", 2)
    >>> norm.take_statistics({"speed": {"mean": [1.0, 0.0], "std": [2.0, 1.0]}})
    >>> norm(torch.tensor([5.0, float("nan")])), norm.undo(torch.tensor([2.0, 0.0]))
    (tensor([2., 0.]), tensor([5., 0.]))
    """

    mean: Tensor
    std: Tensor

    def __init__(self, key: str, width: int) -> None:
        super().__init__()
        self.key = key
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def take_statistics(self, found: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Keep mean and deviation of its key; of a key without statistics, nothing changes."""
        if (known := found.get(self.key)) is None:
            return
        for name, buffer in (("mean", self.mean), ("std", self.std)):
            if len(known[name]) != len(buffer):
                raise SpecError(
                    f"statistics of {self.key!r} do not fit: found {len(known[name])} numbers, wanted "
                    f"{len(buffer)}; take a data set with such a key, or another width"
                )
            buffer.copy_(torch.as_tensor(known[name]))

    def forward(self, x: Tensor) -> Tensor:
        """float ``[*B, D]`` in its own units to standard ones."""
        return ((x - self.mean) / self.std).nan_to_num(0.0, 0.0, 0.0)

    def undo(self, x: Tensor) -> Tensor:
        """float ``[*B, D]`` in standard units to its own."""
        return x * self.std + self.mean
