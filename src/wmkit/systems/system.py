"""A system: world model, actor, critic, losses and schedule, ready to act and to learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from wmkit.codecs import unit_image
from wmkit.dynamics import Latent, WorldModel, imagine
from wmkit.systems.checks import check_batch
from wmkit.systems.policy import Policy
from wmkit.systems.spaces import Spaces


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

    Attributes:
        policy: for a TorchRL collector; of continuous actions in an environment with
            :func:`wmkit.envs.unit_actions`.
        batch_shape: (B, L) that :meth:`update` expects, context included.
        context: leading steps that only supply stored latents.
        carry_dtype: precision in which acting and learning carry the belief from step to step; replay
            stores it so without loss.
    """

    carry_dtype = torch.float32
    behaviour: Any
    schedule: Any

    def __init__(
        self,
        name: str,
        spaces: Spaces,
        *,
        world_model: Callable[..., WorldModel],
        actor: Callable[..., nn.Module],
        critic: Callable[..., nn.Module],
        world_model_loss: nn.Module,
        behaviour: nn.Module,
        schedule: Callable[..., Any],
        batch: Mapping[str, int],
        exploration: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.spaces = name, spaces
        self.world_model = world_model(spaces.shapes, spaces.action_dim)
        width = self.world_model.dynamics.feature_dim
        self.actor = actor(width, spaces.action_dim)
        self.critic = critic(width)
        self.world_model_loss, self.behaviour = world_model_loss, behaviour
        self.context = int(batch["context"])
        self.batch_shape = (int(batch["size"]), int(batch["length"]) + self.context)
        self.schedule = schedule(self)
        self.policy = Policy(
            self.world_model,
            self.actor,
            spaces.action_dim,
            spaces.observations,
            continuous=spaces.actions == "continuous",
            exploration=(exploration or {}).get(spaces.actions),
        )

    def update(self, batch: TensorDictBase) -> TensorDict:
        """One full training update.

        Args:
            batch: the sequence layout ``[B, L]``; with :attr:`context` steps in front whose
                stored ``state`` and ``belief`` start the window. Without stored latents the
                window starts from the initial state.

        Returns:
            Detached scalars by name, and ``replay_context`` ``[B, L - context]`` with the fresh
            ``state`` and ``belief`` for writing back to replay.

        Raises:
            SpecError: a key is missing or has the wrong rank or dtype.
        """
        check_batch(batch, self.spaces)
        latent = None
        if self.context:
            if "state" in batch.keys():
                first = batch[:, self.context - 1]
                latent = self.world_model.dynamics.resume(first["state"].float(), first["belief"].float())
            batch = batch[:, self.context :]
        metrics, observed = self.schedule.update(self, self.fill(batch), latent)
        fresh = observed.latent
        context = TensorDict(
            {"state": fresh.state.detach(), "belief": fresh.belief.detach()}, batch.batch_size
        )
        return TensorDict({**metrics, "replay_context": context})

    @torch.no_grad()
    def imagine(self, start: TensorDictBase, horizon: int) -> TensorDict:
        """Roll the policy out in the model.

        Args:
            start: ``[N]`` with ``state`` and ``belief``, and with the policy's ``carry`` where it has one;
                without it the backbone remembers nothing from before.
            horizon: transitions H.

        Returns:
            TorchRL transitions ``[N, H]``, see :meth:`ActorCriticLoss.transitions
            <wmkit.objectives.ActorCriticLoss.transitions>`.
        """
        carried = {"carry": start["carry"]} if "carry" in start.keys() else {}
        latent = self.world_model.dynamics.resume(start["state"], start["belief"], **carried)
        trajectory = imagine(self.world_model, self.actor, latent, horizon, gate=self.behaviour.gate)
        return self.behaviour.transitions(self.world_model, trajectory)

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
        dynamics = self.world_model.dynamics
        filled = self.fill(batch)
        seen = self.world_model.observe({key: value[:, :context] for key, value in filled.items()}).latent
        latent = seen.map(lambda x: x[:, -1])
        jumps = "jump" in self.world_model.heads
        features, spans = [seen.feature], []
        if jumps:
            spans.append(self._spans(seen.map(lambda x: x.flatten(0, 1))).view(seen.belief.shape[:2]))
        for action in batch["previous_action"][:, context:].float().unbind(1):
            latent = dynamics.step(latent, action)
            features.append(latent.feature.unsqueeze(1))
            if jumps:
                spans.append(self._spans(latent).unsqueeze(1))
        feature = torch.cat(features, 1)
        predictions = self.world_model.decoder(feature)
        out = {key: predictions[key].mean for key in self.world_model.decoder.images}
        if jumps:
            out["jump"] = self.world_model.heads["jump"](feature).mean.squeeze(-1)
            out["jump_steps"] = torch.cat(spans, 1)
        return out

    def example_batch(self, seed: int = 0) -> TensorDict:
        """A random valid batch of :attr:`batch_shape`."""
        return self.spaces.example_batch(self.batch_shape, seed)

    def fill(self, batch: TensorDictBase) -> dict[str, Any]:
        """The batch as a mapping: images in [0, 1], neutral values for labels it does not carry."""
        filled = {key: batch[key] for key in batch.keys()}
        filled |= {key: unit_image(filled[key]) for key in self.spaces.images}  # once, not per reader
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
