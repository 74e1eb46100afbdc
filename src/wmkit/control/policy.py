"""The one policy: take in an observation, choose an action, remember.

What goes from step to step follows from the parts: recurrent dynamics pack state and belief (and what else
their backbone carries), token dynamics their memory or a window of recent steps, and an actor that
reads the state of a myopic posterior alone needs no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.envs.utils import ExplorationType, exploration_type

from wmkit import fast
from wmkit.codecs import FrameStack
from wmkit.control.fused_step import FusedStep, fuse
from wmkit.dynamics import Latent, WorldModel
from wmkit.errors import ConfigError
from wmkit.heads import CARRIED

ARRIVAL_REWARD = "arrival_reward"  # read where it is there, and so no in-key
ACTS_ON = ("sample", "mode", "expected")


def in_precision(forward: Callable[..., TensorDictBase]) -> Callable[..., TensorDictBase]:
    """A policy's ``forward`` under autocast to its ``precision``; in float32 as it is."""

    @wraps(forward)
    def act(policy: Any, tensordict: TensorDictBase) -> TensorDictBase:
        if policy.precision == torch.float32:
            return forward(policy, tensordict)
        device = tensordict.get("is_init").device.type
        # Each weight is read once, and another thread may be changing it: nothing cast is kept.
        with torch.autocast(device, policy.precision, cache_enabled=False):
            return forward(policy, tensordict)

    return act


