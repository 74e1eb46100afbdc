"""Terms over embeddings alone: how well the next one is predicted, and what keeps all of them apart.

An *embedding* is what the posterior says of an observation: its statistics, laid flat. Of a model with a
deterministic latent (:class:`~wmkit.nn.DeterministicLatent`) that is the state.

=============================  ==============  ==============  ==================  ====================
objective                      LeWorldModel    PLDM            stable-worldmodel's  eb_jepa, two rooms
                                                               port of PLDM
=============================  ==============  ==============  ==================  ====================
:class:`LatentPrediction`      1               -               1                   -
:class:`OpenLoopPrediction`    -               1               -                   1
:class:`SIGReg`                0.09            -               -                   -
:class:`VarianceCovariance`    -               ``first``,      ``each``,           ``all``
                                               ``own``         ``batch``
=============================  ==============  ==============  ==================  ====================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from wmkit.arguments import check_range
from wmkit.dynamics import WorldModel
from wmkit.errors import ConfigError
from wmkit.functional import covariance_penalty, sigreg, variance_hinge
from wmkit.objectives.objective import Objective, Scene, Score, Term, within_episode

Targets = Literal["own", "constant", "slow"]
Distance = Literal["squared", "absolute"]


class LatentPrediction(Objective):
    """``prediction``: how far the embedding that was expected is from the one that came.

    LeWorldModel (2026; lucas-maes/le-wm): a mean squared error whose targets are not constant.

    Args:
        weights: of ``prediction``.
        targets: the model's ``own`` embeddings, those as a ``constant``, or those of the ``slow`` copies of
            encoder and posterior, which the schedule names ``world_model.encoder`` and
            ``world_model.dynamics.posterior``.
        distance: ``squared`` or ``absolute``, the mean over the numbers of an embedding.
        world_model: what is trained; :meth:`attach` gives it later.

    Raises:
        ConfigError: other targets or another distance.
    """

    shortest = 2

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        targets: Targets = "own",
        distance: Distance = "squared",
        world_model: WorldModel | None = None,
    ) -> None:
        check_choice("targets", targets, ("own", "constant", "slow"))
        check_choice("distance", distance, ("squared", "absolute"))
        self.targets, self.distance = targets, distance
        super().__init__(weights, world_model)

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """``prediction``."""
        return ("prediction",)

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        expected = scene.observed.prior_logits[:, 1:]
        value = self.error(expected.flatten(2), self.target(scene)[:, 1:])
        return {"prediction": Term(value, within_episode(scene, 1), "dynamics")}

    def target(self, scene: Scene) -> Tensor:
        """What is to be predicted, ``[B, T, D]``."""
        if self.targets == "slow":
            return slow_embedding(scene)
        found = embedding(scene)
        return found if self.targets == "own" else found.detach()

    def error(self, expected: Tensor, found: Tensor) -> Tensor:
        """``[*B, D]`` twice to ``[*B]``."""
        difference = expected - found
        return (difference.square() if self.distance == "squared" else difference.abs()).mean(-1)


class OpenLoopPrediction(LatentPrediction):
    """``prediction`` of a whole window from its first state and the real actions alone.

    PLDM (arXiv:2502.14819; vladisai/PLDM) and TD-MPC2 (arXiv:2310.16828) learn so: errors add up as in a
    plan. Where an episode begins the roll-out begins anew with it.

    Args:
        weights: of ``prediction``.
        decay: of a step's weight from step to step, 0.5 in TD-MPC2.
        targets: see :class:`LatentPrediction`.
        distance: see :class:`LatentPrediction`.
        world_model: what is trained; :meth:`attach` gives it later.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        decay: float = 1.0,
        targets: Targets = "own",
        distance: Distance = "squared",
        world_model: WorldModel | None = None,
    ) -> None:
        check_range("decay", decay, 0, 1)
        self.decay = decay
        super().__init__(weights, targets=targets, distance=distance, world_model=world_model)

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        model, seen = scene.world_model, scene.observed.latent.light()
        steps, first = model.bind(), scene.batch["is_init"].squeeze(-1)
        latent, expected = seen.map(lambda x: x[:, 0]), []
        actions = scene.batch["previous_action"].float()
        for t in range(1, actions.shape[1]):
            latent = steps.step(latent, actions[:, t])
            expected.append(model.dynamics.prior_logits(latent.belief))
            here = seen.map(lambda x, t=t: x[:, t])  # type: ignore[misc]
            latent = model.dynamics.restart(latent, first[:, t], here)
        value = self.error(torch.stack(expected, 1).flatten(2), self.target(scene)[:, 1:])
        if self.decay != 1:
            powers = torch.arange(value.shape[1], device=value.device)
            value = value * self.decay**powers
        return {"prediction": Term(value, within_episode(scene, 1), "dynamics")}


