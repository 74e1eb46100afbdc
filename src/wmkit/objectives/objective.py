"""The contract of objectives: givers of loss terms, and TorchRL loss modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import LossModule

from wmkit.dynamics import Latent, Observed, WorldModel
from wmkit.dynamics.dynamics import OUT_KEYS
from wmkit.errors import ConfigError
from wmkit.objectives.scene import Scene
from wmkit.objectives.terms import Term, check_weights
from wmkit.plug import Key

Score = Callable[[Any, Tensor], Tensor]


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
            latent = Latent(state, belief)
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


def within_episode(scene: Scene, first: int) -> Tensor:
    """``[B, T - first]`` bool: records that something led to."""
    return ~scene.batch["is_init"][:, first:].squeeze(-1)
