"""Who learns from what, in which order: the one schedule, as data.

::

    learners:
      representation: {trains: [world_model.encoder, ...], learns_from: [representation], optimizer: ...,
          clip: 100.0}
      dynamics:       {trains: [world_model], learns_from: [dynamics], optimizer: ..., clip: 100.0}
      actor: ...
      critic: ...
    order: [[dynamics, representation], [critic, actor]]     one inner list learns at once
    slow: {critic: {fraction: 0.02, every: 1}}               copies that follow
    batches: {frames: {size: 256, length: 1, objectives: [reconstruction]}}    a learner's own batch
    phases: {representation: {share: 0.6, learners: [representation], objectives: [...]}, ...}

Learners of one inner list see the weights as they were before any of them stepped; those of the next see what
the former have learned. Phases come before all of that, each with its share of ``pretrain`` updates,
or while the policy plays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wmkit.arguments import check_range, check_value
from wmkit.errors import ConfigError
from wmkit.optim.learner import Learner


class Loss(NamedTuple):
    """A weighted term: what it costs, and whom it teaches."""

    value: Tensor
    group: str


class Phase(NamedTuple):
    """A kind of update before all learn together.

    Attributes:
        name: of the phase.
        updates: how many.
        order: which learners learn.
        objectives: names of those that are asked; all if None.
        records: whether actor and critic learn from records instead of dreams.
        playing: whether the policy plays meanwhile.
    """

    name: str
    updates: int
    order: tuple[tuple[str, ...], ...]
    objectives: tuple[str, ...] | None = None
    records: bool = False
    playing: bool = False


class Schedule(nn.Module):
    """Learners, the order in which they learn, slow copies, and phases of pretraining.

    Args:
        modules: what there is to train, by name: ``world_model``, ``actor``, ``critic``.
        learners: by name, ``trains`` (names of modules, dotted for parts of them; a parameter belongs to the
            learner that names it most closely), ``learns_from`` (groups of terms), ``optimizer`` (called with
            parameters), and, if any, ``clip``, the largest norm of the whole gradient, ``rates``, factors on
            the learning rate of some of what it trains, by name, and ``decay``, the optimiser's
            ``weight_decay`` of the weights of linear layers that have a bias, alone.
        order: inner lists of learners that learn at once.
        slow: by module, ``fraction`` that its slow copy moves towards it, ``every`` so many updates.
        pretrain: updates of a pretraining of share one.
        phases: by name, ``share`` or a number of ``updates``, ``learners`` and, if any, ``objectives``,
            ``records`` and ``playing``: the policy plays meanwhile, and learners keep the ``order``.
        batches: of learners' own, by name: ``size``, ``length`` and the ``objectives`` that are scored on it.

    Raises:
        ConfigError: an unknown module, learner or option, or a learner that trains nothing.

    >>> layer = nn.Linear(1, 1)
    >>> sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    >>> learner = {"trains": ["world_model"], "learns_from": ["dynamics"], "optimizer": sgd}
    >>> schedule = Schedule({"world_model": layer}, learners={"model": learner}, order=[["model"]])
    >>> loss = Loss(layer(torch.ones(1, 1)).sum(), "dynamics")
    >>> sorted(schedule.learn(schedule.order[0], {"reward": loss}))
    ['grad_norm_model', 'loss_model']
    """

    _followed: dict[str, Any]

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        *,
        learners: Mapping[str, Mapping[str, Any]],
        order: Sequence[Sequence[str]],
        slow: Mapping[str, Mapping[str, float] | None] | None = None,
        pretrain: int = 0,
        phases: Mapping[str, Mapping[str, Any]] | None = None,
        batches: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        owners = {path: name for name, spec in learners.items() for path in spec["trains"]}
        for name, learner in learners.items():
            check_value(f"schedule.learners.{name}.clip", learner.get("clip"), float | None, "Learner")
        self.learners: dict[str, Learner] = {}
        for name, spec in learners.items():
            rates = {
                parameter: float(factor)
                for path, factor in (spec.get("rates") or {}).items()
                for parameter in _module(modules, path).parameters()
            }
            decay = spec.get("decay")
            if decay is not None:
                check_range(f"schedule.learners.{name}.decay", decay, 0)
                decay = dict.fromkeys(_linear_weights(modules), float(decay))
            own = _parameters(modules, owners, name, spec["trains"])
            self.learners[name] = Learner(own, spec["optimizer"], spec.get("clip"), rates, decay)
        self.batches = {name: dict(spec) for name, spec in (batches or {}).items()}
        self.on = {name: tuple(spec["learns_from"]) for name, spec in learners.items()}
        self.order = tuple(tuple(self._known(name) for name in names) for names in order)
        self.phases = tuple(self._phase(name, pretrain, spec) for name, spec in (phases or {}).items())
        self._slow_spec: dict[str, tuple[float, int]] = {}
        self.__dict__["_followed"] = {}
        for path, follows in (slow or {}).items():
            if follows is None:
                continue
            module, key = _module(modules, path), path.replace(".", "_")
            fraction, every = float(follows["fraction"]), int(follows.get("every", 1))
            check_range(f"slow.{path}.fraction", fraction, 0, 1)
            check_range(f"slow.{path}.every", every, 1)
            self._slow_spec[key], self._followed[key] = (fraction, every), module
            setattr(self, f"slow_{key}", copy.deepcopy(module).requires_grad_(False))
        self.updates = 0

    @property
    def slow(self) -> dict[str, nn.Module]:
        """The slow copies, by module; each is an attribute ``slow_NAME`` too."""
        return {key: getattr(self, f"slow_{key}") for key in self._slow_spec}

    # -- which update this is --------------------------------------------------------------

    @property
    def pretraining(self) -> int | None:
        """Updates of all phases before the policy plays; None where there are none."""
        before = [phase.updates for phase in self.phases if not phase.playing]
        return sum(before) if before else None

    @property
    def now(self) -> Phase:
        """The phase of the next update."""
        left = self.updates
        for phase in self.phases:
            if left < phase.updates:
                return phase
            left -= phase.updates
        return Phase("together", 0, self.order)

    @property
    def phase(self) -> Any:
        """Which kind of update comes next: equal ones do the same things."""
        # A compiler that reads the count makes a new graph of every update.
        moves = tuple(every == 1 or self.updates % every == 0 for _, every in self._slow_spec.values())
        return (self.now.name if self.phases else "together", moves)

    # -- learning ------------------------------------------------------------------------

    def wants(self, names: Sequence[str], groups: Sequence[str]) -> bool:
        """Whether one of these learners learns from terms of one of these groups."""
        return any(group in groups for name in names for group in self.on[name])

    @contextmanager
    def alone(self, names: Sequence[str]) -> Iterator[None]:
        """Inside, what other learners train is constant: no graph over what does not learn."""
        others = [learner for name, learner in self.learners.items() if name not in names]
        still = [p for learner in others for p in learner.parameters if p.requires_grad]
        for parameter in still:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in still:
                parameter.requires_grad_(True)

    def learn(self, names: Sequence[str], losses: Mapping[str, Loss]) -> dict[str, Tensor]:
        """One step of each of these learners, all from the weights as they are.

        Args:
            names: learners.
            losses: by term.

        Returns:
            ``loss_NAME`` and ``grad_norm_NAME`` of each learner, detached.

        Raises:
            ConfigError: a learner without a term.
        """
        totals = {}
        for name in names:
            own = [loss.value for loss in losses.values() if loss.group in self.on[name]]
            if not own:
                raise ConfigError(
                    f"learner {name!r} learns from nothing: found terms of "
                    f"{', '.join(sorted({loss.group for loss in losses.values()})) or 'no group'}, wanted "
                    "some of "
                    f"{', '.join(self.on[name])}; correct learns_from"
                )
            totals[name] = torch.stack([value.reshape(()) for value in own]).sum() if len(own) > 1 else own[0]
        metrics = {f"loss_{name}": total.detach() for name, total in totals.items()}
        for i, (name, total) in enumerate(totals.items()):
            self.learners[name].backward(total, retain=i < len(totals) - 1)
        return metrics | {f"grad_norm_{name}": self.learners[name].step() for name in names}

    @torch.no_grad()
    def follow(self) -> None:
        """Move each slow copy if it is time, and count the update."""
        for key, (fraction, every) in self._slow_spec.items():
            if every == 1 or self.updates % every == 0:
                slow, module = self.slow[key], self._followed[key]
                torch._foreach_lerp_(list(slow.parameters()), list(module.parameters()), fraction)
        counts = self.phases or any(every != 1 for _, every in self._slow_spec.values())
        if counts or not torch.compiler.is_compiling():
            self.updates += 1

    # -- resuming --------------------------------------------------------------------------

    def get_extra_state(self) -> dict:
        """Optimiser states and the number of updates: ``state_dict`` holds all that a resume needs."""
        return {"updates": self.updates} | {k: learner.state_dict() for k, learner in self.learners.items()}

    def set_extra_state(self, state: dict) -> None:
        """Take them back."""
        for name, learner in self.learners.items():
            learner.load_state_dict(state[name])
        self.updates = state.get("updates", 0)

    # -- pieces ----------------------------------------------------------------------------

    def _known(self, name: str) -> str:
        if name not in self.learners:
            raise ConfigError(
                f"there is no learner {name!r}: wanted one of {', '.join(self.learners)}; correct order "
                "or phases"
            )
        return name

    def _phase(self, name: str, pretrain: int, spec: Mapping[str, Any]) -> Phase:
        learners = tuple(self._known(learner) for learner in spec["learners"])
        playing, objectives = bool(spec.get("playing", False)), spec.get("objectives")
        if "updates" in spec:
            check_range(f"phases.{name}.updates", spec["updates"], 0)
            updates = int(spec["updates"])
        else:
            check_range(f"phases.{name}.share", spec["share"], 0)
            updates = round(pretrain * spec["share"])
        order: tuple[tuple[str, ...], ...] = (learners,)
        if playing:
            kept = (tuple(one for one in names if one in learners) for names in self.order)
            order = tuple(names for names in kept if names)
        chosen = None if objectives is None else tuple(objectives)
        return Phase(name, updates, order, chosen, bool(spec.get("records", False)), playing)


def _linear_weights(modules: Mapping[str, nn.Module]) -> list[Any]:
    """The weights of linear layers that have a bias."""
    layers = (layer for module in modules.values() for layer in module.modules())
    return [layer.weight for layer in layers if isinstance(layer, nn.Linear) and layer.bias is not None]


def _module(modules: Mapping[str, nn.Module], path: str) -> nn.Module:
    first, _, rest = path.partition(".")
    found: Any = modules.get(first)
    parent, _, leaf = rest.rpartition(".")
    try:
        if leaf and getattr(found.get_submodule(parent), leaf, found) is None:
            return nn.Module()  # a part that is left out, such as a decoder
        return found.get_submodule(rest)
    except AttributeError:
        raise ConfigError(
            f"there is no module {path!r} to train or follow: wanted {', '.join(modules)}, or a part "
            "of one as "
            "world_model.encoder; correct it"
        ) from None


def _parameters(
    modules: Mapping[str, nn.Module], owners: Mapping[str, str], name: str, trains: Sequence[str]
) -> list[nn.Parameter]:
    """Parameters under ``trains`` that no other learner names more closely, in the modules' order."""
    found = []
    for path in trains:
        for inner, parameter in _module(modules, path).named_parameters():
            whole = f"{path}.{inner}"
            nearest = max((owner for owner in owners if whole.startswith(f"{owner}.")), key=len)
            if owners[nearest] == name and nearest == path:
                found.append(parameter)
    if not found:
        raise ConfigError(
            f"learner {name!r} trains nothing: found no parameter in {list(trains)}; correct trains"
        )
    return found


