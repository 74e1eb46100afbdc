"""The acting side of a system: filter the observation, choose an action."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.envs.utils import ExplorationType, exploration_type

from wmkit.dynamics import WorldModel
from wmkit.systems.acting import FusedStep, fuse

ARRIVAL_REWARD = "arrival_reward"  # read where it is there, and so no in-key


def in_precision(forward: Callable[..., TensorDictBase]) -> Callable[..., TensorDictBase]:
    """A policy's ``forward`` under autocast to its ``precision``; without one, or in float32, as it is."""

    @wraps(forward)
    def act(policy: Any, tensordict: TensorDictBase) -> TensorDictBase:
        precision = getattr(policy, "precision", torch.float32)
        if precision == torch.float32:
            return forward(policy, tensordict)
        device = tensordict.get("is_init").device.type
        # Each weight is read once, and another thread may be changing it: nothing cast is kept.
        with torch.autocast(device, precision, cache_enabled=False):
            return forward(policy, tensordict)

    return act


def read_observation(tensordict: TensorDictBase, key: str) -> Tensor:
    """An observation of a root; ``reward`` is the one received on arriving, zero where none is shown."""
    if key != "reward":
        return tensordict.get(key)
    value = tensordict.get(ARRIVAL_REWARD, None)
    if value is None:
        value = torch.zeros(*tensordict.batch_size, 1, device=tensordict.get("is_init").device)
    return value


