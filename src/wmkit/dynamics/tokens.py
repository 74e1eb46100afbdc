"""Token layouts: what a time step is to a sequence model that reads tokens.

A layout turns a step (what was received on arriving, the state, the action chosen there) into
``per_step`` tokens. The last of them is where the belief is read out. The first ``late`` ones belong
to the arrival: an episode begins after them, and where nothing went before they are left out.

==================  ========================  ====================  =========
layout              tokens of a step          late                  system
==================  ========================  ====================  =========
LateRewardTokens    reward, state, action     the reward            TWM
FusedToken          one of state and action   none                  STORM
==================  ========================  ====================  =========

The reward is late because a step's belief has to predict it: it is known one step later.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from wmkit.nn import STYLE_2023, DenseNormAct, Feature, LayerStyle, Linear, init_hidden


class TokenLayout(Protocol):
    """What token dynamics ask of a layout.

    Attributes:
        width: of a token, D.
        per_step: tokens k of a step.
        late: how many of them, in front, belong to the arrival.
    """

    width: int
    per_step: int
    late: int

    def __call__(self, state: Feature, action: Tensor, reward: Tensor) -> Tensor:
        """State ``[B, n, G*C]``, action ``[B, n, A]``, reward ``[B, n, 1]`` -> ``[B, n, k, D]``."""
        ...


class LateRewardTokens(nn.Module):
    """``reward, state, action``: a token each (TWM, arXiv:2303.07109, section 2.2).

    State and reward go through a dense layer; an action's token is a row of a table.

    Args:
        state_dim: width of a state.
        action_dim: width A of an action.
        width: of a token.
        style: norm, activation, bias and initialisation of the dense layers.

    >>> layout = LateRewardTokens(6, 3, 8)
    >>> state = Feature(torch.zeros(2, 5, 6), torch.zeros(2, 5, 0))
    >>> layout(state, torch.zeros(2, 5, 3), torch.zeros(2, 5, 1)).shape
    torch.Size([2, 5, 3, 8])
    """

    per_step, late = 3, 1

    def __init__(self, state_dim: int, action_dim: int, width: int, style: LayerStyle = STYLE_2023) -> None:
        super().__init__()
        self.width = width
        self.state = DenseNormAct(state_dim, width, style)
        self.action = Linear(action_dim, width, bias=False)
        nn.init.normal_(self.action.weight)
        self.reward = DenseNormAct(1, width, style)

    def forward(self, state: Feature, action: Tensor, reward: Tensor) -> Tensor:
        """See :class:`TokenLayout`."""
        return torch.stack([self.reward(reward), self.state(state), self.action(action)], -2)


class FusedToken(nn.Module):
    """State and action mixed to one token (STORM, arXiv:2310.09615, section 3.2).

    Args:
        state_dim: width of a state.
        action_dim: width A of an action.
        width: of a token.
        style: of the first layer; the second has its norm and no activation.

    >>> layout = FusedToken(6, 3, 8)
    >>> state = Feature(torch.zeros(2, 5, 6), torch.zeros(2, 5, 0))
    >>> layout(state, torch.zeros(2, 5, 3), torch.zeros(2, 5, 1)).shape
    torch.Size([2, 5, 1, 8])
    """

    per_step, late = 1, 0

    def __init__(self, state_dim: int, action_dim: int, width: int, style: LayerStyle = STYLE_2023) -> None:
        super().__init__()
        self.width = width
        self.mixer = DenseNormAct(state_dim + action_dim, width, style)
        out: nn.Linear = init_hidden(Linear(width, width, bias=style.bias), style.init)
        self.out = nn.Sequential(out, style.make_norm(width))

    def forward(self, state: Feature, action: Tensor, reward: Tensor) -> Tensor:
        """See :class:`TokenLayout`."""
        mixed = self.mixer(Feature(state.state, action, state.classes))
        return self.out(mixed).unsqueeze(-2)
