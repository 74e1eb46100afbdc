"""Acting on what the sequence model makes of the last steps (STORM, arXiv:2310.09615)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.envs.utils import ExplorationType, exploration_type

from wmkit.arguments import check_range
from wmkit.dynamics import Steps
from wmkit.errors import ConfigError
from wmkit.nn import Feature
from wmkit.systems.policy import in_precision, read_observation


class WindowPolicy(TensorDictModuleBase):
    """Policy for a TorchRL collector, batched over environments, with a memory of a few steps.

    Reads the observation keys, ``is_init``, ``previous_action`` and ``recent_steps`` ``[window, G + 2 + A]``,
    which it carries itself: classes of the state, reward, whether it is the first, and action of each step.
    The first step, that of an episode or ever, has no past: it acts on the observation with an empty belief.
    Samples actions under ``ExplorationType.RANDOM`` and takes the mode otherwise.

    Args:
        system: of token dynamics whose policy reads the belief too.
        window: steps that are remembered, 16 in STORM.
        reads: the state acted on: what the model expected (``"prior"``: as in its dreams, and blind to
            the present observation; the released STORM) or what is there (``"posterior"``).
        across_episodes: whether the memory goes on where an episode begins (the released STORM).

    Raises:
        ConfigError: an unknown ``reads``, no window, or stacked frames.
    """

    def __init__(
        self,
        system: Any,
        *,
        window: int = 16,
        reads: Literal["prior", "posterior"] = "prior",
        across_episodes: bool = False,
    ) -> None:
        super().__init__()
        if reads not in ("prior", "posterior"):
            raise ConfigError(f"policy.reads is {reads!r}: wanted prior or posterior; correct policy.reads")
        check_range("policy.window", window, 1)
        if system.frames.count > 1:
            raise ConfigError(
                f"a window policy reads single frames, but they are stacked by {system.frames.count}: wanted "
                "one; set observations.frames.count=1"
            )
        # Read, not owned: the system registers both.
        self.__dict__["world_model"], self.__dict__["actor"] = system.world_model, system.actor
        self.frames, self.window, self.reads = system.frames, window, reads
        self.across_episodes = across_episodes
        self.images, self.observations = system.spaces.images, system.spaces.observations
        self.action_dim = system.spaces.action_dim
        self.continuous = system.spaces.actions == "continuous"
        read = [key for key in self.observations if key != "reward"]
        self.in_keys = [*read, "is_init", "recent_steps", "previous_action"]
        self.out_keys = ["action", ("next", "recent_steps"), ("next", "previous_action")]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that declares and carries recent steps."""
        width = self.world_model.dynamics.groups + 2 + self.action_dim
        primer = _EndlessPrimer if self.across_episodes else TensorDictPrimer
        return primer(
            {
                "recent_steps": Unbounded((self.window, width)),
                "previous_action": Unbounded((self.action_dim,)),
            },
            default_value=0.0,
            expand_specs=True,
        )

    @torch.no_grad()
    @in_precision
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act on root observations ``[*E]``."""
        lead, dynamics = tensordict.batch_size, self.world_model.dynamics
        is_init = tensordict.get("is_init").reshape(-1, 1)
        rows, groups = len(is_init), dynamics.groups
        recent = tensordict.get("recent_steps").reshape(rows, self.window, -1).clone()
        first = (recent == 0).flatten(1).all(1, keepdim=True) if self.across_episodes else is_init
        recent[:, -1, groups + 2 :] = tensordict.get("previous_action").reshape(rows, -1).float()
        with self.world_model.evaluating():
            logits = dynamics.posterior_logits(self.world_model.encoder(self._observed(tensordict)))
            _, present = dynamics.sample(logits)  # [E, G]
            belief, _ = dynamics.advance(self._steps(recent), None, separate=True)
            belief = belief[:, -1].masked_fill(first, 0)
            classes = present
            if self.reads == "prior":
                _, expected = dynamics.sample(dynamics.prior_logits(belief))
                classes = torch.where(first, present, expected)
            choice = self.actor(dynamics.view(dynamics.one_hot(classes), belief, classes))
        action = choice.sample() if exploration_type() == ExplorationType.RANDOM else choice.mode
        here = torch.cat([present.float(), self._reward(tensordict), first.float(), 0 * action.float()], -1)
        remembered = torch.cat([recent[:, 1:], here.unsqueeze(1)], 1)
        action = action.unflatten(0, lead) if len(lead) else action.squeeze(0)
        tensordict.set("action", action)
        tensordict.set(("next", "recent_steps"), remembered.reshape(*lead, self.window, -1))
        return tensordict.set(("next", "previous_action"), action.float())

    def _steps(self, recent: Tensor) -> Steps:
        """Remembered steps ``[E, window, ...]`` as the sequence model takes them."""
        dynamics = self.world_model.dynamics
        classes, reward, first, action = recent.split([dynamics.groups, 1, 1, self.action_dim], -1)
        state = dynamics.one_hot(classes.long())
        return Steps(Feature(state, state[..., :0], classes.long()), action, reward, first[..., 0] > 0)

    def _observed(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        observed = {}
        for key in self.observations:
            value = self._reward(tensordict) if key == "reward" else self._flat(tensordict, key)
            observed[key] = self.frames.frame(value) if key in self.images else value
        return observed

    def _reward(self, tensordict: TensorDictBase) -> Tensor:
        """Reward on arriving ``[E, 1]``, in the reward head's units, where nothing is zero too."""
        return self.world_model.reward({"reward": self._flat(tensordict, "reward")})

    def _flat(self, tensordict: TensorDictBase, key: str) -> Tensor:
        value = read_observation(tensordict, key)
        return value.reshape(-1, *value.shape[tensordict.batch_dims :])


class _EndlessPrimer(TensorDictPrimer):
    """Keeps what there was where single environments are reset.

    TorchRL hides everything else from such a reset, so the last step's values are held here.
    """

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        arrived = super()._step(tensordict, next_tensordict)
        self._held = arrived.select(*self.primers.keys(True, True))
        return arrived

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        if "_reset" in tensordict.keys():
            return tensordict_reset.update(self._held)
        return super()._reset(tensordict, tensordict_reset)
