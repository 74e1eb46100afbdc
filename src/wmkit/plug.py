"""The base of every part, a TorchRL plug: keys in, keys out, and tensors in between.

A part is a :class:`Plug`: an ordinary module whose ``forward`` takes a TensorDict, reads ``in_keys`` and
writes ``out_keys``, once per sequence. Loops and losses call its *tensor methods* instead (``encode``,
``predict``, ``policy``, ``scan``, ``observe``), which know nothing of TensorDict. Parameters keep their
names: nothing is wrapped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey

from wmkit.errors import ConfigError


class Plug(TensorDictModuleBase):
    """Base of every part.

    Attributes:
        in_keys: what ``forward`` reads.
        out_keys: what it writes.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> class Double(Plug):
    ...     def __init__(self, in_keys=("x",), out_keys=("y",)):
    ...         super().__init__()
    ...         self.set_plug(in_keys, out_keys)
    ...     def forward(self, tensordict):
    ...         return tensordict.set(self.out_keys[0], 2 * tensordict.get(self.in_keys[0]))
    >>> Double(in_keys=[("agent", "x")])(TensorDict({"agent": {"x": torch.ones(3)}}, [3]))["y"]
    tensor([2., 2., 2.])
    """

    in_keys: list[NestedKey]
    out_keys: list[NestedKey]

    def set_plug(self, in_keys: Iterable[NestedKey], out_keys: Iterable[NestedKey]) -> None:
        """Name what is read and written; call once, at the end of a constructor."""
        self.in_keys, self.out_keys = as_keys(in_keys), as_keys(out_keys)


def as_keys(keys: NestedKey | Iterable[NestedKey], count: int | None = None, name: str = "keys") -> list[Any]:
    """Keys as TensorDict writes them; a single name is one key.

    Args:
        keys: names, or tuples of names for nested ones. Lists within a list, as YAML has them, are tuples.
        count: how many are wanted; any number if not given.
        name: of the argument, for messages.

    Raises:
        ConfigError: another number of keys.

    >>> as_keys(["state", ["next", "state"], ("agent", ("belief",))])
    ['state', ('next', 'state'), ('agent', 'belief')]
    >>> as_keys("state")
    ['state']
    """
    listed = [keys] if isinstance(keys, str) else list(keys)
    found = [unravel_key(tuple(key) if isinstance(key, list) else key) for key in listed]
    if count is not None and len(found) != count:
        raise ConfigError(f"{name} are {found}: wanted {count} of them; name as many")
    return found


def has_all(tensordict: TensorDictBase, keys: Iterable[NestedKey]) -> bool:
    """Whether every key is there.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> has_all(TensorDict({"a": {"b": torch.zeros(2)}}, [2]), [("a", "b")])
    True
    """
    return all(tensordict.get(key, None) is not None for key in keys)


class Key(NamedTuple):
    """A batch key that a part needs beyond its inputs.

    Attributes:
        shape: of one record.
        dtype: as replay stores it.
        default: where a batch does not carry it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    default: float = 0.0
