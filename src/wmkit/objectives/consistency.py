"""What is imagined along real actions agrees with what is seen (TD-MPC2, arXiv:2310.16828, eq. 3)."""

from __future__ import annotations

from collections.abc import Mapping

from wmkit.arguments import check_range
from wmkit.dynamics import WorldModel
from wmkit.errors import ConfigError
from wmkit.objectives.objective import Objective, Scene, Score, Term, decayed


class Consistency(Objective):
    """``consistency``: mean squared error of imagined states beside those that are seen, as constants.

    They are imagined from the first record along the real actions.

    Args:
        weights: of the term.
        decay: factor on the loss for every step after the first (0.5 in TD-MPC2).
        world_model: what is trained; :meth:`attach` gives it later.
    """

    shortest = 2

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        decay: float = 0.5,
        world_model: WorldModel | None = None,
    ) -> None:
        check_range("decay", decay, 0, 1)
        self.decay = decay
        super().__init__(weights, world_model)

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """``consistency``.

        Raises:
            ConfigError: states that look at more than one observation have no targets.
        """
        if not world_model.dynamics.myopic:
            raise ConfigError(
                f"dynamics are {type(world_model.dynamics).__name__}: wanted a posterior of the observation "
                "alone, as TokenDynamics have it; leave consistency out"
            )
        return ("consistency",)

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        found = scene.unrolled
        off = (found.latent.state[:, 1:] - found.seen.state).square().mean(-1)  # [B, T-1]
        return {"consistency": Term(decayed(off, self.decay), found.unbroken[:, 1:], "dynamics")}