def adam(
    parameters: Any, *, lr: float, eps: float = 1e-8, decay: float = 0.0, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Adam with either kind of decay.

    Args:
        parameters: what it trains.
        lr: learning rate.
        eps: added to the root of the second moment.
        decay: what share weights lose per update, whatever the learning rate (DreamerV2).
        weight_decay: added to the gradient, times the weight (TWM).

    Raises:
        ConfigError: an ``eps`` of zero, with which a weight without gradient becomes NaN.

    >>> type(adam([nn.Parameter(torch.zeros(1))], lr=1e-3)).__name__
    'Adam'
    """
    if not eps > 0:
        raise ConfigError(f"eps of adam is {eps!r}: wanted a number above zero, such as 1e-8; raise it")
    if decay:  # AdamW's is multiplied with the learning rate
        return torch.optim.AdamW(parameters, lr=lr, eps=eps, weight_decay=decay / lr, fused=True)
    return torch.optim.Adam(parameters, lr=lr, eps=eps, weight_decay=weight_decay, fused=True)


def sum_losses(losses: Mapping[str, Loss], groups: Callable[[str], bool]) -> Tensor:
    """Sum of the losses whose group is asked for, detached."""
    values = [loss.value.detach().reshape(()) for loss in losses.values() if groups(loss.group)]
    return torch.stack(values).sum() if values else torch.zeros(())
