"""Imagination over token dynamics: cached, fixed shapes, uniforms drawn before the loop.

TWM (arXiv:2303.07109, section 2.3; jrobine/twm). Each step feeds one time step's tokens to the
sequence model: the reward of the step before, the state, the action. Where the product of predicted
discounts falls below a threshold the episode is over: attention is cut and the next state is
another real one, so that no row goes on dreaming about nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from wmkit.dynamics.token_dynamics import Steps
from wmkit.dynamics.token_world_model import TokenWorldModel
from wmkit.errors import ConfigError, SpecError
from wmkit.nn import Feature, weights_unchanged


class DreamStart(NamedTuple):
    """Where ``N`` roll-outs start: the last of ``c + 1`` consecutive records; the others are context.

    Attributes:
        classes: ``[N, c+1, G]`` int64, classes of the states.
        reward: ``[N, c+1, 1]`` received on arriving at each, in the reward head's units.
        is_init: ``[N, c+1]`` bool, starts an episode.
        action: ``[N, c, A]`` the action between each and the next.
        mask: ``[N]`` bool, starts that count.
    """

    classes: Tensor
    reward: Tensor
    is_init: Tensor
    action: Tensor
    mask: Tensor


class Dream(NamedTuple):
    """``H`` transitions from each of ``N`` starts.

    Attributes:
        states: ``[N, H+1, G*C]``.
        beliefs: ``[N, H+1, U]`` on arriving at each state.
        classes: ``[N, H+1, G]`` int64.
        actions: ``[N, H, A]``.
        rewards: ``[N, H, 1]`` predicted means, in the reward head's units.
        discounts: ``[N, H, 1]`` of each transition; zero where the roll-out restarts after it.
        restarts: ``[N, H, 1]`` bool, the state after it is another real one.
        weights: ``[N, H, 1]`` product of the discounts since the last start, the transition's own
            excluded.
        log_probs: ``[N, H]`` of the actions, with gradient to the policy; only where it learns.
        entropies: ``[N, H]`` of the policy, nats, likewise.
    """

    states: Tensor
    beliefs: Tensor
    classes: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    restarts: Tensor
    weights: Tensor
    log_probs: Tensor | None = None
    entropies: Tensor | None = None


class PairStarts:
    """Starts from records that a world-model loss has just encoded (TWM).

    All windows of ``context + 1`` records are candidates, drawn without replacement; those whose last
    record ends an episode are drawn only where nothing else is left, and do not count.

    Args:
        count: starts N, 400 in TWM; as many as there are where a batch has fewer.
        context: records before a start that fill the sequence model's memory: one in TWM, although its
            model is trained on up to sixteen.

    Raises:
        ConfigError: ``count`` is not positive or ``context`` negative.

    >>> classes, flag = torch.arange(12).view(2, 6, 1), torch.zeros(2, 6, dtype=torch.bool)
    >>> start = PairStarts(count=4)(classes, torch.zeros(2, 6, 3), torch.zeros(2, 6, 1), flag, flag)
    >>> start.classes.shape, bool((start.classes[:, 1] - start.classes[:, 0] == 1).all())
    (torch.Size([4, 2, 1]), True)
    """

    def __init__(self, count: int, context: int = 1) -> None:
        _check_starts(count, context)
        self.count, self.context = count, context
        self.shortest = context + 1  # records of a window

    def __call__(
        self, classes: Tensor, previous_action: Tensor, reward: Tensor, is_init: Tensor, ended: Tensor
    ) -> DreamStart:
        """Draw starts from records ``[B, T, ...]``; ``ended [B, T]`` marks the last of episodes."""
        length = self.context + 1
        rows, windows = len(classes), classes.shape[1] - self.context
        if windows < 1:
            raise SpecError(
                f"a window of {classes.shape[1]} records has no start with {self.context} before it: wanted "
                f"{length} or more; raise batch.length or lower behaviour.starts.context"
            )
        usable = ~ended[:, self.context :].flatten()  # [B * windows]
        score = torch.rand(rows * windows, device=classes.device) + usable
        chosen = score.topk(min(self.count, rows * windows)).indices
        row = (chosen // windows).unsqueeze(1)
        time = (chosen % windows).unsqueeze(1) + torch.arange(length, device=classes.device)  # [N, c+1]
        return DreamStart(
            classes[row, time],
            reward[row, time],
            is_init[row, time],
            previous_action[row, time[:, 1:]],
            usable[chosen],
        )


class SampledStarts:
    """Starts from windows that are sampled for dreams alone, one from each (STORM).

    Args:
        count: windows N that an update is given beside its batch, 1,024 in STORM.
        context: records of a window before its last; eight in STORM.

    Attributes:
        windows: N and records of each.

    >>> starts = SampledStarts(count=2, context=3)
    >>> flag = torch.zeros(2, 4, dtype=torch.bool)
    >>> start = starts(torch.zeros(2, 4, 1).long(), torch.zeros(2, 4, 3), torch.zeros(2, 4, 1), flag, flag)
    >>> starts.windows, start.action.shape
    ((2, 4), torch.Size([2, 3, 3]))
    """

    def __init__(self, count: int, context: int = 8) -> None:
        _check_starts(count, context)
        self.windows = (count, context + 1)

    def __call__(
        self, classes: Tensor, previous_action: Tensor, reward: Tensor, is_init: Tensor, ended: Tensor
    ) -> DreamStart:
        """All of records ``[N, c+1, ...]``, also where an episode ends."""
        return DreamStart(classes, reward, is_init, previous_action[:, 1:], torch.ones_like(ended[:, -1]))


def _check_starts(count: int, context: int) -> None:
    if count < 1 or context < 0:
        raise ConfigError(
            f"starts have count {count} and context {context}: wanted 1 or more and 0 or more; correct "
            "behaviour.starts"
        )


@torch.no_grad()
def dream(
    world_model: TokenWorldModel,
    actor: Any,
    start: DreamStart,
    horizon: int,
    *,
    threshold: float = 0.0,
    replacements: Tensor | None = None,
    prior_start: bool = False,
    learn: bool = False,
) -> Dream:
    """Roll the policy out in the model, recording no gradients of the model and without its dropout.

    Args:
        world_model: read only.
        actor: features of ``N`` states to a distribution over actions; its ``noise(H, N)``, where it has
            one, draws for all steps at once what ``sample`` takes.
        start: where to start.
        horizon: transitions H.
        threshold: a roll-out restarts where the product of its discounts falls below this.
        replacements: ``[M, G]`` int64, classes of real states to restart from, drawn uniformly; needed
            with a threshold.
        prior_start: begin at what the model expected after the context, instead of what was there (STORM).
        learn: keep the policy's log-probabilities and entropies, with gradient to the actor.

    Returns:
        Without replacements no roll-out restarts and discounts just multiply.
    """
    dynamics, device = world_model.dynamics, start.classes.device
    rows, context = start.classes.shape[0], start.classes.shape[1] - 1
    state_noise = torch.rand(horizon + prior_start, rows, dynamics.groups, 1, device=device)
    draw = getattr(actor, "noise", None)
    action_noise = [None] * horizon if draw is None else draw(horizon, rows, device=device)
    if replacements is not None:
        pick = torch.randint(len(replacements), (horizon, rows), device=device)
    else:
        threshold = 0.0

    with world_model.evaluating(), weights_unchanged():
        loop = dynamics.loop()
        states, carry = dynamics.one_hot(start.classes), None
        belief = states.new_zeros(rows, dynamics.belief_dim)
        if context:
            known = Feature(states[:, :-1], states[:, :-1, :0], start.classes[:, :-1])
            steps = Steps(known, start.action, start.reward[:, :-1], start.is_init[:, :-1])
            beliefs, carry = dynamics.advance(steps, carry)
            belief = beliefs[:, -1]
        state, classes = states[:, -1], start.classes[:, -1]
        reward, reset = start.reward[:, -1], start.is_init[:, -1:]
        if prior_start and context:
            state, classes = dynamics.sample(dynamics.prior_logits(belief), state_noise[horizon])
        alive = torch.ones(rows, 1, device=device)  # product of the discounts since the last start
        seen, taken = [(state, belief, classes)], []
        for t in range(horizon):
            policy = actor(dynamics.view(state, belief, classes))
            action = policy.sample(action_noise[t])
            here = Feature(state.unsqueeze(1), state[:, None, :0], classes.unsqueeze(1))
            steps = Steps(here, action.unsqueeze(1), reward.unsqueeze(1), reset)
            beliefs, carry = dynamics.advance(steps, carry, loop)
            belief = beliefs[:, -1]
            reward, discount = world_model.outcome(belief)
            weight, alive = alive, alive * discount
            reset = alive < threshold  # [N, 1]
            sampled, classes = dynamics.sample(dynamics.prior_logits(belief), state_noise[t])
            if replacements is not None:
                classes = torch.where(reset, replacements[pick[t]], classes)
                sampled = dynamics.one_hot(classes)
                discount = discount.masked_fill(reset, 0)
                alive = alive.masked_fill(reset, 1)
            state = sampled
            seen.append((state, belief, classes))
            taken.append((action, reward, discount, reset, weight))
    states, beliefs, all_classes = (torch.stack(parts, 1) for parts in zip(*seen, strict=True))
    actions, rewards, discounts, restarts, weights = (
        torch.stack(parts, 1) for parts in zip(*taken, strict=True)
    )
    learned: tuple[Tensor, ...] = ()
    if learn:
        # All steps at once: as many layers applied to few rows each cost more, backwards above all.
        with torch.enable_grad():
            policy = actor(dynamics.view(states[:, :-1], beliefs[:, :-1], all_classes[:, :-1]))
            learned = policy.log_prob(actions), policy.entropy
    return Dream(
        states,
        beliefs,
        all_classes,
        actions,
        rewards,
        discounts,
        restarts,
        weights,
        *learned,
    )
