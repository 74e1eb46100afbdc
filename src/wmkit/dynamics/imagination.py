"""Imagined roll-outs: tensors inside, fixed shapes, uniforms drawn before the loop.

Each transition is a step or, where the jump gate opens, a jump (LS-Imagine,
arXiv:2410.03618, section 3.3). The gate's uniforms are drawn last, so that without jumps
the roll-out equals DreamerV3's number for number under the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wmkit.dynamics.latent import Latent
from wmkit.dynamics.world_model import WorldModel
from wmkit.nn import Feature, FirstLayers, Products, weights_unchanged


class Trajectory(NamedTuple):
    """``H`` transitions from each of ``N`` states.

    Attributes:
        states: ``[N, H+1, G*C]``.
        beliefs: ``[N, H+1, U]``.
        actions: ``[N, H, A]`` what the policy chose; without effect where ``jumps`` is set.
        jumps: ``[N, H, 1]`` bool.
        continuations: ``[N, H+1, 1]`` probability of going on at each state.
        classes: ``[N, H+1, G]`` int64, class of each categorical of ``states``, where known.
        log_probs: ``[N, H]`` of ``actions``, with gradient to the policy; only where it learns.
        entropies: ``[N, H]`` of the policy, nats, likewise.
        turn: leaves ``[N, ...]``, the step that most expects a jump, where one was looked for.
        turn_chance: ``[N, 1]`` probability of the jump there, times that of going on.
        products: what first layers make of the features, where that was taken on the way.
    """

    states: Tensor
    beliefs: Tensor
    actions: Tensor
    jumps: Tensor
    continuations: Tensor
    classes: Tensor | None
    log_probs: Tensor | None = None
    entropies: Tensor | None = None
    turn: Latent | None = None
    turn_chance: Tensor | None = None
    products: Products | None = None

    @property
    def features(self) -> Feature:
        """``[N, H+1, ...]`` in parts."""
        return Feature(self.states, self.beliefs, self.classes, self.products)

    @property
    def time_major(self) -> Feature:
        """``[H+1, N, ...]`` in parts, as they lie in memory: all but the first or last step are no copy."""
        return self.features.map(_swap)

    @staticmethod
    def cat(parts: list[Trajectory]) -> Trajectory:
        """Join along the starts; turns and products are left out."""
        parts = [part._replace(turn=None, turn_chance=None, products=None) for part in parts]
        fields = zip(*parts, strict=True)
        return Trajectory(*(_cat(list(field)) for field in fields))  # type: ignore[arg-type]


class JumpGate:
    """Opens where the model expects a jump to be worth it, and a coin agrees.

    Args:
        prob: chance that an expected jump is taken (0.7 in LS-Imagine).
        threshold: on P(jump | s) times the probability of going on.
        extra_step: let an ordinary step follow each jump inside the same transition, as the
            released code does without counting it in Δ.

    >>> JumpGate(prob=0.0).prob
    0.0
    """

    def __init__(self, prob: float = 0.7, threshold: float = 0.5, extra_step: bool = False) -> None:
        self.prob, self.threshold, self.extra_step = prob, threshold, extra_step

    def open(self, jump: Tensor, continuation: Tensor, uniform: Tensor) -> Tensor:
        """``[N, 1]`` each -> ``[N]`` bool.

        >>> one = torch.ones(1, 1)
        >>> JumpGate(0.7).open(0.9 * one, one, 0.5 * one)
        tensor([True])
        """
        return ((jump * continuation > self.threshold) & (uniform < self.prob)).squeeze(-1)


@torch.no_grad()
@weights_unchanged()
def imagine(
    world_model: WorldModel,
    actor: Any,
    start: Latent,
    horizon: int,
    *,
    gate: JumpGate | None = None,
    learn: bool = False,
    look_for_turn: bool = False,
    readers: Sequence[nn.Module] = (),
) -> Trajectory:
    """Roll the policy out in the model, recording no gradients of the model.

    Args:
        world_model: with a ``jump`` head and long-short dynamics if a gate is given.
        actor: features of any leading dimensions to a distribution over actions, always the same one; its
            ``noise(H, N)``, where it has one, draws for all steps at once what ``sample`` takes.
        start: states to start from, leaves ``[N, ...]``.
        horizon: transitions H per start.
        gate: where to jump; steps only if not given.
        learn: add the policy's log-probabilities and entropies, with gradient to the actor; it is scored
            at all steps at once.
        look_for_turn: remember the step of each roll-out that most expects a jump (:func:`branch`).
        readers: heads that are going to read the features of the trajectory. Their first layers are taken
            on the way, where that is quicker (:class:`~wmkit.nn.FirstLayers`).
    """
    dynamics = world_model.dynamics
    rows, device = start.state.shape[0], start.state.device
    state_noise = dynamics.noise(horizon, rows, device=device)
    draw = getattr(actor, "noise", None)
    action_noise = [None] * horizon if draw is None else draw(horizon, rows, device=device)
    gate_noise = torch.rand(horizon, rows, 1, device=device) if gate is not None else None

    one_hot = getattr(actor, "actions", ()) == ("discrete",)
    latent, no_jump = start, torch.zeros(rows, dtype=torch.bool, device=device)
    latents, actions, jumps, continuations = [_light(start)], [], [], []
    turn, turn_chance = start, start.belief.new_full((rows, 1), -1.0)
    asked = ("continuation",) if gate is None else ("continuation", "jump")
    heads = [head for name, head in world_model.heads.items() if name in asked]
    layers = FirstLayers.of(start.parts, actor, [*heads, *readers])
    products = start.belief.new_empty(horizon + 1, rows, 0 if layers is None else layers.width)
    for t in range(horizon):
        feature = latent.parts
        if layers is not None and latent.classes is not None:
            feature = layers.attach(feature, products[t])
        action = actor(feature).sample(action_noise[t])
        if gate is None or gate_noise is None:
            jump = no_jump
            latent = dynamics.step(latent, action, noise=state_noise[t], one_hot=one_hot)
        else:
            continuations.append(world_model.continuation(feature))
            expected = world_model.heads["jump"](feature).mean
            jump = gate.open(expected, continuations[-1], gate_noise[t])
            if look_for_turn:
                chance = expected * continuations[-1]
                better = chance > turn_chance
                turn, turn_chance = latent.where(better.squeeze(-1), turn), chance.maximum(turn_chance)
            latent = dynamics.step(latent, action, jump, noise=state_noise[t], one_hot=one_hot)
            if gate.extra_step:
                latent = dynamics.step(latent, actor(latent.parts).sample()).where(jump, latent)
        latents.append(_light(latent))
        actions.append(action)
        jumps.append(jump)
    states = _stack([x.state for x in latents])
    beliefs = _stack([x.belief for x in latents])
    known = [x.classes for x in latents if x.classes is not None]
    classes = _stack(known) if len(known) == len(latents) else None
    features = Feature(states, beliefs, classes)
    last = latent.parts
    if layers is not None and classes is not None:
        last = layers.attach(last, products[horizon])
        features = replace(features, products=Products(layers.weights, products.transpose(0, 1)))
    if continuations:
        continuation = _stack([*continuations, world_model.continuation(last)])
    else:
        continuation = world_model.continuation(features.map(_swap)).transpose(0, 1)
    jumped = _stack(jumps).unsqueeze(-1)
    trajectory = Trajectory(
        states, beliefs, _stack(actions), jumped, continuation, classes, products=features.products
    )
    if look_for_turn:
        trajectory = trajectory._replace(turn=turn, turn_chance=turn_chance)
    return _scored(trajectory, actor) if learn else trajectory


@torch.enable_grad()
def _scored(trajectory: Trajectory, actor: Any) -> Trajectory:
    """With the policy's log-probabilities and entropies, all steps at once."""
    policy = actor(trajectory.time_major.map(lambda x: x[:-1]))
    log_probs = policy.log_prob(_swap(trajectory.actions)).t()
    return trajectory._replace(log_probs=log_probs, entropies=policy.entropy.t())


