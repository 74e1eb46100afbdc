"""Token layouts: what a time step is to a sequence model that reads tokens.

A layout turns a step (what was received on arriving, the state, the action chosen there) into
``per_step`` tokens. The last of them is where the belief is read out. The first ``late`` ones belong
to the arrival: an episode begins after them, and where nothing went before they are left out.

==================  ========================  ====================  ===================
layout              tokens of a step          late                  system
==================  ========================  ====================  ===================
LateRewardTokens    reward, state, action     the reward            TWM
FusedToken          one of state and action   none                  STORM, TransDreamer
PlainToken          both as they are          none                  TD-MPC2
StateBesideAction   one, the two side by side none                  LeWorldModel
FrameTokens         action, then each of      the action            IRIS
                    the state's tokens
==================  ========================  ====================  ===================

The reward is late because a step's belief has to predict it: it is known one step later.

:class:`RecentSteps` is a memory of the last steps as they were, for acting with a sequence model that is run
anew at every step. STORM (arXiv:2310.09615; weipu-zhang/STORM) remembers 16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from wmkit.errors import ConfigError
from wmkit.nn import STYLE_2023, DenseNormAct, Feature, LayerStyle, Linear, init_hidden

_UNITS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "tanh": torch.tanh, "sign": torch.sign}


class Steps(NamedTuple):
    """What the tokens of ``n`` time steps are made of.

    Attributes:
        state: ``[B, n, S]`` z_t.
        classes: ``[B, n, G]`` int64, of its categoricals where known.
        action: ``[B, n, A]`` the action chosen there.
        arrival: ``[B, n, 1]`` what was received on arriving there, in the layout's units.
        is_init: ``[B, n]`` bool, ``o_t`` starts an episode.
    """

    state: Tensor
    classes: Tensor | None
    action: Tensor
    arrival: Tensor
    is_init: Tensor

    def map(self, fn: Callable[[Tensor], Tensor]) -> Steps:
        """The same of every part."""
        return Steps(*(None if part is None else fn(part) for part in self))  # type: ignore[arg-type]


class TokenLayout(Protocol):
    """What token dynamics ask of a layout.

    Attributes:
        width: of a token, D.
        per_step: tokens k of a step.
        late: how many of them, in front, belong to the arrival.
        conditions: keys of a record that the late tokens are made of.
    """

    width: int
    per_step: int
    late: int
    conditions: tuple[str, ...]

    def arrival(self, reward: Tensor) -> Tensor:
        """A record's reward ``[*B, 1]`` in the units of the late token."""
        ...

    def __call__(self, steps: Steps) -> Tensor:
        """``n`` steps, leaves ``[B, n, ...]`` -> tokens ``[B, n, k, D]``."""
        ...


class LateRewardTokens(nn.Module):
    """``reward, state, action``: a token each (TWM, arXiv:2303.07109, section 2.2).

    State and reward go through a dense layer; an action's token is a row of a table.

    Args:
        state_dim: width of a state.
        action_dim: width A of an action.
        width: of a token.
        units: what the reward's token is made of: the reward as it is (``"none"``), its ``"tanh"`` or its
            ``"sign"``; those of the head that predicts it.
        style: norm, activation, bias and initialisation of the dense layers.

    Raises:
        ConfigError: unknown ``units``.

    >>> layout = LateRewardTokens(6, 3, 8)
    >>> flag = torch.zeros(2, 5, dtype=torch.bool)
    >>> layout(Steps(torch.zeros(2, 5, 6), None, torch.zeros(2, 5, 3), torch.zeros(2, 5, 1), flag)).shape
    torch.Size([2, 5, 3, 8])
    """

    per_step, late, conditions = 3, 1, ("reward",)

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        width: int,
        *,
        units: Literal["none", "tanh", "sign"] = "none",
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        if units not in _UNITS:
            raise ConfigError(f"units is {units!r}: wanted one of {', '.join(_UNITS)}; correct units")
        self.width, self.arrival = width, _UNITS[units]
        self.state = DenseNormAct(state_dim, width, style)
        self.action = Linear(action_dim, width, bias=False)
        nn.init.normal_(self.action.weight)
        self.reward = DenseNormAct(1, width, style)

    def forward(self, steps: Steps) -> Tensor:
        """See :class:`TokenLayout`."""
        state = Feature(steps.state, classes=[steps.classes])
        parts = self.reward(steps.arrival), self.state(state), self.action(steps.action)
        return torch.stack(parts, -2)


