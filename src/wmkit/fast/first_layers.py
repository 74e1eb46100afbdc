"""First layers of what reads the states of a roll-out, as one product at each step.

Policy, critic and heads read the same state. Applied one after the other to all steps of a roll-out, each
fetches every state from memory again; here all of their first layers multiply a state while it has just been
made, and find their share of the product afterwards. With 16,000 narrow rows an update of DreamerV3 takes a
tenth less (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from wmkit.fast.products import sum_of_parts
from wmkit.fast.switch import enabled

_NARROW = 128  # outputs; a wider layer is as quick by itself, and its products would take memory
_MANY = 512  # rows


class FirstLayers:
    """Weights side by side, as they are now.

    Args:
        weights: each ``[D_i, S + U]``.
        state: how many columns S read the state; the others read the belief.
    """

    def __init__(self, weights: Iterable[Tensor], state: int) -> None:
        once = {id(weight): weight for weight in weights}.values()
        self._known = [(weight, weight._version) for weight in once]
        joint = torch.cat([weight.detach() for weight in once])
        self.width = len(joint)
        # The state's columns lie as rows are looked up, and both are matrices of their own.
        self.columns = joint[:, :state].t().contiguous().t(), joint[:, state:].contiguous()

    @staticmethod
    def of(weights: Iterable[Tensor | None], state: Tensor, classes: Tensor | None) -> FirstLayers | None:
        """Of the narrow ones among ``weights``, or nothing where it does not help.

        It does on a CPU, for many rows of ``state`` ``[N, S]`` whose ``classes`` are known.
        """
        narrow = [w for w in weights if w is not None and len(w) <= _NARROW and w.dtype == state.dtype]
        if len(narrow) < 2 or classes is None or len(state) < _MANY or not enabled(state):
            return None
        return FirstLayers(narrow, state.shape[-1])

    def room(self, steps: int, rows: int) -> Products:
        """Room for what they make of a roll-out's states."""
        return Products(self.columns[0].new_empty(steps, rows, self.width), self)

    def share(self, made: Tensor, weight: Tensor) -> Tensor | None:
        """What ``weight`` has made ``[*B, D]``, unless it is another one or was changed."""
        first = 0
        for known, version in self._known:
            if known is weight:
                unchanged = weight._version == version
                return made[..., first : first + len(weight)] if unchanged else None
            first += len(known)
        return None


class Products(NamedTuple):
    """What several weights make of one feature.

    Attributes:
        made: ``[*B, sum of D_i]``.
        layers: whose they are.
    """

    made: Tensor
    layers: FirstLayers

    def take(self, feature: Any, t: int) -> Products:
        """Multiply the :class:`~wmkit.nn.Feature` ``[N, F]`` of step ``t``; what is made of it alone."""
        with torch.no_grad():
            made = sum_of_parts(feature.parts, feature.classes, self.layers.columns, self.made[t])
        return Products(made, self.layers)

    def of(self, weight: Tensor) -> Tensor | None:
        """The share of ``weight``, ``[*B, D]``, if it has one."""
        return self.layers.share(self.made, weight)


register_pytree_node(FirstLayers, lambda layers: ([], layers), lambda _, layers: layers)  # nothing to map
