"""Actors: features to a distribution over actions.

An actor says what chance it needs: ``actor.noise(H, N)`` draws, for H steps of N rows, what
``actor.policy(features).sample(noise[t])`` turns into actions, so that a roll-out draws before its loop.
``actor.actions`` names the kinds of action it can choose, ``"discrete"`` or ``"continuous"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, exploration_type

from wmkit.arguments import check_range
from wmkit.errors import ConfigError
from wmkit.heads.action_distribution import ActionDistribution, Policy
from wmkit.heads.head import ARRIVAL, prepared, read, takes_parts
from wmkit.heads.memory import ActorMemory
from wmkit.nn import (
    MLP,
    STYLE_2023,
    BoundedNormal,
    Feature,
    LayerStyle,
    Linear,
    OneHotCategorical,
    SquashedNormal,
    TanhNormal,
    TruncatedNormal,
    init_output,
)
from wmkit.plug import Plug, as_keys


class Actor(Plug):
    """A trunk, output layers, and the distribution over actions that these parametrise.

    A kind of actor fills in what is open: the class attributes, :meth:`distribution` and :meth:`noise`.
    ``forward`` reads ``in_keys`` from a TensorDict ``[*B]`` and writes ``action`` ``[*B, A]``: a sample under
    ``ExplorationType.RANDOM``, the mode otherwise.

    Args:
        in_dim: width of all that is read, together.
        action_dim: width A of an action; for discrete actions how many there are.
        units: width of the trunk.
        layers: depth of the trunk.
        outscale: scale of the output layers; that of the kind if not given.
        style: norm, activation, bias and initialisation.
        memory: called as ``memory(in_dim)``, what remembers (:class:`~wmkit.heads.ActorMemory`): it reads
            those features, the policy what it gives. None has only what a state holds.
        in_keys: what is read, side by side; state and belief if not given, or ``memory`` where there is one.
        out_keys: where the action is written, and its log-probability; ``action`` and ``action_log_prob``
            if not given.
        return_log_prob: write the log-probability ``[*B]`` of the action too.
        **options: numbers of the distribution, see each kind.

    Attributes:
        actions: kinds of action it can choose.
        outputs: output layers by name, in widths of an action. Two layers are not one of twice the width:
            optimisers clip gradients tensor by tensor.
        options: the distribution's numbers and what they are if not given. Each becomes an attribute.

    Raises:
        ConfigError: an unknown option, a negative one, or another number of ``out_keys`` than is written.

    >>> from tensordict import TensorDict
    >>> actor = DiscreteActor(16, 3, units=8, layers=1, in_keys=["state"], return_log_prob=True)
    >>> acted = actor(TensorDict({"state": torch.zeros(2, 16)}, [2]))
    >>> acted["action"].shape, acted["action_log_prob"].shape
    (torch.Size([2, 3]), torch.Size([2]))
    """

    actions: ClassVar[tuple[str, ...]] = ("continuous",)
    outputs: ClassVar[Mapping[str, int]] = {"mean": 1, "std": 1}
    options: ClassVar[Mapping[str, float]] = {}
    limits: ClassVar[Mapping[str, float]] = {}  # what an option stays below
    default_outscale: ClassVar[float] = 1.0
    default_in_keys: ClassVar[Sequence[NestedKey]] = ARRIVAL

    def __init__(
        self,
        in_dim: int,
        action_dim: int,
        *,
        units: int,
        layers: int,
        outscale: float | None = None,
        style: LayerStyle = STYLE_2023,
        memory: Callable[[int], ActorMemory] | None = None,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
        return_log_prob: bool = False,
        **options: float,
    ) -> None:
        super().__init__()
        self.memory: Any = None
        if memory is not None:
            self.memory = memory(in_dim)
            in_dim, in_keys = self.memory.out_dim, self.memory.out_keys
        self.action_dim, self.return_log_prob = action_dim, return_log_prob
        self._told = {**self.options, **options}
        for name, number in self._told.items():
            if name not in self.options or isinstance(number, bool) or not isinstance(number, int | float):
                raise ConfigError(
                    f"{name} is {number!r}: {type(self).__name__} takes {', '.join(self.options)}, each a "
                    f"number; correct {name}"
                )
            check_range(name, number, 0, self.limits.get(name, math.inf), open_end=True)
            setattr(self, name, number)
        outscale = self.default_outscale if outscale is None else outscale
        self.trunk = MLP(in_dim, units=units, layers=layers, style=style)
        self._in_parts = takes_parts(self.trunk)
        for name, count in self.outputs.items():
            layer: nn.Linear = Linear(units if layers else in_dim, count * action_dim)
            self.add_module(name, init_output(layer, outscale, style.init))
        usual = ("action", "action_log_prob")[: 1 + return_log_prob]
        self.set_plug(
            self.default_in_keys if in_keys is None else in_keys,
            as_keys(usual if out_keys is None else out_keys, len(usual), "out_keys"),
        )

    def distribution(self, *numbers: Tensor) -> Policy:
        """The distribution that the output layers' ``numbers`` parametrise, ``[*B, width]`` each."""
        raise NotImplementedError

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """Noise that samples are made from: standard normals ``[*lead, A]``, unless a kind has its own."""
        return torch.randn(*lead, self.action_dim, device=device)

    def policy(self, features: Tensor | Feature) -> Policy:
        """Distribution over actions at features ``[*B, in_dim]``."""
        hidden = self.trunk(prepared(features, self._in_parts))
        return self.distribution(*(getattr(self, name)(hidden) for name in self.outputs))

    def get_dist(self, tensordict: TensorDictBase) -> ActionDistribution:
        """The policy at a TensorDict ``[*B]``, as TorchRL's losses ask for it."""
        features = read(tensordict, self.in_keys)
        noise = partial(self.noise, device=features.device)
        return ActionDistribution(self.policy(features), features.shape[:-1], noise)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Read ``in_keys`` of a TensorDict ``[*B]``, write an action, and return it."""
        policy = self.policy(read(tensordict, self.in_keys))
        action = policy.sample() if exploration_type() == ExplorationType.RANDOM else policy.mode
        tensordict.set(self.out_keys[0], action)
        if self.return_log_prob:
            tensordict.set(self.out_keys[1], policy.log_prob(action))
        return tensordict


class DiscreteActor(Actor):
    """Categorical policy with a share of uniform exploration (DreamerV3, arXiv:2301.04104).

    Its ``outscale`` is 1 in 2023, 0.01 since 2024.

    Attributes:
        unimix: share of the uniform: 0.01 as published, of which danijar/dreamerv3 e3f0224 uses none.

    >>> DiscreteActor(16, 12, units=8, layers=1).policy(torch.zeros(2, 16)).mode.shape
    torch.Size([2, 12])
    """

    actions = ("discrete",)
    outputs: ClassVar[Mapping[str, int]] = {"out": 1}
    options: ClassVar[Mapping[str, float]] = {"unimix": 0.01}
    limits: ClassVar[Mapping[str, float]] = {"unimix": 1}
    unimix: float

    def distribution(self, *numbers: Tensor) -> OneHotCategorical:
        """From logits."""
        return OneHotCategorical(numbers[0], self.unimix)

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """Uniforms ``[*lead, 1]``."""
        return torch.rand(*lead, 1, device=device)

    def get_extra_state(self) -> dict[str, float]:
        """The share of uniform, which loading official weights changes, and the one it was built with."""
        return {"unimix": self.unimix, "told": self._told["unimix"]}

    def set_extra_state(self, state: dict[str, float]) -> None:
        """Take the share of uniform back, unless this actor was built with another one than the saved."""
        # An older state does not say. Only official weights make it zero, whatever it was built with.
        told = self._told["unimix"]
        if state.get("told", state["unimix"] or told) == told:
            self.unimix = state["unimix"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # An older state has no share: it stays as built.
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *rest)


class ContinuousActor(Actor):
    """Independent normals of bounded mean and spread (DreamerV3, danijar/dreamerv3 e3f0224).

    Actions are neither squashed nor clipped here: the environment clips them to [-1, 1].

    Attributes:
        low: smallest standard deviation, 0.1.
        high: largest, 1.

    >>> actor = ContinuousActor(16, 6, units=8, layers=1, outscale=0.0)
    >>> actor.policy(torch.zeros(2, 16)).sample(actor.noise(2)).shape
    torch.Size([2, 6])
    """

    options: ClassVar[Mapping[str, float]] = {"low": 0.1, "high": 1.0}
    default_outscale = 0.01
    mean: nn.Linear
    std: nn.Linear
    low: float
    high: float

    def distribution(self, *numbers: Tensor) -> BoundedNormal:
        """From mean and spread."""
        mean, std = numbers
        return BoundedNormal(mean, std, self.low, self.high)


class TanhNormalActor(Actor):
    """The tanh of a normal, which stays in [-1, 1] (DreamerV1, arXiv:1912.01603, eq. 8).

    Attributes:
        scale: bound of the mean before the tanh, 5.
        initial: standard deviation before the tanh of an untrained policy, nearly; 5.
        low: smallest standard deviation before the tanh, 1e-4.

    >>> actor = TanhNormalActor(16, 6, units=8, layers=1)
    >>> actor.policy(torch.zeros(2, 16)).sample(actor.noise(2)).shape
    torch.Size([2, 6])
    """

    outputs: ClassVar[Mapping[str, int]] = {"out": 2}
    options: ClassVar[Mapping[str, float]] = {"scale": 5.0, "initial": 5.0, "low": 1e-4}
    scale: float
    initial: float
    low: float

    def distribution(self, *numbers: Tensor) -> TanhNormal:
        """From mean and spread side by side."""
        mean, std = numbers[0].chunk(2, -1)
        return TanhNormal(mean, std, scale=self.scale, initial=self.initial, low=self.low)


class SquashedNormalActor(Actor):
    """The tanh of a normal of bounded log-spread (TD-MPC2, arXiv:2310.16828).

    Attributes:
        low: smallest standard deviation before the tanh, e^-10.
        high: largest, e^2.

    >>> actor = SquashedNormalActor(16, 6, units=8, layers=1)
    >>> actor.policy(torch.zeros(2, 16)).sample(actor.noise(2)).shape
    torch.Size([2, 6])
    """

    outputs: ClassVar[Mapping[str, int]] = {"out": 2}
    options: ClassVar[Mapping[str, float]] = {"low": math.exp(-10), "high": math.exp(2)}
    low: float
    high: float

    def distribution(self, *numbers: Tensor) -> SquashedNormal:
        """From mean and spread side by side."""
        mean, spread = numbers[0].chunk(2, -1)
        return SquashedNormal(mean, spread, low=self.low, high=self.high)


class TruncatedNormalActor(Actor):
    """A normal cut at -1 and 1 (DreamerV2, arXiv:2010.02193).

    Attributes:
        low: smallest standard deviation, 0.1.

    >>> actor = TruncatedNormalActor(16, 6, units=8, layers=1)
    >>> actor.policy(torch.zeros(2, 16)).sample(actor.noise(2)).abs().max().item() <= 1
    True
    """

    options: ClassVar[Mapping[str, float]] = {"low": 0.1}
    low: float

    def distribution(self, *numbers: Tensor) -> TruncatedNormal:
        """From mean and spread."""
        mean, std = numbers
        return TruncatedNormal(mean, std, low=self.low)

    def noise(self, *lead: int, device: torch.device | None = None) -> Tensor:
        """Uniforms ``[*lead, A]``."""
        return torch.rand(*lead, self.action_dim, device=device)


class ActorChoice:
    """One policy or the other, as the environment's actions ask; for pages that take both.

    Not a module: :func:`wmkit.build` asks it for the one that the system gets.

    Args:
        discrete: makes the policy over one-hot actions, called as ``discrete(in_dim, action_dim)``.
        continuous: makes the policy over actions that are numbers, called in the same way.

    >>> from functools import partial
    >>> makers = [partial(actor, units=8, layers=1) for actor in (DiscreteActor, ContinuousActor)]
    >>> choice = ActorChoice(discrete=makers[0], continuous=makers[1])
    >>> type(choice.of("continuous")(16, 6)).__name__
    'ContinuousActor'
    """

    actions = ("discrete", "continuous")

    def __init__(self, *, discrete: Callable[..., nn.Module], continuous: Callable[..., nn.Module]) -> None:
        self.discrete, self.continuous = discrete, continuous

    def of(self, kind: str) -> Callable[..., nn.Module]:
        """The maker for ``kind``, one of :attr:`actions`."""
        return self.continuous if kind == "continuous" else self.discrete
