"""Where an actor's gradient comes from: the quantity that it maximises.

Each is called with what an action led to, ``target``, how much more that was than expected, ``advantage``,
and the action's log-probability, all ``[H, N, 1]``, and gives what the actor maximises. ``through`` says that
roll-outs must carry gradients, ``scored`` that log-probabilities are wanted.
"""

from __future__ import annotations

from torch import Tensor


class Reinforce:
    """Actions that did better than expected become likelier; no gradient of the model is needed.

    DreamerV2 on discrete actions (arXiv:2010.02193, eq. 6, ρ = 1), DreamerV3, TWM, STORM.

    >>> import torch
    >>> two = torch.tensor([2.0])
    >>> Reinforce()(two, two - 0.5, -two)
    tensor([-3.])
    """

    through, scored = False, True

    def __call__(self, target: Tensor, advantage: Tensor, log_prob: Tensor | None) -> Tensor:
        """Log-probability times advantage."""
        assert log_prob is not None
        return log_prob * advantage.detach()


class ThroughDynamics:
    """The return itself, whose gradient goes back through the model into the actions.

    DreamerV1 (arXiv:1912.01603, eq. 7), and DreamerV2 on continuous actions (ρ = 0).

    >>> import torch
    >>> ThroughDynamics()(torch.tensor([2.0]), torch.tensor([1.5]), None)
    tensor([2.])
    """

    through, scored = True, False

    def __call__(self, target: Tensor, advantage: Tensor, log_prob: Tensor | None) -> Tensor:
        """The target."""
        return target


class MixedGradient:
    """Some of both (DreamerV2, arXiv:2010.02193, eq. 6).

    Args:
        mix: share of the gradient through the dynamics, 1 - ρ.

    >>> import torch
    >>> two = torch.tensor([2.0])
    >>> MixedGradient(mix=0.1)(two, two - 0.5, -two)
    tensor([-2.5000])
    """

    through, scored = True, True

    def __init__(self, mix: float = 0.1) -> None:
        self.mix, self.reinforce = mix, Reinforce()

    def __call__(self, target: Tensor, advantage: Tensor, log_prob: Tensor | None) -> Tensor:
        """The weighted sum."""
        return self.mix * target + (1 - self.mix) * self.reinforce(target, advantage, log_prob)
