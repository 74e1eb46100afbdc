"""Imagined roll-outs that a return's gradient goes back through, to the actions that led there.

DreamerV1 (arXiv:1912.01603, eq. 7) and DreamerV2 (arXiv:2010.02193, eq. 6)::

    u_t, z_t ──> u_{t+1}, z_{t+1} ──> ... ──> reward, value
      ╎            ↑                           gradients flow along the arrows, and back;
      ╎ (cut)      │                           the policy reads its features without
      └╌╌> actor ─ a_t                         gradient, the model's weights are constants
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from wmkit.dynamics.imagination import Trajectory
from wmkit.dynamics.latent import Latent
from wmkit.dynamics.world_model import WorldModel
from wmkit.nn import Feature, weights_unchanged


@contextmanager
def constants(*modules: nn.Module) -> Iterator[None]:
    """Inside, the parameters of ``modules`` are constants: gradients pass through, none is kept.

    >>> layer, x = nn.Linear(1, 1), torch.ones(1, requires_grad=True)
    >>> with constants(layer):
    ...     y = layer(x)
    >>> y.backward()
    >>> layer.weight.grad is None, x.grad is None
    (True, False)
    """
    learned = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


@torch.enable_grad()
@weights_unchanged()
def imagine_through(
    world_model: WorldModel, actor: Any, start: Latent, horizon: int, *, learn: bool = False
) -> Trajectory:
    """Roll the policy out in the model, recording how states depend on actions.

    Its values are those of :func:`~wmkit.dynamics.imagine` under the same seed. To keep the model itself
    out of it, call under :func:`constants`.

    Args:
        world_model: with ordinary dynamics.
        actor: features of ``N`` states to a distribution over actions with ``rsample``.
        start: states to start from, leaves ``[N, ...]``, without gradient.
        horizon: transitions H per start.
        learn: keep the policy's log-probabilities (of its actions as constants) and entropies.

    Returns:
        States, beliefs, actions and continuations with gradient to the actor.
    """
    dynamics = world_model.dynamics
    rows, device = start.state.shape[0], start.state.device
    state_noise = dynamics.noise(horizon, rows, device=device)
    draw = getattr(actor, "noise", None)
    action_noise = [None] * horizon if draw is None else draw(horizon, rows, device=device)
    latent, latents, actions = start, [start], []
    log_probs, entropies = [], []
    for t in range(horizon):
        policy = actor(latent.parts.map(torch.Tensor.detach))
        action = policy.rsample(action_noise[t])
        if learn:
            log_probs.append(policy.log_prob(action.detach()))
            entropies.append(policy.entropy)
        latent = dynamics.step(latent, action, noise=state_noise[t])
        latents.append(latent)
        actions.append(action)
    states = torch.stack([x.state for x in latents])  # [H+1, N, G*C]
    beliefs = torch.stack([x.belief for x in latents])  # [H+1, N, U]
    known = [x.classes for x in latents if x.classes is not None]
    classes = torch.stack(known) if len(known) == len(latents) else None
    continuation = world_model.continuation(Feature(states, beliefs, classes))
    no_jump = torch.zeros(horizon, rows, 1, dtype=torch.bool, device=device)
    parts = [states, beliefs, torch.stack(actions), no_jump, continuation, classes]
    if learn:
        parts += [torch.stack(log_probs), torch.stack(entropies)]
    return Trajectory(*(part if part is None else part.transpose(0, 1) for part in parts))  # type: ignore[arg-type]