class Policy(TensorDictModuleBase):
    """Recurrent policy for a TorchRL collector, batched over environments.

    Reads the observation keys, ``is_init`` and the carried ``state``, ``belief`` and
    ``previous_action``; writes ``action``, the posterior ``state`` and ``belief`` at this
    step, and what the next step is to carry. Samples under ``ExplorationType.RANDOM`` and
    takes the mode otherwise; the posterior is sampled either way, and nothing is dropped out.
    Continuous actions are of the order of [-1, 1] and not clipped: what was drawn is stored and
    remembered, and the environment clips and rescales it (:func:`wmkit.envs.unit_actions`).

    A vector observation ``reward`` is read from ``arrival_reward``
    (:class:`wmkit.training.collect.ArrivalReward`), zero if that key is absent.

    Where the backbone carries more than the belief (attention's memory, an LSTM's cell), that goes from
    step to step too, under ``carry``; replay does not keep it.

    Args:
        world_model: encoder and dynamics are used.
        actor: features to a distribution over actions.
        action_dim: width A of an action.
        observations: keys that the encoder reads.
        continuous: whether actions are numbers rather than a choice.
        exploration: turns sampled actions ``[B, A]`` into those that are taken; none takes them as they are.
    """

    def __init__(
        self,
        world_model: WorldModel,
        actor: Any,
        action_dim: int,
        observations: Sequence[str],
        *,
        continuous: bool = False,
        exploration: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        # Read, not owned: the system registers both.
        self.__dict__["world_model"], self.__dict__["actor"] = world_model, actor
        self._parts: tuple[Any, ...] = ()
        self.__dict__["_dropping"] = []
        self._places: list[tuple[dict[str, Any], str]] = []
        self._seen: list[tuple[int, int]] = []
        self._fused_step: FusedStep | None = None
        self.action_dim, self.continuous = action_dim, continuous
        self.observations, self.exploration = tuple(observations), exploration
        read = [key for key in self.observations if key != "reward"]
        self.latent_keys = ("state", "belief", "carry") if self._carry_dim else ("state", "belief")
        self.in_keys = [*read, "is_init", *self.latent_keys, "previous_action"]
        self.out_keys = ["action", *self.latent_keys, ("next", "previous_action")]

    @property
    def _carry_dim(self) -> int:
        return self.world_model.dynamics.carry_dim

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that declares and carries this policy's state."""
        dynamics = self.world_model.dynamics
        widths = {"state": dynamics.state_dim, "belief": dynamics.belief_dim, "carry": self._carry_dim}
        carried = {key: Unbounded((widths[key],)) for key in self.latent_keys}
        return TensorDictPrimer(
            {**carried, "previous_action": Unbounded((self.action_dim,))},
            default_value=0.0,
            expand_specs=True,
        )

    @torch.no_grad()
    @in_precision
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act on root observations ``[*E]``."""
        lead = tensordict.batch_size
        flat = len(lead) == 1  # the usual case, which needs no reshaping
        observations = {}
        for key in self.observations:
            value = read_observation(tensordict, key)
            observations[key] = value if flat else value.reshape(-1, *value.shape[len(lead) :])
        is_init = tensordict.get("is_init").reshape(-1)
        carried = [tensordict.get(key) for key in (*self.latent_keys, "previous_action")]
        if not flat:
            carried = [value.reshape(len(is_init), -1) for value in carried]
        explore = exploration_type() == ExplorationType.RANDOM
        step: Callable[..., tuple[Tensor, ...]] = self._fused() or self._step
        with self._without_dropout():
            action, *latent = step(observations, *carried, is_init=is_init, explore=explore)
        if explore and self.exploration is not None:
            action = self.exploration(action)
        for key, value in zip(("action", *self.latent_keys), (action, *latent), strict=True):
            tensordict.set(key, value if flat else value.reshape(*lead, -1))
        tensordict.set(("next", "previous_action"), tensordict.get("action").float())
        return tensordict

    def _step(
        self, observations: Mapping[str, Tensor], *carried: Tensor, is_init: Tensor, explore: bool
    ) -> tuple[Tensor, ...]:
        """What :class:`~wmkit.systems.acting.FusedStep` does, by calling the parts."""
        *before, previous_action = carried
        dynamics, embed = self.world_model.dynamics, self.world_model.encoder(observations)
        latent, _ = dynamics.filter(dynamics.resume(*before), previous_action, embed, is_init)
        choice = self.actor(latent.feature)
        after = (choice.sample() if explore else choice.mode, latent.state, latent.belief)
        return (*after, dynamics.packed(latent)) if "carry" in self.latent_keys else after

    @contextmanager
    def _without_dropout(self) -> Iterator[None]:
        """Acting drops nothing out: the few modules that would are set aside for the step."""
        learning = [module for module in self._dropping if module.training]
        for module in learning:
            module.training = False
        try:
            yield
        finally:
            for module in learning:
                module.training = True

    def _fused(self) -> FusedStep | None:
        """The fused step of the weights as they are now, where there is one for such parts and precision."""
        parts = (self.world_model.encoder, self.world_model.dynamics, self.actor)
        if self._parts != parts:
            modules = [module for part in parts for module in part.modules()]
            self.__dict__["_parts"], self._seen = parts, []
            self.__dict__["_dropping"] = [module for module in modules if _drops(module)]
            owned = ((m._parameters, name) for m in modules for name in m._parameters)
            self._places = [(place, name) for place, name in owned if place[name] is not None]
        if torch.is_autocast_enabled("cpu"):  # the fused step knows float32 only
            return None
        # An optimiser's step raises a weight's version; another device or a loaded weight, its address.
        weights = [place[name] for place, name in self._places]
        seen = [(weight._version, weight.data_ptr()) for weight in weights]
        if seen != self._seen:
            self._seen, self._fused_step = seen, fuse(self.world_model, self.actor)
        return self._fused_step


def _drops(module: nn.Module) -> bool:
    """Whether a module drops numbers out in training: a layer for it, or attention over probabilities."""
    rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0.0)
    return isinstance(rate, float) and rate > 0


def recurrent_policy(system: Any) -> Policy:
    """The :class:`Policy` of a system whose posterior looks at its belief."""
    spaces = system.spaces
    continuous = spaces.actions == "continuous"
    return Policy(
        system.world_model,
        system.actor,
        spaces.action_dim,
        spaces.observations,
        continuous=continuous,
        exploration=system.exploration,
    )
