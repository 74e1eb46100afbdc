"""The acting side of a system: filter the observation, choose an action."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.envs.utils import ExplorationType, exploration_type

from wmkit.dynamics import WorldModel


class Policy(TensorDictModuleBase):
    """Recurrent policy for a TorchRL collector, batched over environments.

    Reads the observation keys, ``is_init`` and the carried ``state``, ``belief`` and
    ``previous_action``; writes ``action``, the posterior ``state`` and ``belief`` at this
    step, and what the next step is to carry. Samples under ``ExplorationType.RANDOM`` and
    takes the mode otherwise; the posterior is sampled either way. Continuous actions are of the order
    of [-1, 1] and not clipped: what was drawn is stored and remembered, and the environment clips and
    rescales it (:func:`wmkit.envs.unit_actions`).

    A vector observation ``reward`` is read from ``arrival_reward``
    (:class:`wmkit.training.collect.ArrivalReward`), zero if that key is absent.

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
        self.action_dim, self.continuous = action_dim, continuous
        self.observations, self.exploration = tuple(observations), exploration
        read = [key for key in self.observations if key != "reward"]
        self.in_keys = [*read, "is_init", "state", "belief", "previous_action"]
        self.out_keys = ["action", "state", "belief", ("next", "previous_action")]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that declares and carries this policy's state."""
        dynamics = self.world_model.dynamics
        return TensorDictPrimer(
            {
                "state": Unbounded((dynamics.state_dim,)),
                "belief": Unbounded((dynamics.belief_dim,)),
                "previous_action": Unbounded((self.action_dim,)),
            },
            default_value=0.0,
            expand_specs=True,
        )

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act on root observations ``[*E]``."""
        lead = tensordict.batch_size
        observations = {}
        for key in self.observations:
            if key == "reward":
                value = tensordict.get("arrival_reward", None)
                value = torch.zeros(*lead, 1) if value is None else value
            else:
                value = tensordict.get(key)
            observations[key] = value.reshape(-1, *value.shape[len(lead) :])
        is_init = tensordict.get("is_init").reshape(-1)
        dynamics = self.world_model.dynamics
        carried = (tensordict.get(key).reshape(is_init.shape[0], -1) for key in ("state", "belief"))
        latent = dynamics.resume(*carried)
        previous = tensordict.get("previous_action").reshape(is_init.shape[0], -1)
        latent, _ = dynamics.filter(latent, previous, self.world_model.encoder(observations), is_init)
        choice = self.actor(latent.feature)
        sampled = exploration_type() == ExplorationType.RANDOM
        action = choice.sample() if sampled else choice.mode
        if sampled and self.exploration is not None:
            action = self.exploration(action)
        action = action.unflatten(0, lead) if len(lead) else action.squeeze(0)
        tensordict.set("action", action)
        tensordict.set("state", latent.state.reshape(*lead, -1))
        tensordict.set("belief", latent.belief.reshape(*lead, -1))
        tensordict.set(("next", "previous_action"), action.float())
        return tensordict
