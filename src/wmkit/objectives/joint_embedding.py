"""A world model without a decoder: what it makes of a step is compared with the step's embedding.

Each of these looks at the model's states through a projection of its own, which is trained with the model and
kept in ``world_model.projections``.

=========================  ==========================  ============================  ======================
objective                  one view                    the other                     from
=========================  ==========================  ============================  ======================
:class:`BarlowTwins`       state and belief            the embedding, constant       R2-Dreamer
:class:`VICReg`            state and belief            the embedding                 VICReg
:class:`MaskedTeacher`     state and belief of a       the slow encoder's embedding  I-JEPA, V-JEPA
                           window with hidden blocks   of the whole window
:class:`InverseDynamics`   two states in a row         the action between them       PLDM
=========================  ==========================  ============================  ======================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.nn import functional as F

from wmkit.arguments import check_range
from wmkit.dynamics import Latent, WorldModel
from wmkit.errors import ConfigError
from wmkit.functional import covariance_penalty, cross_correlation, variance_hinge
from wmkit.nn import MLP, STYLE_2024, LayerStyle
from wmkit.objectives.objective import Objective, Scene, Score, Term, within_episode
from wmkit.plug import as_keys

Projector = Callable[[int, int], nn.Module]
LINEAR: Any = partial(MLP, layers=0, style=STYLE_2024)
PLAIN = LayerStyle(norm="none", activation="relu", bias=True, init="default")


class _Projected(Objective):
    """Base of objectives that read states through a projection."""

    def __init__(
        self,
        weights: Mapping[str, float],
        in_keys: Sequence[NestedKey],
        projector: Projector,
        world_model: WorldModel | None,
    ) -> None:
        self.reader, self.projector = _Reader(as_keys(in_keys)), projector
        super().__init__(weights, world_model)

    def projection(self, world_model: WorldModel, name: str, in_dim: int, out_dim: int) -> nn.Module:
        """The module of that name, made when it is not there yet."""
        return world_model.project(name, lambda: self.projector(in_dim, out_dim))

    def width(self, world_model: WorldModel) -> int:
        """Width of what is read."""
        return world_model.width(partial(_Reader, in_keys=self.reader.in_keys), type(self).__name__)

    def look(self, world_model: WorldModel, name: str, latent: Latent) -> Tensor:
        """What a projection makes of a latent, leaves ``[*B, ...]``."""
        return world_model.projections[name](world_model.read(self.reader, latent.light()).dense)


class _Reader:
    """What :meth:`WorldModel.read <wmkit.dynamics.WorldModel.read>` asks of a part."""

    def __init__(self, in_keys: Sequence[NestedKey]) -> None:
        self.in_keys = in_keys


class BarlowTwins(_Projected):
    """``barlow``: the projected state and the embedding vary together, number by number, and not otherwise.

    R2-Dreamer (ICLR 2026; NM512/r2dreamer): in place of reconstruction, with a linear projection, over all
    records of a batch; the embedding is a constant, so that the encoder learns through the posterior.

    Args:
        weights: of ``barlow``, 0.05 in R2-Dreamer.
        off_diagonal: λ of :func:`~wmkit.functional.cross_correlation`.
        in_keys: what is projected; ``["state"]`` for a state that knows nothing of its history (STORM).
        projector: called as ``projector(width, embed_dim)``.
        world_model: what is trained; :meth:`attach` gives it later.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        off_diagonal: float = 5e-4,
        in_keys: Sequence[NestedKey] = ("state", "belief"),
        projector: Projector = LINEAR,
        world_model: WorldModel | None = None,
    ) -> None:
        check_range("off_diagonal", off_diagonal, 0)
        self.off_diagonal = off_diagonal
        super().__init__(weights, in_keys, projector, world_model)

    def attach(self, world_model: WorldModel) -> Objective:
        """See :meth:`Objective.attach <wmkit.objectives.Objective.attach>`; adds the projection."""
        self.projection(world_model, "barlow", self.width(world_model), world_model.encoder.out_dim)
        return super().attach(world_model)

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """``barlow``."""
        return ("barlow",)

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        seen = self.look(scene.world_model, "barlow", scene.latent_for(self.reader))
        target = scene.embed.detach()
        value = cross_correlation(seen.flatten(0, 1).float(), target.flatten(0, 1).float(), self.off_diagonal)
        return {"barlow": Term(value, None, "representation")}