class Policy(TensorDictModuleBase):
    """Policy for a TorchRL collector, batched over environments.

    Reads the observation keys, ``is_init``, ``previous_action`` and what the dynamics pack; writes ``action``
    and what the next step is to carry (``state`` and ``belief`` of this step among it, where the dynamics
    pack these). Samples under ``ExplorationType.RANDOM`` and takes the mode otherwise; the posterior is
    sampled either way, and nothing is dropped out. Continuous actions are of the order of [-1, 1] and not
    clipped: what was drawn is stored and remembered, and the environment clips and rescales it
    (:func:`wmkit.envs.unit_actions`).

    A vector observation ``reward`` is read from ``arrival_reward``
    (:class:`wmkit.training.collect.ArrivalReward`), zero if that key is absent.

    Args:
        world_model: encoder and dynamics are used; read, not owned.
        actor: ``policy(features)`` gives a distribution over actions; or a
            :class:`~wmkit.control.planners.Planner`, whose plans are carried from step to step; or any
            TensorDict module (a policy or a planner of TorchRL) that reads what
            :class:`~wmkit.control.DreamEnv` shows and writes ``action``. Read, not owned.
        images: image keys that the encoder reads, ``{key: shape of one frame}``.
        vectors: vector keys that it reads.
        frames: how images are stacked; single frames as they are if not given.
        continuous: whether actions are numbers rather than a choice.
        exploration: turns sampled actions ``[B, A]`` into those that are taken; none takes them as they are.
        acts_on: the state acted on: a ``"sample"`` of the posterior, its ``"mode"`` (TWM; only where the
            actor reads the state of a myopic posterior alone), or what the model ``"expected"``: as in its
            dreams, and blind to the present observation (the released STORM).
        across_episodes: whether the memory goes on where an episode begins (the released STORM).

    Raises:
        ConfigError: an unknown ``acts_on``, or one that these parts do not allow.
    """

    def __init__(
        self,
        world_model: WorldModel,
        actor: Any,
        *,
        images: Mapping[str, Sequence[int]] | None = None,
        vectors: Sequence[str] = (),
        frames: FrameStack | None = None,
        continuous: bool = False,
        exploration: Callable[[Tensor], Tensor] | None = None,
        acts_on: Literal["sample", "mode", "expected"] = "sample",
        across_episodes: bool = False,
    ) -> None:
        super().__init__()
        self.__dict__["world_model"], self.__dict__["actor"] = world_model, actor
        self.__dict__["_fused"] = _Fused(world_model, actor)
        dynamics, self.frames = world_model.dynamics, frames or FrameStack()
        own = hasattr(actor, "policy")  # one of wmkit's, called on tensors
        fields = world_model.sources(actor) if own else set()
        self.__dict__["memory"] = getattr(actor, "memory", None) if own else None
        self.memoryless = dynamics.myopic and fields == {"state"}
        if acts_on not in ACTS_ON or (acts_on == "mode" and not self.memoryless):
            raise ConfigError(
                f"acts_on is {acts_on!r}: wanted one of {', '.join(ACTS_ON)}, and mode only for an actor "
                "that reads the state of a myopic posterior alone; correct acts_on"
            )
        self.precision = torch.float32
        self.acts_on, self.across_episodes = acts_on, across_episodes
        self.continuous, self.exploration = continuous, exploration
        self.images, self.vectors = tuple(images or ()), tuple(vectors)
        self.observations = (*self.images, *self.vectors)
        self._stacks = self.frames.shapes(images or {}) if self.frames.count > 1 else {}
        self.latent_keys = () if self.memoryless else tuple(dynamics.pack_shapes)
        carried = [*self.latent_keys, *(() if self.memoryless else ("previous_action",))]
        carried += ["recent_frames"] if self._stacks else []
        self._plans = actor.carries(dynamics.action_dim) if hasattr(actor, "carries") else {}
        carried += self._plans
        carried += [CARRIED] if self.memory is not None else []
        self.in_keys = [*(key for key in self.observations if key != "reward"), "is_init", *carried]
        self.out_keys: list[Any] = ["action", *self.latent_keys]
        self.out_keys += [] if self.memoryless else [("next", "previous_action")]
        self.out_keys += [("next", "recent_frames")] if self._stacks else []
        self.out_keys += [("next", key) for key in self._plans]
        self.out_keys += [("next", CARRIED)] if self.memory is not None else []

    def make_tensordict_primer(self) -> TensorDictPrimer | list[TensorDictPrimer]:
        """The transform that declares and carries this policy's memory; none where it has none."""
        dynamics = self.world_model.dynamics
        specs = {key: Unbounded(dynamics.pack_shapes[key]) for key in self.latent_keys}
        specs |= {key: Unbounded(shape) for key, shape in self._plans.items()}
        if not self.memoryless:
            specs["previous_action"] = Unbounded((dynamics.action_dim,))
        if self._stacks:
            shapes = list(self._stacks.values())
            specs["recent_frames"] = Unbounded((sum(shape[0] for shape in shapes), *shapes[0][1:]))
        if self.memory is not None:
            specs[CARRIED] = Unbounded((self.memory.carry_dim,))
        if not specs:
            return []
        primer = _EndlessPrimer if self.across_episodes else TensorDictPrimer
        return primer(specs, default_value=0.0, expand_specs=True)

    @torch.no_grad()
    @in_precision
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Act on root observations ``[*E]``."""
        lead = tensordict.batch_size

        def rows(key: str) -> Tensor:
            value = read_observation(tensordict, key)
            return value if len(lead) == 1 else value.reshape(-1, *value.shape[len(lead) :])

        is_init = rows("is_init").reshape(-1)
        observations = {key: rows(key) for key in self.observations}
        recent = self._stack(observations, rows("recent_frames"), is_init) if self._stacks else None
        carried = {key: rows(key) for key in self.latent_keys}
        recalled = None if self.memory is None else rows(CARRIED)
        previous_action = None if self.memoryless else rows("previous_action").float()
        explore = exploration_type() == ExplorationType.RANDOM
        step = self._fused.step() if self._may_fuse else None
        if step is not None:
            action, *latent = step(
                observations, *carried.values(), previous_action, is_init=is_init, explore=explore
            )
            packed = dict(zip(self.latent_keys, latent, strict=True))
        else:
            carried |= {key: rows(key) for key in self._plans}
            action, packed = self._step(observations, carried, previous_action, is_init, explore, recalled)
        if explore and self.exploration is not None:
            action = self.exploration(action)
        written = {"action": action, **packed}
        if recent is not None:
            written[("next", "recent_frames")] = recent  # type: ignore[index]
        for key, value in written.items():
            tensordict.set(key, value if len(lead) == 1 else value.reshape(*lead, *value.shape[1:]))
        if not self.memoryless:
            tensordict.set(("next", "previous_action"), tensordict.get("action").float())
        return tensordict

    def _step(
        self,
        observations: Mapping[str, Tensor],
        carried: Mapping[str, Tensor],
        previous_action: Tensor | None,
        is_init: Tensor,
        explore: bool,
        recalled: Tensor | None = None,
    ) -> tuple[Tensor, dict[Any, Tensor]]:
        """Action ``[E, A]`` and what the next step is to carry."""
        model = self.world_model
        dynamics, packed = model.dynamics, dict[Any, Tensor]()
        if self.across_episodes:  # the first step is that before which nothing was remembered
            is_init = torch.stack([(x == 0).flatten(1).all(1) for x in carried.values()]).all(0)
        with model.evaluating():
            embed = model.encoder.encode(observations)
            if previous_action is None:
                latent = self._glance(embed)
            else:
                record = {"previous_action": previous_action, "is_init": is_init}
                record |= {
                    key: observations[key].float() for key in dynamics.conditions if key in observations
                }
                for key in dynamics.conditions:
                    record.setdefault(key, torch.zeros_like(previous_action[:, :1]))
                latent = dynamics.filter(dynamics.unpack(carried), embed, record)
                packed = dynamics.pack(latent)
                if self.acts_on == "expected":
                    latent = self._expected(latent, is_init)
            if recalled is not None:
                seen, carry = model.read(self.memory, latent).dense, self.memory.unpack(recalled)
                out, carry = self.memory.step(seen, carry, is_init)
                latent, packed = (
                    latent._replace(memory=out),
                    packed | {("next", CARRIED): self.memory.pack(carry)},
                )
            if hasattr(self.actor, "policy"):
                choice = self.actor.policy(model.read(self.actor, latent))
                return (choice.sample() if explore else choice.mode), packed
        if self._plans:
            latent = self._imaginable(latent)
            plans = {key: carried[key] for key in self._plans}
            action, plans = self.actor.act(model, latent, plans, is_init, sampled=explore)
            return action, packed | {("next", key): value for key, value in plans.items()}  # type: ignore[misc]
        return self._asked(latent), packed

    @staticmethod
    def _imaginable(latent: Latent) -> Latent:
        """Recent steps are no memory to imagine from."""
        return latent._replace(carry=None) if isinstance(latent.carry, Tensor) else latent

    def _asked(self, latent: Latent) -> Tensor:
        """The action of a TensorDict module, which may look ahead in a :class:`~wmkit.control.DreamEnv`."""
        dynamics, rows = self.world_model.dynamics, len(latent.state)
        shown = dynamics.pack(self._imaginable(latent))
        never = torch.zeros(rows, 1, dtype=torch.bool, device=latent.state.device)
        shown |= {"continuation": ~never + 0.0, "done": never, "terminated": never.clone()}
        action = self.actor(TensorDict(shown, [rows])).get("action").float()
        if not self.continuous:  # a planner's numbers, of which the largest is chosen
            action = torch.nn.functional.one_hot(action.argmax(-1), action.shape[-1]).float()
        return action

    def _glance(self, embed: Tensor) -> Latent:
        """The state of an observation, without memory."""
        dynamics = self.world_model.dynamics
        if self.acts_on == "mode":
            state, classes = dynamics.latent.mode(dynamics.posterior_logits(embed))
        else:
            _, state, classes = dynamics.represent(embed)
        return Latent(state, state.new_zeros(len(state), dynamics.belief_dim), None, classes)

    def _expected(self, latent: Latent, first: Tensor) -> Latent:
        """The state that was expected; where an episode starts nothing was."""
        dynamics = self.world_model.dynamics
        state, classes = dynamics.sample(dynamics.prior_logits(latent.belief))
        return latent.light().where(first, latent.light()._replace(state=state, classes=classes))

    @property
    def _may_fuse(self) -> bool:
        plain = self.latent_keys == ("state", "belief") and self.acts_on == "sample" and not self._stacks
        plain = plain and hasattr(self.actor, "policy") and not self.across_episodes
        return plain and fast.enabled(next(self.world_model.parameters()))

    def _stack(self, observations: dict[str, Tensor], recent: Tensor, is_init: Tensor) -> Tensor:
        """Put stacks ``[E, count*C, H, W]`` in place of images; gives them to remember."""
        parts = recent.split([shape[0] for shape in self._stacks.values()], 1)
        for key, part in zip(self._stacks, parts, strict=True):
            observations[key] = self.frames.push(part, observations[key], is_init)
        return torch.cat([observations[key] for key in self._stacks], 1)


def read_observation(tensordict: TensorDictBase, key: str) -> Tensor:
    """An entry of a root; ``reward`` is the one received on arriving, zero where none is shown."""
    if key != "reward":
        return tensordict.get(key)
    value = tensordict.get(ARRIVAL_REWARD, None)
    if value is None:
        value = torch.zeros(*tensordict.batch_size, 1, device=tensordict.get("is_init").device)
    return value


class _Fused:
    """The fused step of the weights as they are now, where there is one for such parts."""

    def __init__(self, world_model: WorldModel, actor: Any) -> None:
        self.world_model, self.actor = world_model, actor
        self._parts: tuple[Any, ...] = ()
        self._places: list[tuple[dict[str, Any], str]] = []
        self._seen: list[tuple[int, int]] = []
        self._step: FusedStep | None = None

    def step(self) -> FusedStep | None:
        parts = (self.world_model.encoder, self.world_model.dynamics, self.actor)
        if self._parts != parts:
            modules = [module for part in parts for module in part.modules()]
            self._parts, self._seen = parts, []
            owned = ((m._parameters, name) for m in modules for name in m._parameters)
            self._places = [(place, name) for place, name in owned if place[name] is not None]
        # An optimiser's step raises a weight's version; another device or a loaded weight, its address.
        weights = [place[name] for place, name in self._places]
        seen = [(weight._version, weight.data_ptr()) for weight in weights]
        if seen != self._seen:
            self._seen, self._step = seen, fuse(self.world_model, self.actor)
        return self._step


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
