"""A world model as a TorchRL environment: any policy, loss, planner or collector of TorchRL runs in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, OneHot, TensorSpec, Unbounded
from torchrl.envs import ModelBasedEnvBase

from wmkit.dynamics import Latent, WorldModel
from wmkit.errors import ConfigError

ENDS = ("likely", "sampled", "never")


class DreamEnv(ModelBasedEnvBase):
    """Imagination as an environment, batched.

    What the agent observes is what the dynamics pack: ``state``, ``belief`` and, where the sequence model
    carries more than its output, ``carry``. A step samples the prior. Under ``next`` stand ``reward`` ``[*B,
    1]`` (what the heads predict, in their units), ``continuation`` ``[*B, 1]``, ``terminated`` and ``done``.
    Episodes have no limit of their own: append TorchRL's ``StepCounter``.

    Args:
        world_model: read, not owned; without gradient and dropout.
        action_spec: of one row: one-hot or bounded floats, as of the environment that the model has learned.
        batch_size: of the environment.
        start: where episodes begin: a TensorDict ``[M]`` of what the dynamics pack, of which rows are drawn
            uniformly, or a function of a number of rows; the initial state, that of a model which has seen
            nothing, if not given.
        rewards: heads whose predictions add up to the reward, with their factors.
        ends: an episode ends where its end is the likelier (``"likely"``), by a draw from the predicted
            continuation (``"sampled"``, where this holds a discount a draw from it), or ``"never"``.
        relaxed: takes a one-hot action as floats between 0 and 1, of which the largest is chosen: for
            planners that search over numbers.
        gradient: let gradients through the steps, for policies that climb through the model.

    Raises:
        ConfigError: an unknown ``ends``.

    >>> from torchrl.data import Composite, OneHot, Unbounded
    >>> import wmkit
    >>> spec, tiny = Composite(observation=Unbounded((2,))), ["size=tiny"]
    >>> system = wmkit.build("dreamer_v3", observation_spec=spec, action_spec=OneHot(3), overrides=tiny)
    >>> env = system.dream_env([5], ends="never")
    >>> env.rollout(4)["next", "reward"].shape
    torch.Size([5, 4, 1])
    """

    def __init__(
        self,
        world_model: WorldModel,
        action_spec: TensorSpec,
        *,
        batch_size: Any = (),
        start: TensorDictBase | Callable[[int], TensorDictBase] | None = None,
        rewards: Mapping[str, float] | None = None,
        ends: Literal["likely", "sampled", "never"] = "likely",
        relaxed: bool = False,
        gradient: bool = False,
    ) -> None:
        if ends not in ENDS:
            raise ConfigError(f"ends is {ends!r}: wanted one of {', '.join(ENDS)}; correct ends")
        device = next(world_model.parameters()).device
        super().__init__(world_model, device=device, batch_size=torch.Size(batch_size))
        del self.world_model  # read, not owned
        self.__dict__["world_model"] = world_model
        self.rewards = dict({"reward": 1.0} if rewards is None else rewards)
        self.start, self.ends, self.gradient = start, ends, gradient
        self.relaxed = relaxed and isinstance(action_spec, OneHot)
        if self.relaxed:
            action_spec = Bounded(0.0, 1.0, action_spec.shape)
        lead = self.batch_size
        carried = world_model.dynamics.dream_shapes
        observed = {key: Unbounded((*lead, *shape), device=device) for key, shape in carried.items()}
        one = {"continuation": Unbounded((*lead, 1), device=device)}
        self.observation_spec = Composite({**observed, **one}, shape=lead, device=device)
        self.state_spec = Composite(
            {key: spec.clone() for key, spec in observed.items()}, shape=lead, device=device
        )
        self.action_spec = action_spec.to(device).expand(*lead, *action_spec.shape)
        self.reward_spec = Unbounded((*lead, 1), device=device)
        flag = Binary(1, (*lead, 1), dtype=torch.bool, device=device)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), shape=lead, device=device)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        """Start states; those that are given, or only the rows that ``_reset`` names."""
        keys, lead, mask, given = self.world_model.dynamics.dream_shapes, self.batch_size, None, None
        if tensordict is not None:
            lead, mask = tensordict.batch_size, tensordict.get("_reset", None)
            given = {key: tensordict.get(key, None) for key in keys}
            given = None if any(value is None for value in given.values()) else given
        if given is not None and mask is None:
            packed = given
        else:
            packed = {key: x.reshape(*lead, *x.shape[1:]) for key, x in self._starts(lead.numel()).items()}
            if given is not None and mask is not None:
                chosen = mask.reshape(*lead, 1)
                packed = {key: torch.where(_like(chosen, x), x, given[key]) for key, x in packed.items()}
        never = torch.zeros(*lead, 1, dtype=torch.bool, device=self.device)
        beside = {"continuation": never + 1.0, "done": never, "terminated": never.clone()}
        return TensorDict({**packed, **beside}, lead, device=self.device)

    def _starts(self, rows: int) -> dict[str, Tensor]:
        dynamics = self.world_model.dynamics
        if self.start is None:
            with torch.no_grad():
                return dynamics.pack(dynamics.initial(rows))
        if isinstance(self.start, TensorDictBase):
            pick = torch.randint(len(self.start), (rows,), device=self.start.device)
            found = self.start[pick]
        else:
            found = self.start(rows)
        return {key: found.get(key).to(self.device) for key in dynamics.dream_shapes}

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        """One imagined step of every row."""
        model, lead = self.world_model, tensordict.batch_size
        keys = model.dynamics.dream_shapes
        flat = {key: tensordict.get(key).reshape(-1, *shape) for key, shape in keys.items()}
        action = tensordict.get(self.action_key)
        action = action.reshape(-1, action.shape[-1]).float()
        if self.relaxed:
            action = torch.nn.functional.one_hot(action.argmax(-1), action.shape[-1]).float()
        with torch.set_grad_enabled(self.gradient and torch.is_grad_enabled()), model.evaluating():
            after = model.step(model.dynamics.unpack(flat), action)
            packed = model.dynamics.pack(after)
            reward = self._reward(after)
            continuation = model.continuation(after)
        over = self._over(continuation)
        written = {
            **packed,
            "reward": reward,
            "continuation": continuation,
            "done": over,
            "terminated": over.clone(),
        }
        shaped = {key: value.reshape(*lead, *value.shape[1:]) for key, value in written.items()}
        return TensorDict(shaped, lead, device=self.device)

    def _reward(self, latent: Latent) -> Tensor:
        parts = [scale * self.world_model.read_out(name, latent) for name, scale in self.rewards.items()]
        return sum(parts, torch.zeros_like(latent.belief[:, :1]))

    def _over(self, continuation: Tensor) -> Tensor:
        if self.ends == "never":
            return torch.zeros_like(continuation, dtype=torch.bool)
        threshold: Any = 0.5 if self.ends == "likely" else torch.rand_like(continuation)
        return continuation <= threshold

    def _set_seed(self, seed: int | None) -> None:
        """Chance comes from PyTorch's generator."""


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))
