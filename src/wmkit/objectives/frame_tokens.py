"""What a tokenizer of frames and a model of their tokens are trained on (IRIS, arXiv:2209.00588)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.dynamics import WorldModel
from wmkit.objectives.objective import Objective, Scene, Score, Term, episode_ends


class Quantization(Objective):
    """``codebook`` draws rows of the table to the vectors that chose them, ``commitment`` vectors to their
    rows (van den Oord et al. 2017, arXiv:1711.00937, eq. 3; means over all numbers).

    Args:
        weights: of the two terms.
        ends: whether the last records of episodes are scored; the released IRIS never stores their frames.
        world_model: what is trained; :meth:`attach` gives it later. Its latent is a
            :class:`~wmkit.nn.CodebookLatent`.
    """

    groups = ("representation",)

    def __init__(
        self, weights: Mapping[str, float], *, ends: bool = True, world_model: WorldModel | None = None
    ) -> None:
        self.ends = ends
        super().__init__(weights, world_model)

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """The two."""
        return ("codebook", "commitment")

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        seen, latent = scene.represented, scene.world_model.dynamics.latent
        vectors, rows = seen.logits, F.embedding(seen.classes, latent.table)  # [B, T, G, Z]
        mask = None if self.ends else ~episode_ends(scene.batch).squeeze(-1)

        def term(x: Tensor, y: Tensor) -> Term:
            return Term((x - y).square().mean((-2, -1)), mask, "representation")

        return {"codebook": term(vectors.detach(), rows), "commitment": term(vectors, rows.detach())}


class TokenCrossEntropy(Objective):
    """``tokens``: what predicts each token of a frame, scored by the token that came.

    A frame's first token is scored where something led to it, the others in every frame (all as the first
    where they are predicted at once); those of frames that end an episode in none, unless ``ends``.

    Args:
        weights: of ``tokens``.
        ahead: last records that are not scored.
        ends: whether frames that end an episode are scored.
        world_model: what is trained; :meth:`attach` gives it later.
    """

    groups = ("dynamics",)

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        ahead: int = 0,
        ends: bool = False,
        world_model: WorldModel | None = None,
    ) -> None:
        self.ahead, self.ends = ahead, ends
        super().__init__(weights, world_model)
        self.shortest = 2 + ahead

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """``tokens``."""
        return ("tokens",)

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        seen = scene.observed
        classes, logits = seen.latent.classes, seen.prior_logits  # [B, T, G], [B, T, G, C]
        assert classes is not None
        loss = F.cross_entropy(logits.flatten(0, 2).float(), classes.flatten(), reduction="none")
        counts = torch.ones_like(classes, dtype=torch.bool)
        first = slice(None if scene.world_model.dynamics.at_once else 1)  # tokens that a belief predicts
        counts[:, :, first] = ~scene.batch["is_init"].bool()
        if scene.latent is None:
            counts[:, 0, first] = False
        if not self.ends:
            counts &= ~scene.batch["terminated"].bool()
        if self.ahead:
            counts[:, -self.ahead :] = False
        return {"tokens": Term(loss.view_as(classes), counts, "dynamics")}
