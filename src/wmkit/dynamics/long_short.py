"""Long short-term dynamics: ordinary steps and jumps through one and the same model.

LS-Imagine (arXiv:2410.03618, eq. 3) has one transition for both: a jump is a step with no
action and one more action entry, the jump bit, set. :class:`LongShortRSSM` adds that bit to
any dynamics as their one option; which rows jump is a mask, so that shapes never depend on data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from tensordict.utils import NestedKey
from torch import Tensor
from torch.nn import functional as F

from wmkit.dynamics.dynamics import Dynamics, Latent, Observed, Record


class LongShortRSSM(Dynamics):
    """Any dynamics with a jumpy branch: the option of a step is a jump.

    Args:
        action_dim: width A of an environment action.
        embed_dim: width E of an embedding.
        dynamics: called as ``dynamics(action_dim=A + 1, embed_dim=E)``, gives the dynamics to wrap.
        in_keys: of embedding, previous action, ``is_init`` and the conditions of what is wrapped.
        out_keys: of state, belief, posterior and prior.

    >>> from functools import partial
    >>> from wmkit import backbones
    >>> from wmkit.dynamics import RSSM
    >>> gru = partial(backbones.build, "ln_gru")
    >>> rssm = partial(RSSM, backbone=gru, deter=16, groups=4, classes=5, hidden=8)
    >>> long_short = LongShortRSSM(3, 7, dynamics=rssm)
    >>> after = long_short.step(long_short.initial(2), torch.zeros(2, 3), torch.tensor([True, False]))
    >>> after.belief.shape
    torch.Size([2, 16])
    """

    options = 1

    def __init__(
        self,
        action_dim: int,
        embed_dim: int,
        *,
        dynamics: Callable[..., Dynamics],
        in_keys: Iterable[NestedKey] | None = None,
        out_keys: Iterable[NestedKey] | None = None,
    ) -> None:
        super().__init__()
        self.short: Any = dynamics(action_dim=action_dim + 1, embed_dim=embed_dim)
        self.action_dim = action_dim
        self.state_dim, self.belief_dim = self.short.state_dim, self.short.belief_dim
        self.latent, self.conditions = self.short.latent, self.short.conditions
        self.myopic, self.resumable = self.short.myopic, self.short.resumable
        self.name_keys(in_keys, out_keys)

    def observe(self, embed: Tensor, record: Record, latent: Latent | None = None) -> Observed:
        """Take in a window of real steps."""
        return self.short.observe(embed, _with_bit(record), latent)

    def observe_jump(self, latent: Latent, embed: Tensor, record: Record) -> Observed:
        """Take in the view that a jump from each ``latent`` leads to.

        Args:
            latent: posterior before the jump, leaves ``[N, ...]``.
            embed: ``[N, E]`` embedding of the view.
            record: leaves ``[N, ...]``; its action is ignored, and no view starts an episode.

        Returns:
            What is observed, leaves ``[N, ...]``.
        """
        bit = F.pad(embed.new_zeros(self.action_dim), (0, 1), value=1.0)
        jump = {key: value.unsqueeze(1) for key, value in record.items()}
        jump["previous_action"] = bit.expand(len(embed), 1, -1)
        jump["is_init"] = torch.zeros(len(embed), 1, dtype=torch.bool, device=embed.device)
        seen = self.short.observe(embed.unsqueeze(1), jump, latent)
        at_once = (seen.posterior_logits.squeeze(1), seen.prior_logits.squeeze(1))
        return Observed(seen.latent.map(lambda x: x.squeeze(1)), *at_once, seen.last)

    def filter(self, latent: Latent, embed: Tensor, record: Record) -> Latent:
        """Acting: jumps never happen in the real environment."""
        return self.short.filter(latent, embed, _with_bit(record))

    def bind(self, *, one_hot: bool = False) -> _Steps:
        """See :meth:`Dynamics.bind`; a jump's input, no action and the bit, is one-hot too."""
        return _Steps(self.short.bind(one_hot=one_hot))

    # -- as what is wrapped ----------------------------------------------------------------

    def initial(self, batch: int) -> Latent:
        """See :meth:`Dynamics.initial`."""
        return self.short.initial(batch)

    def pack(self, latent: Latent) -> dict[str, Tensor]:
        """See :meth:`Dynamics.pack`."""
        return self.short.pack(latent)

    def unpack(self, tensors: Mapping[str, Tensor]) -> Latent:
        """See :meth:`Dynamics.unpack`."""
        return self.short.unpack(tensors)

    @property
    def pack_shapes(self) -> dict[str, tuple[int, ...]]:
        """See :attr:`Dynamics.pack_shapes`."""
        return self.short.pack_shapes

    @property
    def dream_shapes(self) -> dict[str, tuple[int, ...]]:
        """See :attr:`Dynamics.dream_shapes`."""
        return self.short.dream_shapes

    def restart(self, latent: Latent, mask: Tensor, start: Latent) -> Latent:
        """See :meth:`Dynamics.restart`."""
        return self.short.restart(latent, mask, start)

    def told(self, latent: Latent, conditions: Mapping[str, Tensor]) -> Latent:
        """See :meth:`Dynamics.told`."""
        return self.short.told(latent, conditions)

    def sample(self, statistics: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """See :meth:`Dynamics.sample`."""
        return self.short.sample(statistics, noise)

    def prior_logits(self, belief: Tensor) -> Tensor:
        """``[*B, U] -> [*B, G, C]``."""
        return self.short.prior_logits(belief)


class _Steps(NamedTuple):
    """A loop over steps and jumps."""

    short: Any

    def step(
        self, latent: Latent, action: Tensor, option: Tensor | None = None, noise: Tensor | None = None
    ) -> Latent:
        """A step or, in rows ``option [B]``, a jump, which ignores the action."""
        if option is None:
            return self.short.step(latent, F.pad(action, (0, 1)), None, noise)
        bit = option.unsqueeze(-1).to(action.dtype)
        return self.short.step(latent, torch.cat([action * (1 - bit), bit], -1), None, noise)


def _with_bit(record: Record) -> dict[str, Tensor]:
    return {**record, "previous_action": F.pad(record["previous_action"], (0, 1))}
