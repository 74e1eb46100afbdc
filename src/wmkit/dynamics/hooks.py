"""What may change a roll-out on its way: jumps, restarts, another start (:class:`~wmkit.dynamics.Hook`).

The last, :class:`SecondBranch`, is the released LS-Imagine's second roll-out from each trajectory (compat).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wmkit.arguments import check_range
from wmkit.dynamics.dynamics import Latent
from wmkit.dynamics.rollout import Act, Hook, Rollout, rollout
from wmkit.dynamics.world_model import ModelSteps, WorldModel
from wmkit.fast import rows_are_free
from wmkit.functional import discount_sum


class JumpGate(Hook):
    """Takes the option where the model expects it to be worth it, and a coin agrees.

    LS-Imagine (arXiv:2410.03618, section 3.3): a jump, by the world model's head ``jump``.

    Args:
        prob: chance that an expected jump is taken (0.7 in LS-Imagine).
        threshold: on P(jump | s) times the probability of going on.
        extra_step: let an ordinary step follow each jump inside the same transition, as the
            released code does without counting it in Δ.
        max_span: longest span Δ of a jump, environment steps.

    >>> JumpGate(prob=0.0).prob
    0.0
    """

    def __init__(
        self, prob: float = 0.7, threshold: float = 0.5, extra_step: bool = False, max_span: int = 1000
    ) -> None:
        check_range("max_span", max_span, 1)
        self.prob, self.threshold, self.extra_step, self.max_span = prob, threshold, extra_step, max_span

    def open(self, jump: Tensor, continuation: Tensor, uniform: Tensor) -> Tensor:
        """``[N, 1]`` each -> ``[N]`` bool.

        >>> one = torch.ones(1, 1)
        >>> JumpGate(0.7).open(0.9 * one, one, 0.5 * one)
        tensor([True])
        """
        return ((jump * continuation > self.threshold) & (uniform < self.prob)).squeeze(-1)

    def noise(self, horizon: int, rows: int, device: torch.device) -> Any:
        """Uniforms ``[H, N, 1]``."""
        return torch.rand(horizon, rows, 1, device=device)

    def option(self, world_model: WorldModel, latent: Latent, noise: Any, t: int) -> Tensor | None:
        """Rows that jump."""
        continuation = world_model.continuation(latent)
        return self.open(world_model.predict("jump", latent).mean, continuation, noise[t])

    def stepped(
        self, steps: ModelSteps, latent: Latent, option: Tensor | None, act: Act, noise: Any, t: int
    ) -> tuple[Latent, Tensor | None]:
        """The uncounted step after a jump, where there is one."""
        if self.extra_step and option is not None:
            latent = steps.step(latent, act(latent, len(noise))).where(option, latent)
        return latent, None

    def durations(self, world_model: WorldModel, found: Rollout, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Span Δ and discounted reward inside each transition ``[H, N, 1]``, by the heads of both states."""
        jumps, before, after = found.options, found.before, found.after
        span = _where(jumps, before, after, lambda *pair: world_model.predict("jump_steps", *pair).mean)
        span = span.clamp(1, self.max_span).floor()
        mean = _where(jumps, before, after, lambda *pair: world_model.predict("jump_return", *pair).mean)
        inside = mean * discount_sum(span, gamma)
        return torch.where(jumps, span, 1.0), torch.where(jumps, inside, 0.0)

    def outlook(self, world_model: WorldModel, latent: Latent) -> dict[str, Tensor]:
        """``jump``, the probability, and ``jump_steps``, the predicted span Δ of a jump from each state."""
        before = latent.map(lambda x: x.flatten(0, 1))
        jump = torch.ones(len(before.belief), dtype=torch.bool, device=before.belief.device)
        blank = before.belief.new_zeros(len(jump), world_model.dynamics.action_dim)
        after = world_model.step(before, blank, jump)
        span = world_model.predict("jump_steps", before, after).mean.squeeze(-1).clamp(1, self.max_span)
        expected = world_model.predict("jump", latent).mean.squeeze(-1)
        return {"jump": expected, "jump_steps": span.view(expected.shape)}


