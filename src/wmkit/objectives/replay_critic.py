"""The critic learns from replay too: real rewards, bootstrapped with imagined returns.

DreamerV3 (Hafner et al. 2024, arXiv:2301.04104v2); danijar/dreamerv3 e3f0224.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wmkit.arguments import check_range
from wmkit.functional import replay_lambda_return
from wmkit.nn import Feature, total_loss


class ReplayCriticOutput(NamedTuple):
    """What one replay critic loss yields.

    Attributes:
        loss: scalar; gradients reach the critic and, through the features, encoder and dynamics.
        metrics: detached scalars by name.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class ReplayCriticLoss(nn.Module):
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
    >>> out = ReplayCriticLoss(gamma=0.997)(critic, critic, feature, batch, torch.zeros(1, 5, 1))
    >>> out.loss.item()  # 2 ln 255: the target, and what the slow critic says
    11.08...
    """

    shortest = 2  # records of a window

    def __init__(self, *, gamma: float, lmbda: float = 0.95) -> None:
        super().__init__()
        check_range("replay_critic.gamma (discount)", gamma, 0, 1)
        check_range("replay_critic.lmbda", lmbda, 0, 1)
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
            critic: features to a prediction of the return.
            slow_critic: regulariser target of the critic.
            features: posterior of the window, leaves ``[B, T, ...]``, with gradients.
            batch: the sequence layout: ``reward``, ``is_init``, ``terminated`` and, where there, ``done``.
            bootstrap: ``[B, T, 1]`` return imagined from each state.

        Raises:
            SpecError: the window is shorter than two records, or shapes differ.
        """
        last = ends(batch)  # [B, T, 1]
        target = replay_lambda_return(
            batch["reward"],
            bootstrap.detach(),
            batch["terminated"],
            last,
            gamma=self.gamma,
            lmbda=self.lmbda,
        )  # [B, T-1, 1]
        before = features.map(lambda x: x[:, :-1])
        online = critic(before.dense)
        with torch.no_grad():
            slow = slow_critic(before).mean  # [B, T-1, 1]
        loss = total_loss(online, target, slow)  # [B, T-1]
        loss = torch.where(last[:, :-1, 0], 0.0, loss).mean()
        return ReplayCriticOutput(loss, {"loss_replay_critic": loss.detach(), "replay_return": target.mean()})


def ends(batch: Mapping[str, Tensor]) -> Tensor:
    """Which records ``[B, T, 1]`` of a window are the last of their episode, abandoned ones included.

    >>> no, first = torch.zeros(1, 3, 1, dtype=torch.bool), torch.tensor([[[0], [1], [0]]]).bool()
    >>> ends({"is_init": first, "terminated": no}).flatten().tolist()
    [True, False, False]
    """
    terminated, is_init = batch["terminated"].bool(), batch["is_init"].bool()
    before_first = torch.cat([is_init[:, 1:], torch.zeros_like(is_init[:, :1])], 1)
    last = terminated | before_first
    return last | batch["done"].bool() if "done" in batch else last
