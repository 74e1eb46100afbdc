"""The contract of objectives: what they look at, and the loss terms that they give.

A :class:`Scene` is what everything that learns from a batch looks at: the window, and what the world model
makes of it. A :class:`Term` is a loss: named, per position, weighted and averaged in one place. An
:class:`Objective` turns the one into the other, and is a TorchRL loss module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import LossModule

from wmkit.dynamics import Latent, Observed, WorldModel
from wmkit.dynamics.dynamics import OUT_KEYS
from wmkit.errors import ConfigError
from wmkit.plug import Key

Score = Callable[[Any, Tensor], Tensor]


class Start(NamedTuple):
    """States that imagination may start from.

    Attributes:
        latent: leaves ``[N, ...]``, without gradient.
        mask: ``[N, 1]`` bool, which of them are real.
        continuation: ``[N, 1]`` float, one where the episode goes on after the start.
        restarts: leaves ``[M, ...]``, real states for roll-outs that begin anew; the starts if None.
        before: leaves ``[N, T, ...]``, the states that an actor's own memory has seen, the start last.
        is_init: ``[N, T]`` bool, where among them an episode begins.
    """

    latent: Latent
    mask: Tensor
    continuation: Tensor
    restarts: Latent | None = None
    before: Latent | None = None
    is_init: Tensor | None = None


class Unrolled(NamedTuple):
    """A window ``[B, T]`` imagined from its first record along its real actions.

    Attributes:
        latent: leaves ``[B, T, ...]``; the first is what was seen, the others are expected.
        steps: the same by step, with what each carries.
        seen: leaves ``[B, T-1, ...]``, states of the records after the first as they were seen, constants.
        unbroken: ``[B, T]`` bool, no episode began after the first record.
    """

    latent: Latent
    steps: tuple[Latent, ...]
    seen: Latent
    unbroken: Tensor


class Scene:
    """A window ``[B, T]`` seen by a world model; each thing is computed when it is first asked for.

    Args:
        world_model: with gradients.
        batch: the sequence layout, images as floats in [0, 1].
        latent: state before the window; the initial state if not given.
        observed: what was observed already.
        beside: further windows that an update was given, of the same layout (dreams' own).
        slow: slow copies of modules, by name (:class:`~wmkit.optim.Schedule`).

    Attributes:
        starts: states besides the window's that imagination may start from, left by objectives.
        metrics: detached scalars that objectives add to the log.
    """

    def __init__(
        self,
        world_model: WorldModel,
        batch: Mapping[str, Any],
        latent: Latent | None = None,
        *,
        observed: Observed | None = None,
        beside: Mapping[str, Any] | None = None,
        slow: Mapping[str, Any] | None = None,
    ) -> None:
        self.world_model, self.batch, self.latent, self.beside = world_model, batch, latent, beside
        self.slow = dict(slow or {})
        self.starts: list[Start] = []
        self.metrics: dict[str, Tensor] = {}
        self._embed: Tensor | None = None
        self._represented: Any = None
        self._observed = observed
        self._unrolled: Unrolled | None = None
        self._decoded: dict[Any, Any] | None = None

    @property
    def decoded(self) -> dict[Any, Any]:
        """What the decoder predicts of each observation of the window."""
        if self._decoded is None:
            decoder = self.world_model.decoder
            self._decoded = decoder.predict(self.world_model.read(decoder, self.latent_for(decoder)))
        return self._decoded

    @property
    def represented(self) -> Any:
        """Posterior of each observation alone; only of a model whose posterior is myopic."""
        if self._represented is None:
            self._represented = self.world_model.dynamics.represent(self.embed)
        return self._represented

    @property
    def observed(self) -> Observed:
        """Posterior over the window."""
        if self._observed is None:
            model, beside = self.world_model, {}
            if model.dynamics.myopic:
                beside["represented"] = self.represented
            self._observed = model.dynamics.observe(
                self.embed, model.record(self.batch), self.latent, **beside
            )
        return self._observed

    @property
    def unrolled(self) -> Unrolled:
        """The window imagined from its first record along its real actions, with gradient."""
        if self._unrolled is None:
            model, record = self.world_model, self.world_model.record(self.batch)
            first, later = (
                {key: value[:, part] for key, value in self.batch.items()}
                for part in (slice(1), slice(1, None))
            )
            steps = [model.observe(first, self.latent).last]
            with torch.no_grad():
                seen = model.dynamics.represent(model.encoder.encode(later))
            loop = model.bind()
            for action in record["previous_action"][:, 1:].unbind(1):
                steps.append(loop.step(steps[-1], action))
            stacked = Latent.stack([step.light() for step in steps], 1)
            begun = record["is_init"].clone()
            begun[:, 0] = False
            unbroken = begun.cumsum(1) == 0
            targets = Latent(seen.state, stacked.belief[:, 1:].detach(), None, seen.classes)
            self._unrolled = Unrolled(stacked, tuple(steps), targets, unbroken)
        return self._unrolled

    @property
    def posterior_logits(self) -> Tensor:
        """``[B, T, G, C]``; does not run the sequence model of a myopic posterior."""
        if self._observed is None and self.world_model.dynamics.myopic:
            return self.represented.logits
        return self.observed.posterior_logits

    def latent_for(self, part: Any) -> Latent:
        """What a part reads ``[B, T, ...]``; one that reads states alone needs no sequence model."""
        model = self.world_model
        if self._observed is None and model.dynamics.myopic:
            fields = {model.dynamics.fields.get(key) for key in part.in_keys}
            if fields == {"state"}:
                seen = self.represented
                return Latent(seen.state, seen.state[..., :0], None, seen.classes)
        return self.observed.latent

    @property
    def embed(self) -> Tensor:
        """Embeddings ``[B, T, E]``."""
        if self._embed is None:
            self._embed = self.world_model.encoder.encode(self.batch)
        return self._embed


def episode_ends(batch: Mapping[str, Tensor]) -> Tensor:
    """Which records ``[B, T, 1]`` of a window are the last of their episode, abandoned ones included.

    >>> no, first = torch.zeros(1, 3, 1, dtype=torch.bool), torch.tensor([[[0], [1], [0]]]).bool()
    >>> episode_ends({"is_init": first, "terminated": no}).flatten().tolist()
    [True, False, False]
    """
    terminated, is_init = batch["terminated"].bool(), batch["is_init"].bool()
    before_first = torch.cat([is_init[:, 1:], torch.zeros_like(is_init[:, :1])], 1)
    last = terminated | before_first
    return last | batch["done"].bool() if "done" in batch else last


class Term(NamedTuple):
    """One named loss before reduction.

    Attributes:
        value: one loss per position, any shape.
        mask: which positions count (broadcastable to ``value``); all of them if ``None``.
        group: whom it teaches: a learner takes the terms of the groups that it learns from.
        positions: over how many positions the loss is a mean; over those that count if ``None``.
    """

    value: Tensor
    mask: Tensor | None = None
    group: str = "dynamics"
    positions: Tensor | float | None = None

    @property
    def total(self) -> Tensor:
        """Sum over the positions that count; masked positions have exactly no gradient.

        >>> Term(torch.tensor([1.0, float("nan")]), torch.tensor([True, False])).total
        tensor(1.)
        """
        if self.mask is None:
            return self.value.sum()
        return torch.where(self.mask, self.value, 0.0).sum()

    @property
    def mean(self) -> Tensor:
        """Mean over the positions that count; zero if there are none."""
        if self.mask is None:
            return self.value.mean()
        return self.total / self.mask.sum().clamp(min=1)

    @property
    def loss(self) -> Tensor:
        """What is minimised: :attr:`mean`, or the sum divided by :attr:`positions`."""
        return self.mean if self.positions is None else self.total / self.positions


def check_weights(terms: Iterable[str], weights: Mapping[str, float]) -> None:
    """Raise :class:`ConfigError` unless every term has a weight and every weight a term.

    >>> check_weights(["reward"], {"rewrd": 1.0})
    Traceback (most recent call last):
    wmkit.errors.ConfigError: weights do not match the terms: 'rewrd' has a weight but no term, 'reward' a
    term but \
no weight; name exactly reward
    """
    extra, missing = sorted(set(weights) - set(terms)), sorted(set(terms) - set(weights))
    if extra or missing:
        found = [f"{name!r} has a weight but no term" for name in extra]
        found += [f"{name!r} {'has ' if not found else ''}a term but no weight" for name in missing]
        raise ConfigError(
            f"weights do not match the terms: {', '.join(found)}; name exactly {', '.join(terms) or 'none'}"
        )


class Objective(LossModule):
    """Base of all objectives: what a world model is trained on.

    A subclass implements :meth:`names` and :meth:`terms`. A system calls these; as a TorchRL loss module an
    objective is called with a TensorDict ``[B, T]`` in the sequence layout and gives ``loss_NAME``, weighted,
    for each term. Where the window was observed before (``state``, ``belief`` and the logits are there), that
    is scored; otherwise the world model observes it. Its parameters stay the world model's own: an optimiser
    is made of ``world_model.parameters()``.

    Args:
        weights: one factor per term.
        world_model: what is trained; :meth:`attach` gives it later.

    Attributes:
        shortest: the fewest records of a window that can be scored.
        groups: of its terms, where all teach the same learners; empty where that is not known.
    """

    @dataclass
    class _AcceptedKeys:
        state: NestedKey = "state"
        belief: NestedKey = "belief"
        posterior_logits: NestedKey = "posterior_logits"
        prior_logits: NestedKey = "prior_logits"

    default_keys = _AcceptedKeys
    tensor_keys: Any
    shortest = 1
    groups: tuple[str, ...] = ()

    def __init__(self, weights: Mapping[str, float | None], world_model: WorldModel | None = None) -> None:
        super().__init__()
        self.given = {name: float(weight) for name, weight in weights.items() if weight is not None}
        self.weights: dict[str, float] = {}
        if world_model is not None:
            self.attach(world_model)

    def attach(self, world_model: WorldModel) -> Objective:
        """Score this world model, read and not owned; what it writes is found under its names.

        Raises:
            ConfigError: weights that do not match the terms.
        """
        self.__dict__["world_model"] = world_model
        self.weights = self.weigh(world_model)
        check_weights(self.names(world_model), self.weights)
        self.set_keys(**dict(zip(OUT_KEYS, world_model.dynamics.out_keys, strict=True)))
        return self

    def weigh(self, world_model: WorldModel) -> dict[str, float]:
        """The weight of each term."""
        return dict(self.given)

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """Names of the terms."""
        raise NotImplementedError

    def batch_keys(self, shapes: Mapping[str, Sequence[int]]) -> dict[Any, Key]:
        """Batch keys needed beyond what the world model reads; ``shapes`` are those of observations."""
        return {}

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """Loss terms of a window, each ``[B, T']``.

        Args:
            scene: the window and what the world model makes of it.
            score: of a prediction and its target; the prediction's own ``loss`` if not given.
        """
        raise NotImplementedError

    # -- as a TorchRL loss -----------------------------------------------------------------

    @property
    def functional(self) -> bool:
        """Parameters stay in their modules."""
        return False

    @property
    def in_keys(self) -> list[Any]:
        """What the world model reads."""
        model = self._model()
        return [
            *model.encoder.in_keys,
            *(k for k in model.dynamics.in_keys if k not in model.encoder.out_keys),
        ]

    @in_keys.setter
    def in_keys(self, keys: Any) -> None:
        """Follows from the world model."""

    @property
    def out_keys(self) -> list[Any]:
        """``loss_NAME`` for each term."""
        return [f"loss_{name}" for name in self.names(self._model())]

    @out_keys.setter
    def out_keys(self, keys: Any) -> None:
        """Follows from the terms."""

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        """There is no value here."""

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Weighted losses of a window ``[B, T]``, and detached ``metric_NAME`` scalars."""
        model, keys = self._model(), self.tensor_keys
        values = [tensordict.get(getattr(keys, name), None) for name in OUT_KEYS]
        observed = None
        if all(value is not None for value in values):
            state, belief, posterior, prior = values
            latent = Latent(state, belief, None, model.dynamics.latent.classes_of(state))
            observed = Observed(latent, posterior, prior, latent.map(lambda x: x[:, -1]))
        scene = Scene(model, tensordict, observed=observed)
        losses = {f"loss_{name}": self.weights[name] * term.loss for name, term in self.terms(scene).items()}
        metrics = {f"metric_{name}": value.detach() for name, value in scene.metrics.items()}
        return TensorDict({**losses, **metrics})

    def _model(self) -> WorldModel:
        model = self.__dict__.get("world_model")
        if model is None:
            raise ConfigError(
                f"{type(self).__name__} has no world model: found none, wanted the one to score; give "
                "world_model= "
                "or call attach(world_model)"
            )
        return model


def plain(prediction: Any, target: Tensor) -> Tensor:
    """The prediction's own loss."""
    return prediction.loss(target)


def decayed(value: Tensor, factor: float) -> Tensor:
    """Losses ``[B, T]``, each multiplied by ``factor`` for every step before it.

    >>> decayed(torch.ones(1, 3), 0.5)
    tensor([[1.0000, 0.5000, 0.2500]])
    """
    return value * factor ** torch.arange(value.shape[1], device=value.device)


def within_episode(scene: Scene, first: int) -> Tensor:
    """``[B, T - first]`` bool: records that something led to."""
    return ~scene.batch["is_init"][:, first:].squeeze(-1)