class VICReg(_Projected):
    """``invariance``, ``variance`` and ``covariance`` of two views (arXiv:2105.04906).

    The views are the projected state and the projected embedding; gradients reach both. Variance and
    covariance are summed over the two, covariance as :func:`~wmkit.functional.covariance_penalty` has it.

    Args:
        weights: of the three, 25, 25 and 1 as published.
        width: of the projections.
        in_keys: what is projected beside the embedding.
        projector: called as ``projector(in_dim, width)``.
        world_model: what is trained; :meth:`attach` gives it later.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        width: int = 256,
        in_keys: Sequence[NestedKey] = ("state", "belief"),
        projector: Projector = LINEAR,
        world_model: WorldModel | None = None,
    ) -> None:
        check_range("width", width, 2)
        self.out_dim = width
        super().__init__(weights, in_keys, projector, world_model)

    def attach(self, world_model: WorldModel) -> Objective:
        """See :meth:`Objective.attach <wmkit.objectives.Objective.attach>`; adds the projections."""
        self.projection(world_model, "vicreg", self.width(world_model), self.out_dim)
        self.projection(world_model, "vicreg_embed", world_model.encoder.out_dim, self.out_dim)
        return super().attach(world_model)

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """The three."""
        return ("invariance", "variance", "covariance")

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        model = scene.world_model
        seen = self.look(model, "vicreg", scene.latent_for(self.reader))
        return self.of(seen, model.projections["vicreg_embed"](scene.embed))

    def of(self, one: Tensor, other: Tensor) -> dict[str, Term]:
        """Terms of two views ``[*B, D]``."""
        views = [x.flatten(0, -2).float() for x in (one, other)]
        found = {
            "invariance": (views[0] - views[1]).square().mean(-1),
            "variance": sum(variance_hinge(x) for x in views),
            "covariance": sum(covariance_penalty(x) for x in views),
        }
        return {name: Term(value, None, "representation") for name, value in found.items()}  # type: ignore[arg-type]


class MaskedTeacher(_Projected):
    """``teacher``: what a model makes of a window with hidden blocks, against a slow encoder that sees all.

    The teacher's embedding is normalised without affine, as V-JEPA does (arXiv:2404.08471), and the slow copy
    of the encoder (``schedule.slow.world_model.encoder``) follows as in I-JEPA (arXiv:2301.08243), whose
    blocks these are. One window has one mask, in all of its frames. Numbers are shown.

    Args:
        weights: of ``teacher``.
        blocks: how many are hidden.
        area: least and most share of a picture that one covers.
        aspect: least and most height for its width.
        in_keys: what is projected.
        projector: called as ``projector(width, embed_dim)``.
        world_model: what is trained; :meth:`attach` gives it later.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        blocks: int = 4,
        area: Sequence[float] = (0.15, 0.2),
        aspect: Sequence[float] = (0.75, 1.5),
        in_keys: Sequence[NestedKey] = ("state", "belief"),
        projector: Projector = LINEAR,
        world_model: WorldModel | None = None,
    ) -> None:
        check_range("blocks", blocks, 0)
        check_range("area", area[0], 0, 1)
        check_range("area", area[1], area[0], 1)
        self.blocks, self.area, self.aspect = blocks, tuple(area), tuple(aspect)
        super().__init__(weights, in_keys, projector, world_model)

    def attach(self, world_model: WorldModel) -> Objective:
        """See :meth:`Objective.attach <wmkit.objectives.Objective.attach>`; adds the projection."""
        self.projection(world_model, "teacher", self.width(world_model), world_model.encoder.out_dim)
        return super().attach(world_model)

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """``teacher``."""
        return ("teacher",)

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        if "world_model_encoder" not in scene.slow:
            raise ConfigError(
                f"MaskedTeacher has no teacher: found slow copies of {', '.join(scene.slow) or 'nothing'}, "
                "wanted one of world_model.encoder; name it in schedule.slow"
            )
        model, batch = scene.world_model, dict(scene.batch)
        for key in model.encoder.images:
            image = batch[key]
            rows, (height, width) = len(image), image.shape[-2:]
            hidden = block_masks(rows, height, width, self.blocks, self.area, self.aspect, image.device)
            batch[key] = image.masked_fill(hidden[:, None, None], 0)
        with torch.no_grad():
            target = scene.slow["world_model_encoder"].encode(scene.batch)
            target = F.layer_norm(target, target.shape[-1:])
        seen = model.observe(batch, scene.latent).latent
        value = (self.look(model, "teacher", seen) - target).abs().mean(-1)
        return {"teacher": Term(value, None, "representation")}


