"""The released LS-Imagine's second roll-out from each trajectory (compat)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wmkit.dynamics.hooks import JumpGate
from wmkit.dynamics.rollout import Hook, Rollout, rollout
from wmkit.dynamics.state import Latent
from wmkit.dynamics.world_model import WorldModel


class SecondBranch(JumpGate):
    """A gate that adds to every roll-out a second one, from the step that most expects a jump.

    From that step one jump and one ordinary step lead to where the second roll-out of ordinary steps sets
    off; up to twice the work. Its arguments are those of :class:`JumpGate`.
    """

    def single(self) -> Hook | None:
        """The gate alone."""
        return JumpGate(self.prob, self.threshold, self.extra_step, self.max_span)

    def noise(self, horizon: int, rows: int, device: torch.device) -> Any:
        """The gate's uniforms, and the likeliest turn so far."""
        uniforms = super().noise(horizon, rows, device)
        return _Turn(uniforms)

    def option(self, world_model: WorldModel, latent: Latent, noise: Any, t: int) -> Tensor | None:
        """Rows that jump; remembers where a jump is expected most."""
        continuation = world_model.continuation(latent)
        expected = world_model.predict("jump", latent).mean
        noise.look(latent, expected * continuation)
        return self.open(expected, continuation, noise[t])

    def finish(self, world_model: WorldModel, act: Any, found: Rollout, noise: Any) -> Rollout:
        """The roll-outs and their second ones."""
        chance, latent = noise.chance, noise.latent
        opened = self.open(chance, torch.ones_like(chance), torch.rand_like(chance))
        blank = found.actions.new_zeros(found.actions.shape[1:])
        latent = world_model.step(latent, blank, torch.ones_like(opened))
        action = act.policy(world_model.read(act, latent)).sample()
        second = rollout(world_model, world_model.step(latent, action), act, len(found.actions))
        return Rollout.join([found, second._replace(rows=found.rows, valid=opened.unsqueeze(-1))])


class _Turn:
    """Uniforms of the gate, and each roll-out's step of the likeliest jump."""

    def __init__(self, uniforms: Tensor) -> None:
        self.uniforms = uniforms
        self.latent: Latent | None = None
        self.chance = uniforms.new_full(uniforms.shape[1:], -1.0)

    def __len__(self) -> int:
        return len(self.uniforms)

    def __getitem__(self, t: int) -> Tensor:
        return self.uniforms[t]

    def look(self, latent: Latent, chance: Tensor) -> None:
        better = chance > self.chance
        self.latent = latent if self.latent is None else latent.where(better.squeeze(-1), self.latent)
        self.chance = chance.maximum(self.chance)
