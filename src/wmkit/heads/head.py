"""Heads: a trunk, a distribution and a label; what is read is a list of keys.

The inputs of a head or an actor are keys of a TensorDict, side by side (:func:`read`). There is one class for
all heads. Rewards of DreamerV3 read the state that an action led to, those of TWM and STORM the belief alone,
before that state is seen; LS-Imagine's spans read both ends of a jump: that is ``in_keys``. The named heads
below are :class:`Head` with other defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from wmkit import fast
from wmkit.errors import ConfigError
from wmkit.heads.outputs import Distribution, Prediction, TwoHotBins, named_distribution
from wmkit.nn import (
    MLP,
    STYLE_2023,
    Bernoulli,
    DenseNormAct,
    EnsembleMLP,
    Feature,
    LayerStyle,
    Linear,
    init_output,
)
from wmkit.plug import Key, Plug, as_keys, has_all

ARRIVAL = ("state", "belief")  # after the observation was seen
TRANSITION = ("state", "belief", ("next", "state"), ("next", "belief"))  # both ends of it
_TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "sign": torch.sign}


def in_keys_of(maker: Callable[..., Any]) -> list[NestedKey]:
    """The in-keys of the head that a maker will make; the width of its input follows from them.

    Args:
        maker: a class with ``default_in_keys``, or a :class:`functools.partial` of one. ``in_keys`` among
            the partial's keywords come first, those of a ``memory`` before them.

    >>> from functools import partial
    >>> from wmkit.heads import JumpSpanHead, RewardHead
    >>> in_keys_of(partial(RewardHead, in_keys=["belief"], units=8, layers=1))
    ['belief']
    >>> in_keys_of(JumpSpanHead)
    ['state', 'belief', ('next', 'state'), ('next', 'belief')]
    """
    given = getattr(maker, "keywords", {})
    if given.get("memory") is not None:  # an actor's own memory reads first
        return in_keys_of(given["memory"])
    if (keys := given.get("in_keys")) is not None:
        return as_keys(keys)
    inner = getattr(maker, "func", None)
    return in_keys_of(inner) if inner is not None else as_keys(getattr(maker, "default_in_keys", ARRIVAL))


def read(tensordict: TensorDictBase, in_keys: list[NestedKey]) -> Tensor:
    """The entries ``[*B, D_i]`` side by side, ``[*B, sum of D_i]``.

    Raises:
        KeyError: one is missing.
    """
    found = [tensordict.get(key, None) for key in in_keys]
    missing = [key for key, value in zip(in_keys, found, strict=True) if value is None]
    if missing:
        there = ", ".join(map(str, tensordict.keys(True, True)))
        raise KeyError(
            f"{missing[0]!r} is missing: found {there}; rename in_keys, or run the part that writes it"
        )
    return found[0] if len(found) == 1 else torch.cat(found, -1)


def is_next(key: NestedKey) -> bool:
    """Whether a key belongs to the next record."""
    return isinstance(key, tuple) and key[0] == "next"


def takes_parts(trunk: nn.Module) -> bool:
    """Whether a trunk multiplies a :class:`~wmkit.nn.Feature` part by part."""
    return isinstance(trunk, nn.Sequential) and len(trunk) > 0 and isinstance(trunk[0], DenseNormAct)


def first_weight(part: nn.Module) -> Tensor | None:
    """The weight of a head's or an actor's first layer, where that multiplies a feature part by part."""
    trunk: Any = getattr(part, "trunk", None)
    return trunk[0].linear.weight if trunk is not None and takes_parts(trunk) else None


def prepared(features: Tensor | Feature, in_parts: bool) -> Tensor | Feature:
    """Features as a trunk takes them: in parts, or as one tensor ``[*B, F]``."""
    return features if in_parts or isinstance(features, Tensor) else features.dense


def _hooked(layer: nn.Module) -> bool:
    """Whether somebody wants to see its calls, which :class:`~wmkit.fast.LastLayer` makes none of."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks)