class FusedToken(nn.Module):
    """State and action mixed to one token.

    STORM (arXiv:2310.09615, section 3.2) has a second layer with a norm and no activation; TransDreamer
    (arXiv:2202.09481) has one layer.

    Args:
        state_dim: width of a state.
        action_dim: width A of an action.
        width: of a token.
        layers: one or two.
        action_first: the first layer reads the action before the state.
        style: of the first layer; the second has its norm and no activation.

    >>> layout = FusedToken(6, 3, 8)
    >>> flag = torch.zeros(2, 5, dtype=torch.bool)
    >>> layout(Steps(torch.zeros(2, 5, 6), None, torch.zeros(2, 5, 3), torch.zeros(2, 5, 1), flag)).shape
    torch.Size([2, 5, 1, 8])
    """

    per_step, late, conditions = 1, 0, ()

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        width: int,
        *,
        layers: Literal[1, 2] = 2,
        action_first: bool = False,
        style: LayerStyle = STYLE_2023,
    ) -> None:
        super().__init__()
        self.width, self.action_first = width, action_first
        self.mixer = DenseNormAct(state_dim + action_dim, width, style)
        self.out: Any = nn.Identity()
        if layers > 1:
            out: nn.Linear = init_hidden(Linear(width, width, bias=style.bias), style.init)
            self.out = nn.Sequential(out, style.make_norm(width))

    def arrival(self, reward: Tensor) -> Tensor:
        """No token is made of it."""
        return reward

    def forward(self, steps: Steps) -> Tensor:
        """See :class:`TokenLayout`."""
        parts, classes = [steps.state, steps.action], [steps.classes, None]
        if self.action_first:
            parts.reverse()
            classes.reverse()
        return self.out(self.mixer(Feature(*parts, classes=classes))).unsqueeze(-2)


class PlainToken(nn.Module):
    """State and action side by side, as they are: a token without parameters (TD-MPC2).

    Args:
        state_dim: width of a state.
        action_dim: width A of an action.
        width: of a token; the two widths together, whatever is given.

    >>> layout = PlainToken(6, 3)
    >>> flag = torch.zeros(2, 5, dtype=torch.bool)
    >>> layout(Steps(torch.zeros(2, 5, 6), None, torch.zeros(2, 5, 3), torch.zeros(2, 5, 1), flag)).shape
    torch.Size([2, 5, 1, 9])
    """

    per_step, late, conditions = 1, 0, ()

    def __init__(self, state_dim: int, action_dim: int, width: int | None = None) -> None:
        super().__init__()
        self.width = state_dim + action_dim

    def arrival(self, reward: Tensor) -> Tensor:
        """No token is made of it."""
        return reward

    def forward(self, steps: Steps) -> Tensor:
        """See :class:`TokenLayout`."""
        return torch.cat([steps.state, steps.action], -1).unsqueeze(-2)


class StateBesideAction(nn.Module):
    """The state as it is, and beside it the action through dense layers (LeWorldModel; lucas-maes/le-wm).

    A sequence model that is conditioned on actions finds them in the last ``width`` numbers
    (:class:`~wmkit.backbones.adaln.AdaLN`); any other reads a token of both.

    Args:
        state_dim: width of a state.
        action_dim: width A of an action.
        width: of the action's part.
        squeeze: width of a first map of the action.
        hidden: width of the layer behind it; four times ``width`` if not given.
        action_norm: called as ``action_norm(width=A)``, what actions go through first.

    >>> layout = StateBesideAction(6, 3, 8)
    >>> flag = torch.zeros(2, 5, dtype=torch.bool)
    >>> layout(Steps(torch.zeros(2, 5, 6), None, torch.zeros(2, 5, 3), torch.zeros(2, 5, 1), flag)).shape
    torch.Size([2, 5, 1, 14])
    """

    per_step, late, conditions = 1, 0, ()

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        width: int,
        *,
        squeeze: int = 10,
        hidden: int | None = None,
        action_norm: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        hidden = 4 * width if hidden is None else hidden
        self.width = state_dim + width
        self.action_norm: Any = nn.Identity() if action_norm is None else action_norm(width=action_dim)
        self.action = nn.Sequential(
            Linear(action_dim, squeeze), Linear(squeeze, hidden), nn.SiLU(), Linear(hidden, width)
        )

    def arrival(self, reward: Tensor) -> Tensor:
        """No token is made of it."""
        return reward

    def forward(self, steps: Steps) -> Tensor:
        """See :class:`TokenLayout`."""
        action = self.action(self.action_norm(steps.action))
        return torch.cat([steps.state, action], -1).unsqueeze(-2)