class SIGReg(Objective):
    """``sigreg``: embeddings are drawn to a standard normal (LeJEPA, arXiv:2511.08544).

    Args:
        weights: of ``sigreg``, 0.09 in LeWorldModel.
        directions: random directions M that embeddings are looked at from, drawn anew each time.
        nodes: of the integral, see :func:`~wmkit.functional.sigreg`.
        limit: of the integral.
        per: embeddings of one ``frame`` are a set, or all of a ``window`` are.
        reads: ``state``, the embedding as the posterior has it, or ``embed``, as the encoder has it.
        world_model: what is trained; :meth:`attach` gives it later.

    Raises:
        ConfigError: an unknown ``per`` or ``reads``, or no direction.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        directions: int = 1024,
        nodes: int = 17,
        limit: float = 3.0,
        per: Literal["frame", "window"] = "frame",
        reads: Literal["state", "embed"] = "state",
        world_model: WorldModel | None = None,
    ) -> None:
        check_range("directions", directions, 1)
        check_range("nodes", nodes, 2)
        check_choice("per", per, ("frame", "window"))
        check_choice("reads", reads, ("state", "embed"))
        self.directions, self.nodes, self.limit, self.per, self.reads = directions, nodes, limit, per, reads
        super().__init__(weights, world_model)

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """``sigreg``."""
        return ("sigreg",)

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        z = (embedding(scene) if self.reads == "state" else scene.embed).float()
        z = z.transpose(0, 1) if self.per == "frame" else z.flatten(0, 1)  # [T, B, D] or [B * T, D]
        value = sigreg(z, self.drawn(z), nodes=self.nodes, limit=self.limit)
        return {"sigreg": Term(value, None, "representation")}

    def drawn(self, z: Tensor) -> Tensor:
        """Directions ``[D, M]`` for embeddings ``[*B, D]``."""
        return torch.randn(z.shape[-1], self.directions, device=z.device)


class VarianceCovariance(Objective):
    """Embeddings spread and do not repeat each other, over a batch and over time; they move little.

    ``variance`` and ``covariance`` are VICReg's over a batch (arXiv:2105.04906), ``variance_time`` and
    ``covariance_time`` over a window, ``smoothness`` is the mean squared step (PLDM, arXiv:2502.14819).

    Args:
        weights: of those terms that are wanted.
        frames: a batch is that of the ``first`` frame (PLDM), of ``each`` frame in turn, or of ``all``.
        time: over time, each sequence is taken from its ``own`` mean, first frame left out (PLDM), or from
            that of the ``batch``.
        world_model: what is trained; :meth:`attach` gives it later.

    Raises:
        ConfigError: a weight of another term, or unknown ``frames`` or ``time``.

    >>> from wmkit.objectives import VarianceCovariance
    >>> objective = VarianceCovariance({"variance": 1.0, "smoothness": 0.5})
    >>> {name: round(term.loss.item(), 4) for name, term in objective.of(torch.zeros(4, 3, 2)).items()}
    {'variance': 0.99, 'smoothness': 0.0}
    """

    known = ("variance", "covariance", "variance_time", "covariance_time", "smoothness")

    def __init__(
        self,
        weights: Mapping[str, float | None],
        *,
        frames: Literal["first", "each", "all"] = "each",
        time: Literal["own", "batch"] = "own",
        world_model: WorldModel | None = None,
    ) -> None:
        check_choice("frames", frames, ("first", "each", "all"))
        check_choice("time", time, ("own", "batch"))
        self.frames, self.time = frames, time
        super().__init__(weights, world_model)
        if any(name.endswith("_time") for name in self.given):
            self.shortest = 3
        elif "smoothness" in self.given:
            self.shortest = 2

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """Those that have a weight."""
        return tuple(name for name in self.known if name in self.given)

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        return self.of(embedding(scene), within_episode(scene, 1))

    def of(self, z: Tensor, within: Tensor | None = None) -> dict[str, Term]:
        """Terms of embeddings ``[B, T, D]``; ``within [B, T-1]`` are the steps inside of an episode."""
        sets = {"first": z[:, :1], "each": z, "all": z.flatten(0, 1).unsqueeze(1)}[self.frames].transpose(
            0, 1
        )
        own = self.time == "own"
        moved = z[:, 1:] if own else z - z.mean(0)
        found = {
            "variance": lambda: variance_hinge(sets, 1),
            "covariance": lambda: covariance_penalty(sets),
            "variance_time": lambda: variance_hinge(moved, 1),
            "covariance_time": lambda: covariance_penalty(moved, centred=not own),
            "smoothness": lambda: (z[:, 1:] - z[:, :-1]).square().mean(-1),
        }
        masks = {"smoothness": within}
        return {
            name: Term(found[name](), masks.get(name), "representation")
            for name in self.known
            if name in self.given
        }


def embedding(scene: Scene) -> Tensor:
    """What the posterior says of each observation, flat: ``[B, T, D]``."""
    return scene.posterior_logits.flatten(2)


def slow_embedding(scene: Scene) -> Tensor:
    """The same by the slow copies of encoder and posterior, without gradient: ``[B, T, D]``.

    Raises:
        ConfigError: there are no such copies, or the posterior needs more than an observation.
    """
    wanted = ("world_model_encoder", "world_model_dynamics_posterior")
    dynamics = scene.world_model.dynamics
    if not dynamics.myopic or any(name not in scene.slow for name in wanted):
        raise ConfigError(
            f"a slow teacher has no copies to ask: found slow copies of {', '.join(scene.slow) or 'nothing'}"
            ", wanted those of world_model.encoder and world_model.dynamics.posterior of a model whose "
            "posterior reads observations alone; name them in schedule.slow"
        )
    encoder, posterior = (scene.slow[name] for name in wanted)
    with torch.no_grad():
        return dynamics.latent.statistics(posterior(encoder.encode(scene.batch))).flatten(2)


def check_choice(name: str, found: str, wanted: tuple[str, ...]) -> None:
    """Raise :class:`ConfigError` unless ``found`` is one of those wanted."""
    if found not in wanted:
        raise ConfigError(f"{name} is {found!r}: wanted one of {', '.join(wanted)}; correct {name}")