class Head(Plug):
    """A prediction from features.

    ``forward`` reads ``in_keys`` from a TensorDict ``[*B]`` and writes what is predicted, ``[*B, 1]``, to
    ``out_keys``. Where something it reads under ``"next"`` is missing, since one record does not
    hold a transition, it writes nothing.

    Args:
        in_dim: width of all that is read, together.
        target: key of the label in a batch; only needed by :meth:`label`.
        units: width of the trunk.
        layers: depth of the trunk.
        distribution: what is predicted: ``"bernoulli"`` (a flag), ``"normal"`` (a mean with unit variance,
            DreamerV1 and V2), ``"symlog_two_hot"`` (DreamerV3 of 2023), ``"symexp_two_hot"`` (since 2024),
            ``"signs"`` (one of -1, 0 and 1) or ``"two_logits"`` (a flag, IRIS);
            or what turns ``[*B, width]`` numbers into a :class:`~wmkit.heads.Prediction`, such as
            :class:`~wmkit.heads.TwoHotBins`; without a ``width`` it gets one number.
        transform: of the label: ``"none"``, ``"tanh"``, ``"sign"`` or a function. Predictions stay in these
            units.
        trunk: makes the whole network instead, output included, called as ``trunk(in_dim, units=, layers=,
            style=, out_dim=, outscale=, bias=)``, e.g. :class:`~wmkit.nn.MLP` with dropout (TWM).
        outscale: scale of the output layer; the distribution's own if not given, which is zero for two-hot
            codes, so that their predictions start at zero.
        bias: what the output layer's bias starts with; left to ``style`` if not given.
        style: norm, activation, bias and initialisation.
        readout: what :meth:`value` is: the prediction's mean, or a ``"sample"`` of it (IRIS).
        in_keys: what is read, side by side; state and belief if not given.
        out_keys: where it is written; ``("predicted", target)`` if not given.

    Raises:
        ConfigError: an unknown distribution, transform or readout.

    >>> head = Head(16, target="reward", units=8, layers=1, distribution="normal", in_keys=["belief"])
    >>> head.predict(torch.zeros(2, 16)).mean.shape
    torch.Size([2, 1])
    >>> from tensordict import TensorDict
    >>> head(TensorDict({"belief": torch.zeros(2, 16)}, [2]))["predicted", "reward"].shape
    torch.Size([2, 1])
    """

    default_in_keys: ClassVar[Sequence[NestedKey]] = ARRIVAL
    default_out_keys: ClassVar[Sequence[NestedKey] | None] = None
    default_target: ClassVar[str | None] = None
    default_distribution: ClassVar[Distribution] = "normal"

    def __init__(
        self,
        in_dim: int,
        *,
        target: str | None = None,
        units: int,
        layers: int,
        distribution: Distribution | Callable[[Tensor], Prediction] | None = None,
        transform: Literal["none", "tanh", "sign"] | Callable[[Tensor], Tensor] = "none",
        trunk: Callable[..., nn.Module] | None = None,
        outscale: float | None = None,
        bias: float | None = None,
        style: LayerStyle = STYLE_2023,
        readout: Literal["mean", "mode", "sample"] = "mean",
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
    ) -> None:
        super().__init__()
        if readout not in ("mean", "mode", "sample"):
            raise ConfigError(f"readout is {readout!r}: wanted mean, mode or sample; correct readout")
        self.readout = readout
        if not callable(transform) and transform not in ("none", *_TRANSFORMS):
            raise ConfigError(
                f"transform is {transform!r}: wanted one of none, {', '.join(_TRANSFORMS)}, or a function; "
                "correct transform"
            )
        self.target = target or self.default_target
        self.transform = transform
        distribution = distribution or self.default_distribution
        if isinstance(distribution, str):
            distribution = named_distribution(distribution)
        self.distribution = distribution
        out_dim: int = getattr(distribution, "width", 1)
        outscale = getattr(distribution, "outscale", 1.0) if outscale is None else outscale
        self.out: nn.Linear | None
        if trunk is None:
            self.trunk: nn.Module = MLP(in_dim, units=units, layers=layers, style=style)
            out = init_output(Linear(units if layers else in_dim, out_dim), outscale, style.init)
            if bias is not None:
                nn.init.constant_(out.bias, bias)
            self.out = out
        else:
            options: dict[str, Any] = {"out_dim": out_dim, "outscale": outscale, "bias": bias}
            self.trunk = trunk(in_dim, units=units, layers=layers, style=style, **options)
            self.out = None
        self._in_parts = takes_parts(self.trunk)
        self._is_named = out_keys is not None
        usual = self.default_out_keys or [("predicted", self.target or "value")]
        self.set_plug(
            self.default_in_keys if in_keys is None else in_keys,
            as_keys(usual if out_keys is None else out_keys, 1, "out_keys"),
        )

    @property
    def needs(self) -> dict[str, Key]:
        """The batch key of the label."""
        flag = self.distribution is Bernoulli
        return {} if self.target is None else {self.target: Key((1,), torch.bool if flag else torch.float32)}

    def named(self, name: str) -> Head:
        """Write to ``("predicted", name)``, unless ``out_keys`` were given; returns itself."""
        if not self._is_named:
            self.out_keys = [("predicted", name)]
        return self

    def predict(self, features: Tensor | Feature) -> Prediction:
        """Predict from ``[*B, in_dim]``."""
        hidden = self.trunk(prepared(features, self._in_parts))
        if self.out is None:
            return self.distribution(hidden)
        if (
            isinstance(self.distribution, TwoHotBins)
            and not _hooked(self.out)
            and fast.LastLayer.helps(hidden)
        ):
            return self.distribution(fast.LastLayer(hidden, self.out.weight, self.out.bias))
        return self.distribution(self.out(hidden))

    def label(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The target ``[*B, 1]`` in a batch, transformed.

        Raises:
            ConfigError: the head has no ``target``.
        """
        if self.target is None:
            raise ConfigError(f"{type(self).__name__} has no target: wanted a key of a batch; give it target")
        label = batch[self.target]
        if callable(self.transform):
            return self.transform(label)
        return label if self.transform == "none" else _TRANSFORMS[self.transform](label)

    def value(self, prediction: Prediction) -> Tensor:
        """What a prediction says, ``[*B, 1]``, and ``forward`` writes: its mean, or a sample of it."""
        said: Any = getattr(prediction, self.readout)
        return said() if self.readout == "sample" else said

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Read ``in_keys`` of a TensorDict ``[*B]``, write the prediction, and return it."""
        if not has_all(tensordict, filter(is_next, self.in_keys)):
            return tensordict
        prediction = self.predict(read(tensordict, self.in_keys))
        return tensordict.set(self.out_keys[0], self.value(prediction))


class RewardHead(Head):
    """The reward that came with a state, or another key of the batch (:class:`Head`).

    >>> head = RewardHead(16, units=8, layers=1, distribution="normal", transform="tanh", outscale=0.0)
    >>> head.label({"reward": torch.tensor([[100.0]])}), head.predict(torch.zeros(1, 16)).mean
    (tensor([[1.]]), tensor([[0.]], grad_fn=<AddmmBackward0>))
    """

    default_target = "reward"
    default_distribution = "symlog_two_hot"


class Critic(Head):
    """The value v(s) of a state, in units of return (:class:`Head`).

    >>> Critic(16, units=8, layers=1).out_keys
    ['state_value']
    """

    default_out_keys = ("state_value",)
    default_distribution = "symlog_two_hot"


class EnsembleCritic(Critic):
    """Several values q(s, a) of a state and the action chosen there, in units of return (TD-MPC2).

    Its predictions have the members in front: ``mean`` ``[K, *B, 1]``. ``forward`` writes their mean. It
    reads the belief after the action, which holds both where nothing is remembered.

    Args:
        in_dim: width of all that is read, together.
        members: K.
        dropout: of the first layer, where something learns.
        **options: of :class:`Head`.

    >>> critic = EnsembleCritic(16, members=5, units=8, layers=1)
    >>> critic.predict(torch.zeros(2, 16)).mean.shape
    torch.Size([5, 2, 1])
    """

    default_in_keys: ClassVar[Sequence[NestedKey]] = ("belief",)

    def __init__(self, in_dim: int, *, members: int = 5, dropout: float = 0.0, **options: Any) -> None:
        trunk = partial(EnsembleMLP, members=members, dropout=dropout)
        super().__init__(in_dim, trunk=trunk, **options)

    def value(self, prediction: Prediction) -> Tensor:
        """The mean over members, ``[*B, 1]``."""
        return prediction.mean.mean(0)


class JumpFlagHead(Head):
    """P(jump | s): is a long-term transition worth imagining from here (LS-Imagine, arXiv:2410.03618).

    >>> JumpFlagHead(16, units=8, layers=1, outscale=0.0).predict(torch.zeros(1, 16)).mean.item()
    0.5
    """

    default_target = "jump"
    default_distribution = "bernoulli"


class JumpSpanHead(Head):
    """How many environment steps a jump spans, Δ (LS-Imagine's interval predictor).

    Reads the states before and after the jump, side by side.

    >>> JumpSpanHead(32, units=8, layers=1).in_keys
    ['state', 'belief', ('next', 'state'), ('next', 'belief')]
    """

    default_in_keys = TRANSITION
    default_target = "jump_steps"
    default_distribution = "symlog_two_hot"


class JumpReturnHead(Head):
    """The mean reward inside a jump, the normalised G of LS-Imagine.

    Reads the states before and after the jump, side by side.

    >>> JumpReturnHead(32, units=8, layers=1).target
    'jump_return'
    """

    default_in_keys = TRANSITION
    default_target = "jump_return"
    default_distribution = "symlog_two_hot"
