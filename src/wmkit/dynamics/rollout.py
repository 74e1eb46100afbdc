"""The one roll-out: tensors inside, fixed shapes, chance drawn before the loop.

::

    start ─ act ─▶ a_0 ─ step ─▶ s_1 ─ act ─▶ a_1 ─ ... ─▶ s_H        time is the first dimension: [H+1, N,
    ...]

What acts is a policy, a plan, or any function of the state. *Hooks* change a roll-out without it knowing how:
a jump gate chooses options (LS-Imagine), restarts replace states after a predicted end (TWM), a start is
drawn from the prior (STORM). Each draws its own chance, after states and actions have drawn theirs, so that a
roll-out whose hooks do nothing equals one without them, number for number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wmkit.dynamics.dynamics import Latent
from wmkit.dynamics.world_model import ModelSteps, WorldModel
from wmkit.errors import SpecError

Act = Callable[[Latent, int], Tensor]


class Rollout(NamedTuple):
    """``H`` transitions from each of ``N`` states.

    Attributes:
        latent: leaves ``[H+1, N, ...]``, without carry.
        actions: ``[H, N, A]``; without effect where ``options`` is set.
        options: ``[H, N, 1]`` bool, transitions that took the option (jumps).
        restarts: ``[H, N, 1]`` bool, the state after the transition is a new start.
        rows: ``[N]`` int64, the start of each roll-out; with a second branch each start has two.
        valid: ``[N, 1]`` bool, roll-outs that count.
        last: state after the last transition, leaves ``[N, ...]``, to go on from.
        policies: the actor's distributions ``[N, A]`` by step, of a roll-out with gradient; none otherwise.
        seen: ``[H+1, N, F]`` what the actor's memory read, where it has one.
    """

    latent: Latent
    actions: Tensor
    options: Tensor
    restarts: Tensor
    rows: Tensor
    valid: Tensor
    last: Latent
    policies: tuple[Any, ...] = ()
    seen: Tensor | None = None

    @property
    def before(self) -> Latent:
        """States that transitions start from, ``[H, N, ...]``."""
        return self.latent.map(lambda x: x[:-1])

    @property
    def after(self) -> Latent:
        """States that they end in."""
        return self.latent.map(lambda x: x[1:])

    @staticmethod
    def join(parts: Sequence[Rollout]) -> Rollout:
        """Roll-outs of one horizon side by side."""
        latent, *rest = zip(*parts, strict=True)
        bare = [x._replace(products=None) for x in latent]
        fields = (None if x[0] is None else torch.cat(x, 1) for x in zip(*bare, strict=True))
        whole = Latent(*fields)  # type: ignore[arg-type]
        *timed, rows, valid, last, _, _ = rest
        actions, options, restarts = (torch.cat(x, 1) for x in timed)
        merged = torch.cat(rows), torch.cat(valid), Latent.cat(last)
        return Rollout(whole, actions, options, restarts, *merged)


class Hook:
    """Changes a roll-out; a subclass overrides what it needs.

    Attributes:
        samples: samples of a state that :meth:`start` takes, drawn with those of the steps.
    """

    samples = 0

    def single(self) -> Hook | None:
        """What stands for this hook in one roll-out from given states; None leaves it out."""
        return self

    def noise(self, horizon: int, rows: int, device: torch.device) -> Any:
        """The chance that this hook takes, drawn after states and actions have drawn theirs."""
        return None

    def start(self, world_model: WorldModel, latent: Latent, noise: Tensor) -> Latent:
        """Where to start instead; ``noise [samples, N, ...]``."""
        return latent

    def option(self, world_model: WorldModel, latent: Latent, noise: Any, t: int) -> Tensor | None:
        """Rows ``[N]`` bool that take the option at step ``t``; None has no opinion."""
        return None

    def stepped(
        self, steps: ModelSteps, latent: Latent, option: Tensor | None, act: Act, noise: Any, t: int
    ) -> tuple[Latent, Tensor | None]:
        """A step's outcome: the latent to go on with, and which rows ``[N, 1]`` of it are new starts."""
        return latent, None

    def durations(
        self, world_model: WorldModel, found: Rollout, gamma: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Environment steps and discounted reward inside of each transition ``[H, N, 1]``; None: one, and
        none.
        """
        return None

    def outlook(self, world_model: WorldModel, latent: Latent) -> dict[str, Tensor]:
        """What this hook expects of real states ``[B, T]``, for a report: ``[B, T]`` each."""
        return {}

    def finish(self, world_model: WorldModel, act: Any, found: Rollout, noise: Any) -> Rollout:
        """The whole roll-out, e.g. with more beside it."""
        return found


def rollout(
    world_model: WorldModel,
    start: Latent,
    act: Any,
    horizon: int,
    *,
    gradient: bool = False,
    hooks: Iterable[Hook] = (),
    readers: Iterable[Any] = (),
    memory: Any = None,
) -> Rollout:
    """Imagine ``horizon`` transitions from each start, without dropout.

    Args:
        world_model: read only.
        start: states to start from, leaves ``[N, ...]``.
        act: an actor (``policy(features)``, whose ``noise(H, N)`` draws for all steps at once what ``sample``
            takes); actions ``[N, H, A]``; or a function of the latent and the step.
        horizon: transitions H.
        gradient: record how states depend on actions; call under :func:`constants` to keep the model out of
            it. The actor reads its features without gradient either way.
        hooks: see :class:`Hook`.
        readers: heads and critics that will read its states; their first layers may be taken on the way.
        memory: carry of the actor's memory before the starts, where it has one; that of an empty one if not
            given.

    Raises:
        SpecError: given actions are not ``[N, horizon, A]``.
    """
    dynamics, hooks = world_model.dynamics, tuple(hooks)
    rows, device = start.state.shape[0], start.state.device
    extra = sum(hook.samples for hook in hooks)
    state_noise = dynamics.noise(horizon + extra, rows, device=device)
    policies: list[Any] | None = [] if gradient else None
    choose, one_hot = _as_act(world_model, act, horizon, rows, device, policies)
    chances = [hook.noise(horizon, rows, device) for hook in hooks]
    with torch.set_grad_enabled(gradient and torch.is_grad_enabled()), world_model.evaluating():
        steps, latent, taken = world_model.bind(one_hot=one_hot), start, horizon
        for hook in hooks:
            latent = hook.start(world_model, latent, state_noise[taken : taken + hook.samples])
            taken += hook.samples
        never = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        layers = None if gradient else world_model.first_layers([act, *readers], latent)
        made = None if layers is None else layers.room(horizon + 1, rows)

        def multiplied(latent: Latent, t: int) -> Latent:
            return latent if made is None else latent._replace(products=made.take(latent.feature, t))

        remember = _Remembering(world_model, act, memory, never[:, 0])
        latent = remember(multiplied(latent, 0), never)
        latents, actions, options, restarts = [latent.light()], [], [], []
        for t in range(horizon):
            action = choose(latent, t)
            chosen = [
                hook.option(world_model, latent, chance, t)
                for hook, chance in zip(hooks, chances, strict=True)
            ]
            option = next((mask for mask in chosen if mask is not None), None)
            latent = steps.step(latent, action, option, state_noise[t])
            begins = never
            for hook, chance in zip(hooks, chances, strict=True):
                latent, new = hook.stepped(steps, latent, option, choose, chance, t)
                begins = begins if new is None else begins | new
            latent = remember(multiplied(latent, t + 1), begins)
            latents.append(latent.light())
            actions.append(action)
            options.append(never if option is None else option.unsqueeze(-1))
            restarts.append(begins)
        known = all(x.classes is not None for x in latents)
        whole = Latent.stack(latents if known else [x._replace(classes=None) for x in latents], 0)
        whole = whole._replace(products=made)
        acted, opted, begun = (torch.stack(x) for x in (actions, options, restarts))
        own, last = torch.arange(rows, device=device), latent._replace(products=None)
        found = Rollout(whole, acted, opted, begun, own, ~never, last, tuple(policies or ()), remember.seen)
        for hook, chance in zip(hooks, chances, strict=True):
            found = hook.finish(world_model, act, found, chance)
    return found


class _Remembering:
    """An actor's own memory on its way through a roll-out; nothing where it has none."""

    def __init__(self, world_model: WorldModel, act: Any, carry: Any, rows: Tensor) -> None:
        self.world_model, self.memory = world_model, getattr(act, "memory", None)
        self._seen: list[Tensor] = []
        if self.memory is not None:
            self.carry = self.memory.initial(len(rows)) if carry is None else carry

    def __call__(self, latent: Latent, begins: Tensor) -> Latent:
        """The latent with what the memory gives; ``begins [N, 1]`` bool are new starts."""
        if self.memory is None:
            return latent
        features = self.world_model.read(self.memory, latent).dense
        self._seen.append(features)
        out, self.carry = self.memory.step(features, self.carry, begins[:, 0])
        return latent._replace(memory=out)

    @property
    def seen(self) -> Tensor | None:
        """``[H+1, N, F]`` what it read."""
        return torch.stack(self._seen) if self._seen else None


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


def _as_act(
    world_model: WorldModel,
    act: Any,
    horizon: int,
    rows: int,
    device: torch.device,
    policies: list[Any] | None,
) -> tuple[Act, bool]:
    """``act`` as a function of latent and step, and whether its actions are one-hot.

    At a step beyond the horizon an actor draws for itself. With a list of ``policies`` actions carry
    gradients, and each step's distribution is added to it.
    """
    if isinstance(act, Tensor):
        if act.shape[:2] != (rows, horizon):
            raise SpecError(
                f"actions of a roll-out are {list(act.shape)}: wanted [{rows}, {horizon}, A], one for "
                "each step of "
                "each start; expand them"
            )
        return lambda latent, t: act[:, t], False
    if not hasattr(act, "policy"):
        return act, False
    draw = getattr(act, "noise", None)
    noise = [None] * horizon if draw is None else draw(horizon, rows, device=device)

    def choose(latent: Latent, t: int) -> Tensor:
        features = world_model.read(act, latent)
        chance = noise[t] if t < horizon else None
        if policies is None:
            return act.policy(features).sample(chance)
        policy = act.policy(features.map(Tensor.detach))
        if t < horizon:
            policies.append(policy)
        return policy.rsample(chance)

    return choose, getattr(act, "actions", ()) == ("discrete",)
