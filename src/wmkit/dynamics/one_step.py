"""Single steps of dynamics as TensorDict modules, for TorchRL's own world models and environments.

Over a window the dynamics are a module themselves. An :class:`ImaginedStep` is the dynamics of
``torchrl.modules.WorldModel``; a :class:`FilteredStep` takes in one observation, as a recurrent policy does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from wmkit.dynamics.dynamics import Dynamics, to_record
from wmkit.plug import Plug, as_keys


class ImaginedStep(Plug):
    """``state``, ``belief`` (, ``carry``), ``action`` -> the same under ``next``, a sample of the prior.

    Args:
        dynamics: whose steps these are.
        in_keys: of what the dynamics pack for dreams, in their order, and of the action.
        out_keys: of what they pack after the step.

    >>> import torch
    >>> from functools import partial
    >>> from tensordict import TensorDict
    >>> from wmkit import backbones
    >>> from wmkit.dynamics import RSSM
    >>> gru = partial(backbones.build, "ln_gru")
    >>> step = ImaginedStep(RSSM(3, 7, backbone=gru, deter=16, groups=4, classes=5, hidden=8))
    >>> before = {"state": torch.zeros(2, 20), "belief": torch.zeros(2, 16), "action": torch.zeros(2, 3)}
    >>> step(TensorDict(before, [2]))["next", "belief"].shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        in_keys: Iterable[NestedKey] | None = None,
        out_keys: Iterable[NestedKey] | None = None,
    ) -> None:
        super().__init__()
        self.dynamics: Any = dynamics
        packed = list(dynamics.dream_shapes)
        read = as_keys([*packed, "action"] if in_keys is None else in_keys, len(packed) + 1, "in_keys")
        after: Any = [("next", key) for key in packed]
        self.set_plug(read, as_keys(after if out_keys is None else out_keys, len(packed), "out_keys"))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """One step of every row ``[*B]``."""
        *values, action = _rows(tensordict, self.in_keys)
        latent = self.dynamics.unpack(dict(zip(self.dynamics.dream_shapes, values, strict=True)))
        packed = self.dynamics.pack(self.dynamics.step(latent, action.float()))
        return _written(tensordict, self.out_keys, packed.values())


class FilteredStep(Plug):
    """``embed``, ``previous_action``, ``is_init`` and what the dynamics pack -> what they pack, having seen.

    Args:
        dynamics: that take in the observation.
        in_keys: of embedding, previous action, ``is_init``, the conditions and what the dynamics pack.
        out_keys: of what they pack.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        in_keys: Iterable[NestedKey] | None = None,
        out_keys: Iterable[NestedKey] | None = None,
    ) -> None:
        super().__init__()
        self.dynamics: Any = dynamics
        packed = list(dynamics.pack_shapes)
        usual = ["embed", "previous_action", "is_init", *dynamics.conditions, *packed]
        read = as_keys(usual if in_keys is None else in_keys, len(usual), "in_keys")
        self.set_plug(read, as_keys(packed if out_keys is None else out_keys, len(packed), "out_keys"))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Take in one observation of every row ``[*B]``."""
        dynamics = self.dynamics
        embed, action, is_init, *values = _rows(tensordict, self.in_keys)
        conditions = dict(zip(dynamics.conditions, values, strict=False))
        known = {"previous_action": action, "is_init": is_init, **conditions}
        packed = dict(zip(dynamics.pack_shapes, values[len(conditions) :], strict=True))
        latent = dynamics.filter(dynamics.unpack(packed), embed, to_record(known, dynamics.conditions))
        return _written(tensordict, self.out_keys, dynamics.pack(latent).values())


def _rows(tensordict: TensorDictBase, keys: Iterable[Any]) -> list[Tensor]:
    """Entries ``[*B, ...]`` as rows ``[N, ...]``."""
    lead = tensordict.batch_dims
    values = [tensordict.get(key) for key in keys]
    return [value.reshape(-1, *value.shape[lead:]) for value in values]


def _written(tensordict: TensorDictBase, keys: Iterable[Any], rows: Iterable[Tensor]) -> TensorDictBase:
    for key, value in zip(keys, rows, strict=True):
        tensordict.set(key, value.reshape(*tensordict.batch_size, *value.shape[1:]))
    return tensordict
