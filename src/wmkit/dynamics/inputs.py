"""How state and action enter a sequence model, with what is known ahead taken out of the loop.

Over a window all actions and embeddings are known before the first step; only state and belief
arrive one by one. So each layer over ``[carried, known]`` is cut in two: the known part is
multiplied for all steps at once, and the weights are cut once per loop, because a cut inside
of it would put its gradient together again at every step.

* :class:`JointInput`: one layer over ``[state, action]`` (DreamerV2, DreamerV3 of 2023);
* :class:`SplitInput`: one layer over each, side by side (DreamerV3 since 2024).

Either one, bound to a backbone, is a :class:`Transition`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wmkit import fast
from wmkit.backbones import Carry, SequenceModel
from wmkit.nn import STYLE_2023, DenseNormAct, LayerStyle


class Transition(Protocol):
    """The step of a sequence model as seen from state and action, good for one loop."""

    def ahead(self, action: Tensor) -> Tensor:
        """What actions ``[*B, A]`` add, for all steps at once."""
        ...

    def step(
        self, state: Tensor, classes: Tensor | None, carry: Carry, reset: Tensor | None, ahead: Tensor
    ) -> tuple[Tensor, Carry]:
        """From ``state [B, G*C]`` (its classes ``[B, G]`` where known) to a belief ``[B, U]`` and a carry.

        ``reset`` is ``[B]`` bool; none where nothing is reset.
        """
        ...


@dataclass(frozen=True)
class CutLayer:
    """A dense layer over ``[carried, known]`` with its weight cut in two.

    Attributes:
        layer: whose weight it is.
        carried: its ``[D, K]`` columns for what arrives step by step, for the whole loop.
        known: ``[D, R]`` columns for what is known ahead.

    >>> layer = DenseNormAct(5, 8)
    >>> cut, x = CutLayer.of(layer, 2), torch.randn(3, 5)
    >>> torch.allclose(cut.finish(x[:, :2], cut.ahead(x[:, 2:])), layer(x), atol=1e-5)
    True
    """

    layer: DenseNormAct
    carried: Tensor
    known: Tensor

    @classmethod
    def of(cls, layer: DenseNormAct, carried: int) -> CutLayer:
        """Cut after the first ``carried`` columns."""
        weight = layer.linear.weight
        step, known = weight.split([carried, weight.shape[1] - carried], 1)
        return cls(layer, _looked_up(step), known)

    def ahead(self, known: Tensor) -> Tensor:
        """``[*B, R] -> [*B, D]``: its share of the product, and the bias."""
        return fast.linear(known, self.known, self.layer.linear.bias)

    def finish(self, carried: Tensor, ahead: Tensor, classes: Tensor | None = None) -> Tensor:
        """``[*B, K]`` and ``[*B, D]`` -> the layer's output ``[*B, D]``.

        Args:
            carried: what arrived at this step.
            ahead: see :meth:`ahead`.
            classes: ``[*B, G]`` int64 if ``carried`` is one-hot and they are known.
        """
        product = _product(carried, classes, self.carried)
        return self.layer.style.activate(self.layer.norm(product + ahead), fresh=True)


def _looked_up(weight: Tensor) -> Tensor:
    """A weight in the memory order in which its columns are looked up, where nothing learns."""
    return weight if torch.is_grad_enabled() else weight.t().contiguous().t()


def _product(x: Tensor, classes: Tensor | None, weight: Tensor) -> Tensor:
    if classes is None or torch.is_grad_enabled():
        return fast.linear(x, weight)
    return fast.one_hot_linear(classes, weight)


class JointInput(DenseNormAct):
    """One layer over state and action together.

    Args:
        state_dim: width of a state.
        action_dim: width of an action.
        hidden: width of the layer.
        style: see :class:`~wmkit.nn.LayerStyle`.

    >>> from wmkit import backbones
    >>> gru, joint = backbones.build("ln_gru", 8, 16), JointInput(6, 3, 8)
    >>> transition = joint.bind(gru)
    >>> ahead, reset = transition.ahead(torch.zeros(2, 3)), torch.zeros(2, dtype=torch.bool)
    >>> transition.step(torch.zeros(2, 6), None, gru.initial(2), reset, ahead)[0].shape
    torch.Size([2, 16])
    """

    def __init__(self, state_dim: int, action_dim: int, hidden: int, style: LayerStyle = STYLE_2023) -> None:
        super().__init__(state_dim + action_dim, hidden, style)
        self.state_dim, self.out_dim = state_dim, hidden

    def bind(self, backbone: SequenceModel) -> Transition:
        """Ready for one loop over this backbone."""
        return _JointTransition(CutLayer.of(self, self.state_dim), backbone.bind(0))


class SplitInput(nn.Module):
    """A layer over the state and a layer over the action, side by side.

    Args:
        state_dim: width of a state.
        action_dim: width of an action.
        hidden: width of each layer; an input of the backbone has twice as many numbers.
        style: see :class:`~wmkit.nn.LayerStyle`.

    >>> from wmkit import backbones
    >>> gru, split = backbones.build("block_gru", 16, 32), SplitInput(6, 3, 8)
    >>> transition = split.bind(gru)
    >>> ahead, reset = transition.ahead(torch.zeros(2, 3)), torch.zeros(2, dtype=torch.bool)
    >>> transition.step(torch.zeros(2, 6), None, gru.initial(2), reset, ahead)[0].shape
    torch.Size([2, 32])
    """

    def __init__(self, state_dim: int, action_dim: int, hidden: int, style: LayerStyle = STYLE_2023) -> None:
        super().__init__()
        self.state = DenseNormAct(state_dim, hidden, style)
        self.action = DenseNormAct(action_dim, hidden, style)
        self.out_dim = 2 * hidden

    def bind(self, backbone: SequenceModel) -> Transition:
        """Ready for one loop over this backbone."""
        weight = _looked_up(self.state.linear.weight)
        return _SplitTransition(self, weight, backbone.bind(self.out_dim // 2))


@dataclass(frozen=True)
class _JointTransition:
    layer: CutLayer
    loop: Any

    def ahead(self, action: Tensor) -> Tensor:
        return self.layer.ahead(action)

    def step(
        self, state: Tensor, classes: Tensor | None, carry: Carry, reset: Tensor | None, ahead: Tensor
    ) -> tuple[Tensor, Carry]:
        x = self.layer.finish(state, ahead, classes)
        return self.loop.step(x, carry, reset, self.loop.ahead(x[..., :0]))  # no column is known ahead


@dataclass(frozen=True)
class _SplitTransition:
    layers: SplitInput
    weight: Tensor
    loop: Any

    def ahead(self, action: Tensor) -> Tensor:
        return self.loop.ahead(self.layers.action(action))

    def step(
        self, state: Tensor, classes: Tensor | None, carry: Carry, reset: Tensor | None, ahead: Tensor
    ) -> tuple[Tensor, Carry]:
        x = self.layers.state.finish(_product(state, classes, self.weight))
        return self.loop.step(x, carry, reset, ahead)
