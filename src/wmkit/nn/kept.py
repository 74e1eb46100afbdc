"""What is made from weights, made once for as long as the weights stay as they are.

A roll-out applies the same layers at every step and changes none of them. What a layer lays out
anew before it multiplies (rows of a transposed weight, parts of a cut one) is then the same every
time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from typing import TypeVar

import torch

T = TypeVar("T")
_kept: ContextVar[dict[Hashable, tuple[object, object]] | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def weights_unchanged() -> Iterator[None]:
    """Inside, no weight changes: :func:`kept` makes each value once.

    >>> made = []
    >>> with weights_unchanged():
    ...     for _ in range(3):
    ...         _ = kept(lambda: "key", None, lambda: made.append("once"))
    >>> made
    ['once']
    """
    if torch.compiler.is_compiling():
        yield
        return
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def kept(name: Callable[[], Hashable], owner: object, make: Callable[[], T]) -> T:
    """``make()``, or what it gave before under the same name inside :func:`weights_unchanged`.

    Args:
        name: tells what is made; identities and addresses are good while ``owner`` lives. Asked only inside.
        owner: whose weights it is made from; kept alive with the value.
        make: makes it. Its value is not to be written to.
    """
    if torch.compiler.is_compiling():
        return make()
    values = _kept.get()
    if values is None:
        return make()
    key = name()
    if key not in values:
        values[key] = (owner, make())
    return values[key][1]  # type: ignore[return-value]
