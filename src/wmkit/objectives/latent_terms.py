"""How prior and posterior are pulled together, and how the posterior is kept open."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from wmkit.arguments import check_range
from wmkit.dynamics import WorldModel
from wmkit.errors import ConfigError
from wmkit.functional import categorical_kl, categorical_kl_logits, gaussian_kl, unimix_probs, widened
from wmkit.objectives.objective import Objective, Scene, Score, Term, episode_ends, within_episode

Divergence = Callable[[Tensor, Tensor], Tensor]
TEACHERS = ("prior", "posterior")


class KLBalance(Objective):
    """Two KL terms, ``kl_dynamics`` trains the prior and ``kl_representation`` the posterior.

    ====================  =============================  ===========  =========
    system                free nats                      ``unimix``   ``first``
    ====================  =============================  ===========  =========
    DreamerV3             at each position               0.01         0
    DreamerV2             on the mean over the batch, 0  0            0
    STORM                 on the mean over the batch     0.01         1
    TransDreamer          on the mean over the batch, 0  0            1
    ====================  =============================  ===========  =========

    DreamerV3 (arXiv:2301.04104, eq. 5), DreamerV2 (arXiv:2010.02193, section 2.2), STORM (arXiv:2310.09615,
    eq. 5). The 0.8 / 0.2 balance of DreamerV2 is set in the weights.

    Args:
        weights: of the two terms.
        free_nats: below this a term has no gradient.
        free: whether that is asked of each ``"position"``, or of the ``"mean"`` over the batch.
        unimix: share of the uniform in both distributions.
        divergence: statistics of posterior and prior to their KL ``[*B]``; of categoricals if not given.
        first: leading records that are not scored.
        world_model: what is trained; :meth:`attach` gives it later.

    Raises:
        ConfigError: an unknown ``free``, or ``unimix`` outside [0, 1).

    >>> p, q = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)
    >>> KLBalance({}, free_nats=1.0, unimix=0.01).of(p, q)["kl_dynamics"].value
    tensor([[1.]])
    """

    pair: ClassVar[tuple[str, ...]] = ("kl_dynamics", "kl_representation")

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        free_nats: float = 1.0,
        free: Literal["position", "mean"] = "position",
        unimix: float = 0.0,
        divergence: Divergence | None = None,
        first: int = 0,
        world_model: WorldModel | None = None,
    ) -> None:
        check_range("unimix", unimix, 0, 1, open_end=True)
        if free not in ("position", "mean"):
            raise ConfigError(f"free is {free!r}: wanted position or mean; correct free")
        self.free_nats, self.free, self.unimix, self.first = free_nats, free, unimix, first
        self.divergence = divergence or (categorical_kl if unimix else categorical_kl_logits)
        super().__init__(weights, world_model)
        self.shortest = first + 1

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """The two."""
        return self.pair

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        return self.of(scene.observed.posterior_logits, scene.observed.prior_logits)

    def of(self, posterior: Tensor, prior: Tensor) -> dict[str, Term]:
        """Terms ``[*B]`` of statistics ``[*B, G, C]``."""
        if self.first:
            posterior, prior = posterior[:, self.first :], prior[:, self.first :]
        if self.unimix:
            posterior, prior = (unimix_probs(x, self.unimix) for x in (posterior, prior))
        dynamics = self._free(self.divergence(posterior.detach(), prior))
        representation = self._free(self.divergence(posterior, prior.detach()))
        return {
            "kl_dynamics": Term(dynamics, None, "dynamics"),
            "kl_representation": Term(representation, None, "representation"),
        }

    def _free(self, value: Tensor) -> Tensor:
        return free_mean(value, self.free_nats) if self.free == "mean" else value.clamp(min=self.free_nats)


class KL(Objective):
    """One term that pulls posterior and prior towards each other (DreamerV1, arXiv:1912.01603).

    Args:
        weights: of ``kl``.
        free_nats: while the mean over the batch is below this, the term has no gradient.
        divergence: statistics of posterior and prior to their KL ``[*B]``.
        world_model: what is trained; :meth:`attach` gives it later.

    >>> p = torch.tensor([[[[0.0], [1.0]], [[4.0], [1.0]]]])  # means 0 and 4, the second 8 nats away
    >>> q = torch.tensor([[[[0.0], [1.0]], [[0.0], [1.0]]]])
    >>> KL({}, free_nats=3.0).of(p, q)["kl"].value
    tensor([[4., 4.]])
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        free_nats: float = 3.0,
        divergence: Divergence = gaussian_kl,
        world_model: WorldModel | None = None,
    ) -> None:
        self.free_nats, self.divergence = free_nats, divergence
        super().__init__(weights, world_model)

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """``kl``."""
        return ("kl",)

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        return self.of(scene.observed.posterior_logits, scene.observed.prior_logits)

    def of(self, posterior: Tensor, prior: Tensor) -> dict[str, Term]:
        """``kl``, the batch's mean at every position: ``[*B]``."""
        return {"kl": Term(free_mean(self.divergence(posterior, prior), self.free_nats), None, "dynamics")}


