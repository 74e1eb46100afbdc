"""What actor and critic minimise: the actor's gradient, the price of its entropy, the critic's replay loss.

A gradient (:class:`Reinforce`, :class:`ThroughDynamics`, :class:`MixedGradient`) is called with what an
action led to, ``target``, how much more that was than expected, ``advantage``, and the action's
log-probability, all ``[H, N, 1]``, and gives what the actor maximises. ``through`` says that roll-outs must
carry gradients, ``scored`` that log-probabilities are wanted.

An entropy term (:class:`EntropyBonus`, :class:`EntropyFloor`) keeps a policy open: it says what the mean
entropy of its choices costs.

With :class:`ReplayCritic` the critic learns from replay too: real rewards, bootstrapped with imagined
returns. DreamerV3 (Hafner et al. 2024, arXiv:2301.04104v2); danijar/dreamerv3 e3f0224.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.functional import replay_lambda_return
from wmkit.nn import Feature, total_loss
from wmkit.objectives import episode_ends
from wmkit.objectives.latent_terms import entropy_hinge


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


class EntropyBonus:
    """The more open, the better (all Dreamers, STORM).

    >>> import torch
    >>> EntropyBonus()(torch.tensor(2.0), 4)
    tensor(-2.)
    """

    def __call__(self, entropy: Tensor, actions: int) -> Tensor:
        """Loss of a mean ``entropy``, nats, over ``actions`` choices."""
        return -entropy


class EntropyFloor:
    """A hinge: only a mean entropy below a share of the largest one costs something (TWM, arXiv:2303.07109).

    Args:
        threshold: Γ, a share of the largest entropy.

    >>> import torch
    >>> EntropyFloor(0.5)(torch.tensor(0.0), 4)
    tensor(0.5000)
    """

    def __init__(self, threshold: float = 0.1) -> None:
        self.threshold = threshold

    def __call__(self, entropy: Tensor, actions: int) -> Tensor:
        """Loss of a mean ``entropy``, nats, over ``actions`` choices."""
        return entropy_hinge(entropy / largest_entropy(actions), self.threshold)


def largest_entropy(actions: int) -> float:
    """Of a choice among so many, nats; one choice counts as two."""
    return math.log(max(actions, 2))


class ReplayCriticOutput(NamedTuple):
    """What one replay critic loss yields.

    Attributes:
        loss: scalar; gradients reach the critic and, through the features, encoder and dynamics.
        metrics: detached scalars by name.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class ReplayCritic(nn.Module):
    """Loss of the critic on the window it was filtered from.

    The target of a state is the λ-return of the rewards that followed it in replay, where the
    return imagined from each state stands in for its value. The last record of an episode leads
    nowhere and the last of a window is only bootstrapped from: neither is scored, and both leave
    the mean over T - 1 positions as it is.

    Args:
        gamma: discount of one environment step; here it is not part of any prediction.
        lmbda: λ of the mixture.

    >>> from wmkit.heads import Critic
    >>> critic = Critic(3, units=4, layers=1)  # zero everywhere at first
    >>> flag = torch.zeros(1, 5, 1, dtype=torch.bool)
    >>> batch = {"reward": torch.ones(1, 5, 1), "is_init": flag, "terminated": flag}
    >>> feature = Feature(torch.randn(1, 5, 2), torch.randn(1, 5, 1))
    >>> out = ReplayCritic(gamma=0.997)(critic, critic, feature, batch, torch.zeros(1, 5, 1))
    >>> out.loss.item()  # 2 ln 255: the target, and what the slow critic says
    11.08...
    """

    shortest = 2  # records of a window

    def __init__(self, *, gamma: float, lmbda: float = 0.95) -> None:
        super().__init__()
        check_range("gamma", gamma, 0, 1)
        check_range("lmbda", lmbda, 0, 1)
        self.gamma, self.lmbda = gamma, lmbda

    def forward(
        self,
        critic: Any,
        slow_critic: Any,
        features: Feature,
        batch: Mapping[str, Tensor],
        bootstrap: Tensor,
    ) -> ReplayCriticOutput:
        """Score the critic on a window.

        Args:
            critic: ``predict(features)`` gives a prediction of the return.
            slow_critic: regulariser target of the critic.
            features: posterior of the window, leaves ``[B, T, ...]``, with gradients.
            batch: the sequence layout: ``reward``, ``is_init``, ``terminated`` and, where there, ``done``.
            bootstrap: ``[B, T, 1]`` return imagined from each state.

        Raises:
            SpecError: the window is shorter than two records, or shapes differ.
        """
        last = episode_ends(batch)  # [B, T, 1]
        target = replay_lambda_return(
            batch["reward"],
            bootstrap.detach(),
            batch["terminated"],
            last,
            gamma=self.gamma,
            lmbda=self.lmbda,
        )  # [B, T-1, 1]
        before = features.map(lambda x: x[:, :-1])
        online = critic.predict(before)
        with torch.no_grad():
            slow = slow_critic.predict(before).mean  # [B, T-1, 1]
        loss = total_loss(online, target, slow)  # [B, T-1]
        loss = torch.where(last[:, :-1, 0], 0.0, loss).mean()
        return ReplayCriticOutput(loss, {"loss_replay_critic": loss.detach(), "replay_return": target.mean()})
