"""What the decoder and the heads are trained on: observations, and labels of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wmkit.arguments import check_range
from wmkit.dynamics import Latent, WorldModel
from wmkit.errors import ConfigError
from wmkit.objectives.objective import (
    Objective,
    Scene,
    Score,
    Term,
    decayed,
    episode_ends,
    plain,
    within_episode,
)


class Reconstruction(Objective):
    """A term for every observation that the decoder predicts; it teaches the ``representation``.

    Args:
        weights: by observation key; ``observations`` is that of all which are not named. Null is as if it
            were not there.
        first: leading records that are not decoded.
        ahead: last records that are not.
        ends: whether the last records of episodes are; the released IRIS never stores their frames.
        world_model: what is trained; :meth:`attach` gives it later.

    >>> Reconstruction({"observations": 1.0}, first=1, ahead=1).shortest
    3
    """

    groups = ("representation",)

    def __init__(
        self,
        weights: Mapping[str, float | None],
        *,
        first: int = 0,
        ahead: int = 0,
        ends: bool = True,
        world_model: WorldModel | None = None,
    ) -> None:
        self.first, self.ahead, self.ends = first, ahead, ends
        super().__init__(weights, world_model)
        self.shortest = first + ahead + 1

    def weigh(self, world_model: WorldModel) -> dict[str, float]:
        """``observations`` is written out."""
        usual = self.given.get("observations")
        named = {name: weight for name, weight in self.given.items() if name != "observations"}
        if usual is None:
            return named
        return {key: named.pop(key, usual) for key in self.names(world_model)} | named

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """The decoder's keys."""
        if world_model.decoder is None:
            raise ConfigError(
                "there is nothing to reconstruct: found a world model without a decoder, wanted one; "
                "give it a "
                "decoder or leave Reconstruction out"
            )
        return tuple(world_model.decoder.targets)

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        model, score = scene.world_model, score or plain
        batch = scene.batch
        targets = {key: batch[key] for key in model.decoder.targets}
        if self.first or self.ahead:
            latent = scene.latent_for(model.decoder)
            seen = slice(self.first, latent.state.shape[1] - self.ahead)
            latent = latent.light().map(lambda x: x[:, seen])
            targets = {key: value[:, seen] for key, value in targets.items()}
            predictions = model.decoder.predict(model.read(model.decoder, latent))
        else:
            predictions = scene.decoded
        mask = None
        if not self.ends:
            mask = ~episode_ends(batch)[:, self.first : batch["is_init"].shape[1] - self.ahead, 0]
        return {
            key: Term(score(predictions[key], target), mask, "representation")
            for key, target in targets.items()
        }


class HeadLosses(Objective):
    """A term for every head that is named; it teaches the ``dynamics``.

    Args:
        weights: by head; null is as if it were not there.
        first: leading records that are not scored.
        arrivals: score only records that something led to, not the first of an episode: for heads that read
            the belief alone, before the state is seen (TWM, STORM).
        unrolled: read what is imagined from the first record along the real actions, instead of what is
            observed (TD-MPC2).
        decay: factor on a loss for every record after the first.
        world_model: what is trained; :meth:`attach` gives it later.

    Raises:
        ConfigError: a head that the world model does not have.
    """

    groups = ("dynamics",)

    def __init__(
        self,
        weights: Mapping[str, float | None],
        *,
        first: int = 0,
        arrivals: bool = False,
        unrolled: bool = False,
        decay: float = 1.0,
        world_model: WorldModel | None = None,
    ) -> None:
        check_range("decay", decay, 0, 1)
        self.first, self.arrivals, self.unrolled, self.decay = first, arrivals, unrolled, decay
        super().__init__(weights, world_model)
        self.shortest = first + 1

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """Every head that reads one state."""
        heads: dict[str, Any] = dict(world_model.heads.items())
        return tuple(name for name, head in heads.items() if not world_model.reads_transition(head))

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        model, score = scene.world_model, score or plain
        mask: Any = None
        found: dict[str, Term] = {}
        if self.unrolled:
            latent: Latent = scene.unrolled.latent
            mask = scene.unrolled.unbroken[:, self.first :]
        else:
            latent = scene.observed.latent.light()
        if self.first:
            latent = latent.map(lambda x: x[:, self.first :])
        if self.arrivals:
            within = within_episode(scene, self.first)
            mask = within if mask is None else mask & within
        for name in self.names(model):
            head: Any = model.heads[name]
            label = head.label(scene.batch)
            label = label[:, self.first :] if self.first else label
            value = score(head.predict(model.read(head, latent)), label)
            if self.decay != 1:
                value = decayed(value, self.decay)
            found[name] = Term(value, mask, "dynamics")
        return found
