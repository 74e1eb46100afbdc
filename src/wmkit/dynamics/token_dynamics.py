"""Token dynamics: any sequence model with a myopic posterior and a token layout.

TWM (arXiv:2303.07109, section 2) and STORM (arXiv:2310.09615, section 3.2)::

    z_t ~ q(z | o_t)      u_t = f(..., tokens(r_t, z_t, a_t))      ẑ_{t+1} ~ p(z | u_t)

The posterior looks at one observation alone, so a whole window is encoded at once and the
sequence model runs over all its tokens in parallel. As everywhere, index t of a window holds
the belief on arriving at ``o_t``: u_{t-1}, which has consumed ``(z_{t-1}, a_{t-1})``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmkit.arguments import check_range
from wmkit.backbones import Carry, SequenceModel
from wmkit.backbones.transformer import Transformer
from wmkit.dynamics.latent import Latent, Observed
from wmkit.dynamics.tokens import TokenLayout
from wmkit.errors import ConfigError
from wmkit.functional import one_hot, sample_index, straight_through, unimix_probs
from wmkit.nn import Feature


class Steps(NamedTuple):
    """What the tokens of ``n`` time steps are made of.

    Attributes:
        state: ``[B, n, ...]`` z_t, with an empty belief; classes where known.
        action: ``[B, n, A]`` the action chosen there.
        reward: ``[B, n, 1]`` received on arriving there, in the reward head's units.
        is_init: ``[B, n]`` bool, ``o_t`` starts an episode.
    """

    state: Feature
    action: Tensor
    reward: Tensor
    is_init: Tensor


class TokenDynamics(nn.Module):
    """World-model dynamics with categorical latents over a sequence model that reads tokens.

    Args:
        action_dim: width A of an action.
        embed_dim: width E of an embedding.
        backbone: called as ``backbone(in_dim=..., out_dim=...)``, gives the sequence model.
        tokens: called as ``tokens(state_dim, action_dim, width)``, gives the layout.
        deter: width U of the belief and of a token.
        groups: categoricals G in a state.
        classes: classes C of each.
        posterior: called as ``posterior(embed_dim, state_dim)``, gives the logits of q.
        prior: called as ``prior(deter, state_dim)``, gives the logits of p.
        unimix: share of the uniform in every categorical.
        state_gradient: whether the sequence model's gradient reaches the posterior through the tokens
            (STORM) or states are constants to it (TWM).
        separate_episodes: whether an episode sees nothing of the one before it; the released STORM lets
            attention cross.
        policy_reads: ``"state"``, or ``"feature"``: the belief too.

    Raises:
        ConfigError: an unknown ``policy_reads``.

    >>> from functools import partial
    >>> from wmkit import backbones
    >>> from wmkit.dynamics import LateRewardTokens
    >>> from wmkit.nn import Perceptron
    >>> head = partial(Perceptron, layers=0)
    >>> gru = partial(backbones.build, "gru")
    >>> dynamics = TokenDynamics(3, 7, backbone=gru, tokens=LateRewardTokens, deter=16, groups=4, classes=5,
    ...                          posterior=head, prior=head)
    >>> seen = dynamics.observe(torch.zeros(2, 6, 7), torch.zeros(2, 6, 3), torch.zeros(2, 6, 1),
    ...                         torch.zeros(2, 6, dtype=torch.bool))
    >>> seen.latent.state.shape, seen.latent.belief.shape
    (torch.Size([2, 6, 20]), torch.Size([2, 6, 16]))
    """

    tokens: Any

    def __init__(
        self,
        action_dim: int,
        embed_dim: int,
        *,
        backbone: Callable[..., SequenceModel],
        tokens: Callable[..., TokenLayout],
        deter: int,
        groups: int = 32,
        classes: int = 32,
        posterior: Callable[..., nn.Module],
        prior: Callable[..., nn.Module],
        unimix: float = 0.0,
        state_gradient: bool = False,
        separate_episodes: bool = True,
        policy_reads: Literal["state", "feature"] = "state",
    ) -> None:
        super().__init__()
        if policy_reads not in ("state", "feature"):
            raise ConfigError(
                f"policy_reads is {policy_reads!r}: wanted state or feature; correct dynamics.policy_reads"
            )
        check_range("dynamics.unimix", unimix, 0, 1, open_end=True)
        self.action_dim, self.groups, self.classes, self.unimix = action_dim, groups, classes, unimix
        self.state_dim, self.belief_dim = groups * classes, deter
        self.state_gradient, self.policy_reads = state_gradient, policy_reads
        self.separate_episodes = separate_episodes
        self.feature_dim = self.state_dim + (deter if policy_reads == "feature" else 0)
        self.posterior = posterior(embed_dim, self.state_dim)
        self.tokens = tokens(self.state_dim, action_dim, deter)
        self.backbone: Any = backbone(in_dim=self.tokens.width, out_dim=deter)
        self.prior = prior(deter, self.state_dim)

    # -- a window ------------------------------------------------------------------------

    def observe(self, embed: Tensor, previous_action: Tensor, reward: Tensor, is_init: Tensor) -> Observed:
        """Encode a window ``[B, T]`` and run the sequence model over it, from nothing.

        Args:
            embed: ``[B, T, E]`` embeddings of ``o_t``.
            previous_action: ``[B, T, A]`` the action that led to ``o_t``.
            reward: ``[B, T, 1]`` received on arriving at ``o_t``, in the reward head's units.
            is_init: ``[B, T]`` bool, ``o_t`` starts an episode: nothing before it is seen from there on.

        Returns:
            Beliefs are zero at index 0; where an episode starts they are still about the one before.
        """
        logits = self.posterior_logits(embed)
        state, classes = self.sample(logits)
        visible = state if self.state_gradient else state.detach()
        steps = Steps(
            Feature(visible, visible[..., :0], classes), previous_action.roll(-1, 1), reward, is_init
        )
        before = Steps(steps.state.map(_but_last), *(_but_last(x) for x in steps[1:]))
        belief, _ = self.advance(before, None)
        belief = F.pad(belief, (0, 0, 1, 0))  # [B, T, U]
        return Observed(Latent(state, belief, belief, classes), logits, self.prior_logits(belief))

    def advance(
        self, steps: Steps, carry: Carry | None, loop: Any = None, separate: bool | None = None
    ) -> tuple[Tensor, Carry]:
        """Consume ``n`` time steps.

        Args:
            steps: leaves ``[B, n, ...]``.
            carry: of the sequence model; ``None`` before the first step, whose late tokens are left out.
            loop: the sequence model made ready for a loop, see :meth:`loop`.
            separate: whether ``is_init`` cuts off what was before; ``separate_episodes`` if not given.

        Returns:
            Beliefs ``[B, n, U]`` after each step, and the carry.
        """
        layout, rows = self.tokens, len(steps.action)
        x = layout(*steps[:3])  # [B, n, k, D]
        reset = torch.zeros(x.shape[:3], dtype=torch.bool, device=x.device)
        if self.separate_episodes if separate is None else separate:
            reset[:, :, layout.late] = steps.is_init
        x, reset = x.flatten(1, 2), reset.flatten(1)
        skip = layout.late if carry is None else 0
        x, reset = x[:, skip:], reset[:, skip:]
        read = slice(layout.per_step - 1 - skip, None, layout.per_step)
        sequence = loop or self.backbone
        if isinstance(self.backbone, Transformer):  # knows nothing as None, and can do without other outputs
            return sequence.scan(x, carry, reset, read)
        u, carry = sequence.scan(x, self.backbone.initial(rows) if carry is None else carry, reset)
        return u[:, read], carry

    def loop(self) -> Any:
        """The sequence model for a loop over single steps; good until the weights change."""
        if isinstance(self.backbone, Transformer):
            return self.backbone.bind(tokens=self.tokens.per_step)
        return self.backbone

    # -- pieces --------------------------------------------------------------------------

    def view(self, state: Tensor, belief: Tensor, classes: Tensor | None = None) -> Feature:
        """What actor and critic read of states ``[*B, G*C]`` and beliefs ``[*B, U]``."""
        return Feature(state, belief if self.policy_reads == "feature" else belief[..., :0], classes)

    def posterior_logits(self, embed: Tensor) -> Tensor:
        """``[*B, E] -> [*B, G, C]``."""
        return self.posterior(embed).unflatten(-1, (self.groups, self.classes))

    def prior_logits(self, belief: Tensor) -> Tensor:
        """``[*B, U] -> [*B, G, C]``."""
        return self.prior(belief).unflatten(-1, (self.groups, self.classes))

    def sample(self, logits: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Straight-through sample ``[*B, G*C]`` of logits ``[*B, G, C]``, and its classes ``[*B, G]``."""
        if noise is None:
            noise = torch.rand(*logits.shape[:-1], 1, device=logits.device)
        probs = unimix_probs(logits, self.unimix)
        index = sample_index(probs.detach(), noise)
        state = one_hot(index, self.classes, probs.dtype)
        if torch.is_grad_enabled() and probs.requires_grad:
            state = straight_through(state, probs)
        return state.flatten(-2), index

    def one_hot(self, classes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Classes ``[*B, G]`` to states ``[*B, G*C]``."""
        return one_hot(classes, self.classes, dtype).flatten(-2)


def _but_last(x: Tensor) -> Tensor:
    return x[:, :-1]
