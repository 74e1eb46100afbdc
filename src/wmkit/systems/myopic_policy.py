"""Acting on the present observation alone, where the posterior needs no history (TWM)."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.envs.utils import ExplorationType, exploration_type

from wmkit.errors import ConfigError
from wmkit.systems.policy import in_precision, read_observation


class MyopicPolicy(TensorDictModuleBase):
    """Policy for a TorchRL collector, batched over environments: encode, choose; the sequence model rests.

    Reads the observation keys, ``is_init`` and, where frames are stacked, ``recent_frames``
    ``[count*C, H, W]``, the stack of the step before, which it carries itself. Samples actions under
    ``ExplorationType.RANDOM`` and takes the mode otherwise.

    Args:
        system: of a dynamics whose policy reads the state alone.
        sampled_state: act on a sample of the posterior, as the policy is trained; its mode otherwise (TWM).

    Raises:
        ConfigError: the policy reads the belief too.
    """

    def __init__(self, system: Any, *, sampled_state: bool = False) -> None:
        super().__init__()
        if (reads := system.world_model.dynamics.policy_reads) != "state":
            raise ConfigError(
                f"a myopic policy has no belief, but policy_reads is {reads!r}: wanted 'state'; set "
                "world_model.dynamics.policy_reads=state or another policy on the page"
            )
        # Read, not owned: the system registers both.
        self.__dict__["world_model"], self.__dict__["actor"] = system.world_model, system.actor
        self.frames, self.sampled_state = system.frames, sampled_state
        self.images, self.vectors = system.spaces.images, system.spaces.vectors
        self.observations = system.spaces.observations
        self.continuous = system.spaces.actions == "continuous"
        self._shapes = self.frames.shapes({key: system.spaces.shapes[key] for key in self.images})
        self._stacks = bool(self.images) and self.frames.count > 1
        self.in_keys = [*(key for key in self.observations if key != "reward"), "is_init"]
        self.out_keys: list[Any] = ["action"]
        if self._stacks:
            self.in_keys.append("recent_frames")
            self.out_keys.append(("next", "recent_frames"))

    def make_tensordict_primer(self) -> list[TensorDictPrimer]:
        """The transform that declares and carries recent frames; none without a stack."""
        if not self._stacks:
            return []
        shapes = list(self._shapes.values())
        spec = Unbounded((sum(shape[0] for shape in shapes), *shapes[0][1:]))
        return [TensorDictPrimer({"recent_frames": spec}, default_value=0.0, expand_specs=True)]

    @torch.no_grad()
    @in_precision
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act on root observations ``[*E]``."""
        lead = tensordict.batch_size
        is_init = tensordict.get("is_init").reshape(-1)
        observations = {key: self._flat(tensordict, key) for key in self.vectors}
        observations |= self._stacked(tensordict, is_init)
        dynamics = self.world_model.dynamics
        with self.world_model.evaluating():
            logits = dynamics.posterior_logits(self.world_model.encoder(observations))
            classes = dynamics.sample(logits)[1] if self.sampled_state else logits.argmax(-1)
            state = dynamics.one_hot(classes)
            choice = self.actor(dynamics.view(state, state[..., :0], classes))
        action = choice.sample() if exploration_type() == ExplorationType.RANDOM else choice.mode
        return tensordict.set("action", action.unflatten(0, lead) if len(lead) else action.squeeze(0))

    def _stacked(self, tensordict: TensorDictBase, is_init: Tensor) -> dict[str, Tensor]:
        """Image keys as stacks ``[E, count*C, H, W]``; remembers them for the next step."""
        images = {key: self._flat(tensordict, key) for key in self.images}
        if not self._stacks:
            return {key: self.frames.frame(image) for key, image in images.items()}
        recent = tensordict.get("recent_frames")
        recent = recent.reshape(-1, *recent.shape[-3:])
        parts = recent.split([shape[0] for shape in self._shapes.values()], 1)
        stacks = {
            key: self.frames.push(part, image, is_init)
            for (key, image), part in zip(images.items(), parts, strict=True)
        }
        remembered = torch.cat(list(stacks.values()), 1)
        lead = tensordict.batch_size
        tensordict.set(("next", "recent_frames"), remembered.reshape(*lead, *remembered.shape[1:]))
        return stacks

    def _flat(self, tensordict: TensorDictBase, key: str) -> Tensor:
        value = read_observation(tensordict, key)
        return value.reshape(-1, *value.shape[tensordict.batch_dims :])