class FrameTokens(nn.Module):
    """The action that led here, and each token of the frame: a row of a table each (IRIS, arXiv:2209.00588,
    section 2.2).

    Args:
        state_dim: width of a state; not read, as frames are read by their classes.
        action_dim: width A of an action.
        width: of a token.
        groups: tokens of a frame.
        rows: of the table of each.
        std: of the tables at first.

    >>> layout = FrameTokens(6, 3, 8, groups=2, rows=5)
    >>> classes, flag = torch.zeros(2, 7, 2, dtype=torch.int64), torch.zeros(2, 7, dtype=torch.bool)
    >>> layout(Steps(torch.zeros(2, 7, 6), classes, torch.zeros(2, 7, 3), torch.zeros(2, 7, 1), flag)).shape
    torch.Size([2, 7, 3, 8])
    """

    late, conditions = 1, ()

    def __init__(
        self, state_dim: int, action_dim: int, width: int, *, groups: int, rows: int, std: float = 0.02
    ) -> None:
        super().__init__()
        self.width, self.per_step = width, 1 + groups
        self.frame = nn.Embedding(rows, width)
        self.action = Linear(action_dim, width, bias=False)
        for table in (self.frame, self.action):
            nn.init.normal_(table.weight, std=std)

    def arrival(self, reward: Tensor) -> Tensor:
        """No token is made of it."""
        return reward

    def forward(self, steps: Steps) -> Tensor:
        """See :class:`TokenLayout`; ``steps`` have the action that *led* to each."""
        assert steps.classes is not None
        return torch.cat([self.action(steps.action).unsqueeze(-2), self.frame(steps.classes)], -2)


class RecentSteps:
    """Rows ``[B, window, N]``: the state (by its classes if it has any), arrival, ``is_init`` and action of
    each.

    Args:
        window: steps that are remembered.
        latent: what a state is made of.
        action_dim: width A of an action.

    >>> from wmkit.nn import CategoricalLatent
    >>> recent = RecentSteps(4, CategoricalLatent(2, 3), 5)
    >>> recent.shape
    (4, 9)
    >>> recent.steps(torch.zeros(1, 4, 9)).state.shape
    torch.Size([1, 4, 6])
    """

    def __init__(self, window: int, latent: Any, action_dim: int) -> None:
        self.window, self.latent, self.action_dim = window, latent, action_dim
        self._width = getattr(latent, "groups", latent.state_dim)

    @property
    def shape(self) -> tuple[int, int]:
        """Of one row."""
        return self.window, self._width + 2 + self.action_dim

    def unpack(self, recent: Tensor, previous_action: Tensor) -> Tensor:
        """Remembered steps, now that the action ``[B, A]`` of the last of them is known."""
        known = recent[:, -1, : self._width + 2]
        last = torch.cat([known, previous_action.to(known.dtype)], -1)
        return torch.cat([recent[:, :-1], last.unsqueeze(1)], 1)

    def steps(self, recent: Tensor) -> Steps:
        """As a sequence model takes them, leaves ``[B, window, ...]``."""
        state, arrival, first, action = recent.split([self._width, 1, 1, self.action_dim], -1)
        classes = None
        if hasattr(self.latent, "groups"):
            classes = state.long()
            state = self.latent.one_hot(classes)
        return Steps(state, classes, action, arrival, first[..., 0] > 0)

    def push(
        self, recent: Tensor, state: Tensor, classes: Tensor | None, arrival: Tensor, first: Tensor
    ) -> Tensor:
        """With one step more, whose action is not known yet; the oldest goes."""
        kept = state if classes is None else classes.float()
        action = arrival.new_zeros(len(arrival), self.action_dim)
        here = torch.cat([kept, arrival.float(), first.unsqueeze(-1).float(), action], -1)
        return torch.cat([recent[:, 1:], here.unsqueeze(1)], 1)