class CrossEntropyLatents(Objective):
    """TWM's two terms between prior and posterior (arXiv:2303.07109, eq. 3-5, as its code has them).

    * ``state``: the prior learns the whole posterior of the next observation, ``-sg(q) log p``, where its
      episode goes on;
    * ``consistency``: the posterior is drawn to what was expected, ``-sg(p) log q``: the prior is the
      teacher, unlike in the paper's text, whose order is ``-q log sg(p)``.

    Args:
        weights: of the two terms.
        mask_resets: leave out of ``consistency`` what the model expected before an episode began. The
            released code does not: false there.
        teacher: of ``consistency``, whose probabilities weigh the other's logarithms: ``prior``, or
            ``posterior`` for the paper's order. Either way the posterior alone has the gradient.
        first: leading records that ``consistency`` leaves out; ``state`` leaves out one more.
        ahead: last records that ``consistency`` leaves out.
        world_model: what is trained; :meth:`attach` gives it later.

    Raises:
        ConfigError: another teacher.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        mask_resets: bool = True,
        teacher: Literal["prior", "posterior"] = "prior",
        first: int = 1,
        ahead: int = 1,
        world_model: WorldModel | None = None,
    ) -> None:
        if teacher not in TEACHERS:
            raise ConfigError(f"teacher is {teacher!r}: wanted one of {', '.join(TEACHERS)}; correct teacher")
        self.mask_resets, self.teacher, self.first, self.ahead = mask_resets, teacher, first, ahead
        super().__init__(weights, world_model)
        self.shortest = first + ahead + 1

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """The two."""
        return ("consistency", "state")

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        posterior = widened(scene.observed.posterior_logits).log_softmax(-1)
        prior = widened(scene.observed.prior_logits).log_softmax(-1)
        seen = slice(self.first, posterior.shape[1] - self.ahead)
        arrived = slice(self.first + 1, None)
        within = within_episode(scene, 0)
        goes_on = within & ~episode_ends(scene.batch).squeeze(-1)
        state = _cross_entropy(posterior[:, arrived].detach(), prior[:, arrived])
        pair = prior[:, seen].detach(), posterior[:, seen]
        consistency = _cross_entropy(*(pair if self.teacher == "prior" else pair[::-1]))
        mask = within[:, seen] if self.mask_resets else None
        return {
            "consistency": Term(consistency, mask, "representation"),
            "state": Term(state, goes_on[:, arrived], "dynamics"),
        }


class EntropyHinge(Objective):
    """``entropy``: how far the posterior's mean entropy lies below a threshold (TWM, arXiv:2303.07109, eq.
    3).

    Args:
        weights: of ``entropy``.
        threshold: Γ, a share of the largest entropy.
        first: leading records that are left out.
        ahead: last records that are.
        world_model: what is trained; :meth:`attach` gives it later.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        threshold: float = 0.1,
        first: int = 0,
        ahead: int = 0,
        world_model: WorldModel | None = None,
    ) -> None:
        self.threshold, self.first, self.ahead = threshold, first, ahead
        super().__init__(weights, world_model)
        self.shortest = first + ahead + 1

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """``entropy``."""
        return ("entropy",)

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`."""
        logits = scene.posterior_logits
        logits = logits[:, self.first : logits.shape[1] - self.ahead]
        entropy = normalised_entropy(widened(logits).log_softmax(-1)).mean()
        return {"entropy": Term(entropy_hinge(entropy, self.threshold), None, "representation")}


def normalised_entropy(log_probs: Tensor) -> Tensor:
    """Mean entropy of categoricals ``[*B, G, C]`` as a share of ``ln C``; ``[*B]``.

    >>> normalised_entropy(torch.zeros(1, 2, 4).log_softmax(-1))
    tensor([1.])
    """
    return -(log_probs.exp() * log_probs).sum(-1).mean(-1) / math.log(log_probs.shape[-1])


def entropy_hinge(entropy: Tensor, threshold: float) -> Tensor:
    """How far a mean entropy, as a share of the largest one, lies below a threshold; no gradient above it.

    >>> entropy_hinge(torch.tensor([0.05, 0.2]), 0.1)
    tensor([0.0500, 0.0000])
    """
    return torch.relu(threshold - entropy)


def free_mean(value: Tensor, free_nats: float) -> Tensor:
    """The mean of ``value`` at every position, without gradient below ``free_nats``."""
    return torch.clamp(value.mean(), min=free_nats).expand_as(value)


def _cross_entropy(teacher: Tensor, student: Tensor) -> Tensor:
    """``-teacher log student`` of log-probabilities ``[*B, G, C]``, summed over groups; ``[*B]``."""
    return -(teacher.exp() * student).sum((-2, -1))
