"""A system: world model, actor, critic, losses and schedule, ready to act and to learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from wmkit.arguments import made
from wmkit.codecs import FrameStack
from wmkit.dynamics import Latent
from wmkit.errors import ConfigError, SpecError
from wmkit.systems.checks import check_batch, check_weighed, check_window
from wmkit.systems.policy import recurrent_policy
from wmkit.systems.spaces import Spaces

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class System(nn.Module):
    """Everything a page describes, assembled.

    Made by :func:`wmkit.build`; its parts are ordinary modules.

    Args:
        name: the page's name.
        spaces: what the environment shows and takes.
        world_model: called as ``world_model(shapes, action_dim)``.
        actor: called as ``actor(feature_dim, action_dim)``.
        critic: called as ``critic(feature_dim)``.
        world_model_loss: see :class:`~wmkit.objectives.WorldModelLoss`.
        behaviour: see :class:`~wmkit.objectives.ActorCriticLoss`.
        schedule: called as ``schedule(system)``, gives the order of learning.
        batch: ``size`` B, ``length`` T and leading ``context`` steps of a batch.
        exploration: by kind of action, what the policy adds to its samples
            (:mod:`wmkit.systems.exploration`).
        policy: called as ``policy(system)``, gives what acts in the environment.
        frames: how images of a window are stacked; single frames as they are if not given.

    Raises:
        ConfigError: a part that cannot be made of its arguments; a batch that has no such size, or windows
            too short for stacks or losses; loss weights that do not match the loss terms.

    Attributes:
        policy: for a TorchRL collector; of continuous actions in an environment with
            :func:`wmkit.envs.unit_actions`.
        batch_shape: (B, L) that :meth:`update` expects, context included.
        context: leading steps that only supply stored latents or older frames.
        carry_dtype: precision in which acting and learning compute and carry the belief from step to step
            (:meth:`compute_in`); replay stores it so without loss.
        dream_windows: windows, and records of each, that :meth:`update` expects for dreams alone; none where
            these start, and restart, from its batch.
        pretraining: updates to make before the first step that the policy chooses, if the schedule says.
    """

    carry_dtype = torch.float32
    behaviour: Any
    schedule: Any
    policy: Any

    def __init__(
        self,
        name: str,
        spaces: Spaces,
        *,
        world_model: Callable[..., Any],  # a module that dynamics are part of
        actor: Callable[..., nn.Module],
        critic: Callable[..., nn.Module],
        world_model_loss: nn.Module,
        behaviour: nn.Module,
        schedule: Callable[..., Any],
        batch: Mapping[str, int],
        exploration: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        policy: Callable[[Any], nn.Module] = recurrent_policy,
        frames: FrameStack | None = None,
    ) -> None:
        super().__init__()
        for key, least in (("size", 1), ("length", 1), ("context", 0)):
            if type(batch.get(key)) is not int or batch[key] < least:
                raise ConfigError(
                    f"batch.{key} is {batch.get(key)!r}: wanted a whole number of at least {least}; "
                    f"correct batch.{key}"
                )
        self.name, self.spaces, self.frames = name, spaces, frames or FrameStack()
        if spaces.images and self.frames.count - 1 > batch["context"]:
            raise ConfigError(
                f"observations.frames.count is {self.frames.count} and batch.context {batch['context']}: "
                f"wanted {self.frames.count - 1} or more records of context, the older frames of a window's "
                f"first stack; set batch.context={self.frames.count - 1}"
            )
        stacked = self.frames.shapes({key: spaces.shapes[key] for key in spaces.images})
        with made("world_model"):
            self.world_model: Any = world_model(spaces.shapes | stacked, spaces.action_dim)
        width = self.world_model.dynamics.feature_dim
        with made("actor"):
            self.actor = actor(width, spaces.action_dim)
        with made("critic"):
            self.critic = critic(width)
        self.world_model_loss, self.behaviour = world_model_loss, behaviour
        self.context = batch["context"]
        self.batch_shape = (batch["size"], batch["length"] + self.context)
        with made("schedule"):
            self.schedule = schedule(self)
        check_window(batch["length"], world_model_loss, behaviour, self.schedule)
        check_weighed(self.world_model, world_model_loss)
        starts = getattr(behaviour, "starts", None)
        self.dream_windows: tuple[int, int] | None = getattr(starts, "windows", None)
        if self.dream_windows is not None and not getattr(self.schedule, "takes_dreams", False):
            raise ConfigError(
                f"behaviour.starts of {name!r} is {type(starts).__name__}, with windows of its own, which "
                f"{type(self.schedule).__name__} does not take: wanted starts from the batch; set "
                "behaviour.starts._target_=wmkit.dynamics.PairStarts"
            )
        if restart_states := getattr(behaviour, "restart_states", 0):
            self.dream_windows = (restart_states, self.frames.count)  # older frames stand before each
        self.exploration = (exploration or {}).get(spaces.actions)
        self.pretraining: int | None = getattr(self.schedule, "pretraining", None)
        with made("policy"):
            self.policy = policy(self)

    def compute_in(self, precision: str) -> System:
        """Let the policy act, and trainers learn and store beliefs, in a precision; weights stay float32.

        Args:
            precision: ``float32`` or ``bfloat16``, in which products are then computed under autocast.

        Raises:
            ConfigError: another precision.
        """
        if precision not in PRECISIONS:
            raise ConfigError(
                f"training.precision is {precision!r}: wanted {' or '.join(PRECISIONS)}; correct it"
            )
        self.carry_dtype = self.policy.precision = PRECISIONS[precision]
        return self

    def update(self, batch: TensorDictBase, dreams: TensorDictBase | None = None) -> TensorDict:
        """One full training update.

        Args:
            batch: the sequence layout ``[B, L]``; with :attr:`context` steps in front whose
                stored ``state`` and ``belief`` start the window. Without stored latents the
                window starts from the initial state.
            dreams: windows of the same layout, ``[N, c+1]`` as :attr:`dream_windows` says, where it does.

        Returns:
            Detached scalars by name and, where windows start from stored latents, ``replay_context``
            ``[B, L - context]`` with the fresh ``state`` and ``belief`` for writing back to replay.

        Raises:
            SpecError: a key is missing or has the wrong rank or dtype, or ``dreams`` are not what is wanted.
        """
        check_batch(batch, self.spaces)
        beside = {}
        shape = None if dreams is None else tuple(dreams.shape)
        if shape != self.dream_windows:
            raise SpecError(
                f"windows for dreams are {shape}: wanted {self.dream_windows}, as behaviour.starts says; "
                "give update what System.example_batches shows"
            )
        if dreams is not None:
            check_batch(dreams, self.spaces)
            beside["dreams"] = self.fill(dreams)
        latent = None
        if self.context and "state" in batch.keys():
            first = batch[:, self.context - 1]
            latent = self.world_model.dynamics.resume(first["state"].float(), first["belief"].float())
        filled = {key: value[:, self.context :] for key, value in self.fill(batch).items()}
        metrics, observed = self.schedule.update(self, filled, latent, **beside)
        if observed is None:  # nothing that a later window could start from
            return TensorDict(metrics)
        fresh = observed.latent
        context = TensorDict(
            {"state": fresh.state.detach(), "belief": fresh.belief.detach()}, fresh.state.shape[:2]
        )
        return TensorDict({**metrics, "replay_context": context})

    @torch.no_grad()
    def imagine(self, start: TensorDictBase, horizon: int) -> TensorDict:
        """Roll the policy out in the model.

        Args:
            start: ``[N]`` with ``state`` and, where the model carries one, ``belief``, and with the policy's
                ``carry`` where it has one; without it the backbone remembers nothing from before.
            horizon: transitions H.

        Returns:
            TorchRL transitions ``[N, H]``, see :meth:`ActorCriticLoss.transitions
            <wmkit.objectives.ActorCriticLoss.transitions>`.
        """
        return self.behaviour.imagine(self.world_model, self.actor, start, horizon)

    @torch.no_grad()
    def open_loop(self, batch: TensorDictBase, context: int) -> dict[str, Tensor]:
        """Predict a window from its first steps and the real actions alone.

        Args:
            batch: the sequence layout ``[B, T]``.
            context: steps that are observed; the rest is imagined with the real actions.

        Returns:
            ``{key: [B, T, ...]}``: a prediction in [0, 1] for every image key, and where the system
            jumps, ``jump`` ``[B, T]`` (probability) and ``jump_steps`` ``[B, T]`` (predicted span Δ
            of a jump from that step).
        """
        out, latents = self.world_model.open_loop(self.fill(batch), context)
        for key, stack in out.items():
            out[key] = self.frames.newest(stack, self.spaces.shapes[key][0])
        if "jump" in self.world_model.heads:
            feature = torch.cat([latent.feature for latent in latents], 1)
            spans = [self._spans(x.map(lambda y: y.flatten(0, 1))).view(x.belief.shape[:2]) for x in latents]
            out["jump"] = self.world_model.heads["jump"](feature).mean.squeeze(-1)
            out["jump_steps"] = torch.cat(spans, 1)
        return out

    def example_batch(self, seed: int = 0) -> TensorDict:
        """A random valid batch of :attr:`batch_shape`."""
        return self.spaces.example_batch(self.batch_shape, seed)

    def example_batches(self, seed: int = 0) -> tuple[TensorDict, ...]:
        """All that :meth:`update` takes: a random batch and, where dreams have their own, such windows."""
        batch = self.example_batch(seed)
        if self.dream_windows is None:
            return (batch,)
        return batch, self.spaces.example_batch(self.dream_windows, seed + 1)

    def fill(self, batch: TensorDictBase) -> dict[str, Any]:
        """The batch as a mapping: images stacked, in [0, 1]; neutral values for labels it lacks."""
        filled = {key: batch[key] for key in batch.keys()}
        init = filled["is_init"]
        filled |= {key: self.frames.window(filled[key], init) for key in self.spaces.images}  # not per reader
        zero = torch.zeros_like(batch["reward"])
        for key, label in self.spaces.optional.items():
            filled.setdefault(key, zero.to(label))
        return filled

    def _spans(self, before: Latent) -> Tensor:
        """Predicted span ``[N]`` of a jump from each latent, leaves ``[N, ...]``."""
        jump = torch.ones(len(before.belief), dtype=torch.bool, device=before.belief.device)
        blank = before.belief.new_zeros(len(jump), self.spaces.action_dim)
        after = self.world_model.dynamics.step(before, blank, jump)
        head: Any = self.world_model.heads["jump_steps"]
        span = head(torch.cat([before.feature, after.feature], -1)).mean
        return span.squeeze(-1).clamp(1, self.behaviour.max_span)