def _where(
    mask: Tensor, before: Latent, after: Latent, predict: Callable[[Latent, Latent], Tensor]
) -> Tensor:
    """``predict`` of the rows that ``mask`` ``[H, N, 1]`` sets; zero elsewhere."""
    if not rows_are_free(mask):
        return torch.where(mask, predict(before, after), 0.0)
    rows = mask.flatten().nonzero().squeeze(1)
    pair = [latent.map(lambda x: x.flatten(0, 1)[rows]) for latent in (before, after)]
    values = predict(*pair)
    return values.new_zeros(mask.shape).flatten(0, 1).index_copy(0, rows, values).view(mask.shape)


class Restart(Hook):
    """A roll-out whose predicted discounts multiply to less than a threshold begins anew (TWM).

    TWM (arXiv:2303.07109, section 2.3): what was before is cut off, and the next state is another real one,
    so that no row goes on dreaming about nothing.

    Args:
        threshold: on the product of the discounts since the last start; zero never restarts.

    Attributes:
        states: leaves ``[M, ...]``, real states to restart from, drawn uniformly; whoever rolls out gives
            them.

    Raises:
        ConfigError: a threshold outside [0, 1].
    """

    def __init__(self, threshold: float = 0.1, states: Latent | None = None) -> None:
        check_range("threshold", threshold, 0, 1)
        self.threshold, self.states = threshold, states

    def single(self) -> Hook | None:
        """There is no other state to restart from."""
        return None

    def of(self, states: Latent) -> Restart:
        """The same hook over some real states."""
        return Restart(self.threshold, states)

    def noise(self, horizon: int, rows: int, device: torch.device) -> Any:
        """Which states to restart from ``[H, N]``, and the product of discounts so far."""
        assert self.states is not None, "a restart needs states: Restart(threshold).of(states)"
        pick = torch.randint(len(self.states.state), (horizon, rows), device=device)
        return pick, [torch.ones(rows, 1, device=device)]

    def stepped(
        self, steps: ModelSteps, latent: Latent, option: Tensor | None, act: Act, noise: Any, t: int
    ) -> tuple[Latent, Tensor | None]:
        """Other states where the roll-out is over."""
        pick, alive = noise
        alive.append(alive[-1] * steps.world_model.continuation(latent))
        over = alive[-1] < self.threshold  # [N, 1]
        alive[-1] = alive[-1].masked_fill(over, 1)
        assert self.states is not None
        start = self.states.map(lambda x: x[pick[t]])
        return steps.world_model.dynamics.restart(latent, over.squeeze(-1), start), over


class FromPrior(Hook):
    """Begin at what the model expects after the context instead of at what was there (STORM)."""

    samples = 1

    def single(self) -> Hook | None:
        """What is given is where to start."""
        return None

    def start(self, world_model: WorldModel, latent: Latent, noise: Tensor) -> Latent:
        """A sample of the prior; a start that nothing went before stays as it is."""
        if getattr(latent.carry, "memory", latent.carry) is None:
            return latent
        dynamics = world_model.dynamics
        state, classes = dynamics.sample(dynamics.prior_logits(latent.belief), noise[0])
        return latent._replace(state=state, classes=classes)


class SecondBranch(JumpGate):
    """A gate that adds to every roll-out a second one, from the step that most expects a jump.

    That may be the last state too. From there one jump and one ordinary step lead to where the second
    roll-out of ordinary steps sets off; up to twice the work. Its arguments are those of :class:`JumpGate`.
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
        expected, continuation = noise.look(world_model, latent)
        return self.open(expected, continuation, noise[t])

    def finish(self, world_model: WorldModel, act: Any, found: Rollout, noise: Any) -> Rollout:
        """The roll-outs and their second ones."""
        noise.look(world_model, found.last)
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

    def look(self, world_model: WorldModel, latent: Latent) -> tuple[Tensor, Tensor]:
        """How likely a jump is at a state, and going on; ``[N, 1]`` each."""
        expected, continuation = world_model.predict("jump", latent).mean, world_model.continuation(latent)
        chance = expected * continuation
        better = chance > self.chance
        self.latent = latent if self.latent is None else latent.where(better.squeeze(-1), self.latent)
        self.chance = chance.maximum(self.chance)
        return expected, continuation