class InverseDynamics(_Projected):
    """``inverse_dynamics``: the action, of the two states that it lies between (PLDM, arXiv:2502.14819).

    A mean squared error. Without it a model may keep what never moves, such as where walls are, and nothing
    of the agent.

    Args:
        weights: of ``inverse_dynamics``.
        units: width of the hidden layer.
        world_model: what is trained; :meth:`attach` gives it later.
    """

    shortest = 2

    def __init__(
        self, weights: Mapping[str, float], *, units: int = 512, world_model: WorldModel | None = None
    ) -> None:
        projector: Any = partial(MLP, units=units, layers=1, style=PLAIN)
        super().__init__(weights, ("state",), projector, world_model)

    def attach(self, world_model: WorldModel) -> Objective:
        """See :meth:`Objective.attach <wmkit.objectives.Objective.attach>`; adds the projection."""
        dynamics = world_model.dynamics
        self.projection(world_model, "inverse_dynamics", 2 * dynamics.state_dim, dynamics.action_dim)
        return super().attach(world_model)

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """``inverse_dynamics``."""
        return ("inverse_dynamics",)

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        state = scene.latent_for(self.reader).state
        pair = torch.cat([state[:, :-1], state[:, 1:]], -1)
        error = (
            scene.world_model.projections["inverse_dynamics"](pair) - scene.batch["previous_action"][:, 1:]
        )
        value = error.square().mean(-1)
        return {"inverse_dynamics": Term(value, within_episode(scene, 1), "representation")}


def block_masks(
    rows: int,
    height: int,
    width: int,
    blocks: int,
    area: Sequence[float],
    aspect: Sequence[float],
    device: torch.device | None = None,
) -> Tensor:
    """Where pictures are hidden by blocks of random size and place (I-JEPA, arXiv:2301.08243).

    Args:
        rows: masks.
        height: of a picture.
        width: of a picture.
        blocks: in each.
        area: least and most share of a picture that one block covers.
        aspect: least and most height for its width.
        device: where masks are wanted.

    Returns:
        ``[rows, height, width]`` bool.

    >>> block_masks(2, 8, 8, 1, (0.25, 0.25), (1.0, 1.0)).sum((1, 2))
    tensor([16, 16])
    """
    drawn = torch.rand(4, rows, blocks, 1, device=device)
    share = area[0] + (area[1] - area[0]) * drawn[0]
    ratio = aspect[0] + (aspect[1] - aspect[0]) * drawn[1]
    hidden = []
    for side, part, place in (
        (height, (share * ratio).sqrt(), drawn[2]),
        (width, (share / ratio).sqrt(), drawn[3]),
    ):
        size = (part * side).round().clamp(max=side)
        first = (place * (side - size + 1)).floor()
        at = torch.arange(side, device=device)
        hidden.append((at >= first) & (at < first + size))  # [rows, blocks, side]
    return (hidden[0].unsqueeze(-1) & hidden[1].unsqueeze(-2)).any(1)