def _swap(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


def _light(latent: Latent) -> Latent:
    """Without what the backbone carries, which may be large and only the next step needs."""
    return latent._replace(carry=latent.belief)


def _cat(parts: list[Tensor | None]) -> Tensor | None:
    """``[N, H, ...]`` joined along the rows, time outermost in memory; nothing where a part is missing."""
    there = [part.transpose(0, 1) for part in parts if part is not None]
    return torch.cat(there, 1).transpose(0, 1) if len(there) == len(parts) else None


def _stack(steps: list[Tensor]) -> Tensor:
    """``H`` times ``[N, ...]`` to ``[N, H, ...]``, time outermost in memory."""
    return torch.stack(steps).transpose(0, 1)


@torch.no_grad()
def branch(
    world_model: WorldModel, actor: Any, trajectory: Trajectory, gate: JumpGate
) -> tuple[Latent, Tensor]:
    """Where a second, parallel roll-out sets off from each trajectory (released LS-Imagine).

    The step that most expects a jump is taken; from there one jump and one ordinary step.

    Args:
        world_model: with a ``jump`` head and long-short dynamics.
        actor: features to a distribution over actions.
        trajectory: roll-outs of ``N`` starts, with a ``turn``.
        gate: decides whether the jump is taken.

    Returns:
        States after jump and step, leaves ``[N, ...]``, and ``[N]`` bool: which of them count.
    """
    latent, chance, dynamics = trajectory.turn, trajectory.turn_chance, world_model.dynamics
    assert latent is not None and chance is not None, "imagine with look_for_turn=True"
    opened = gate.open(chance, torch.ones_like(chance), torch.rand_like(chance))
    blank = trajectory.actions.new_zeros(len(chance), trajectory.actions.shape[-1])
    latent = dynamics.step(latent, blank, torch.ones_like(opened))
    return dynamics.step(latent, actor(latent.parts).sample()), opened
