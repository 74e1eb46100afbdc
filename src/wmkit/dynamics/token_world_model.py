"""A world model over token dynamics: an autoencoder of observations, and heads that read the belief.

Beside :class:`~wmkit.dynamics.WorldModel`: the decoder reads the state alone and the heads read the
belief alone ("departure": what an action brings is predicted before the next state is seen).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wmkit.dynamics.latent import Latent, Observed
from wmkit.dynamics.token_dynamics import Steps
from wmkit.errors import ConfigError
from wmkit.nn import Feature


class TokenWorldModel(nn.Module):
    """Encoder, token dynamics, decoder and named heads.

    Args:
        spaces: shape of one observation for each key, frames stacked.
        action_dim: width A of an action.
        encoder: called as ``encoder(spaces)``.
        dynamics: called as ``dynamics(action_dim, embed_dim)``, see
            :class:`~wmkit.dynamics.TokenDynamics`.
        decoder: called as ``decoder(state_dim, spaces)``.
        heads: ``reward`` and ``continuation``, each called with the width of the belief.

    Raises:
        ConfigError: a head is missing, or a part reads something else.
    """

    encoder: Any
    dynamics: Any
    decoder: Any

    def __init__(
        self,
        spaces: Mapping[str, Sequence[int]],
        action_dim: int,
        *,
        encoder: Callable[..., nn.Module],
        dynamics: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        heads: Mapping[str, Callable[..., nn.Module]],
    ) -> None:
        super().__init__()
        self.encoder = encoder(spaces)
        self.dynamics = dynamics(action_dim, self.encoder.out_dim)
        self.decoder = decoder(self.dynamics.state_dim, spaces)
        self.heads = nn.ModuleDict({name: head(self.dynamics.belief_dim) for name, head in heads.items()})
        if missing := {"reward", "continuation"} - set(heads):
            raise ConfigError(
                f"the token world model has no head {', '.join(sorted(missing))}: wanted reward and "
                "continuation; add it to world_model.heads"
            )
        for name, part in {"decoder": self.decoder, **self.heads}.items():
            wanted = "state" if name == "decoder" else "belief"
            if part.reads != wanted:
                raise ConfigError(
                    f"{name} of the token world model reads the {part.reads}: wanted one that reads the "
                    f"{wanted}; choose another class on the page"
                )

    def observe(self, batch: Mapping[str, Tensor]) -> Observed:
        """Encode a window of records and run the sequence model over it, from nothing.

        Args:
            batch: the sequence layout, ``[B, T, ...]``, frames stacked.
        """
        return self.dynamics.observe(
            self.encoder(batch),
            batch["previous_action"].float(),
            self.reward(batch),
            batch["is_init"].squeeze(-1),
        )

    def reward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Rewards of a batch ``[*B, 1]`` in the head's units: what the reward token says."""
        head: Any = self.heads["reward"]
        return head.label(batch)

    def outcome(self, belief: Tensor) -> tuple[Tensor, Tensor]:
        """Mean reward and discount ``[*B, 1]`` of the transition after a belief ``[*B, U]``."""
        reward: Any = self.heads["reward"]
        continuation: Any = self.heads["continuation"]
        return reward(belief).mean, continuation.continuation(continuation(belief))

    def continuation(self, features: Tensor | Feature) -> Tensor:
        """Discount ``[*B, 1]`` after beliefs, or the features that hold them."""
        return self.outcome(features if isinstance(features, Tensor) else features.belief)[1]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without dropout inside."""
        before = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(before)

    @torch.no_grad()
    def open_loop(
        self, batch: Mapping[str, Tensor], context: int, noise: Tensor | None = None
    ) -> tuple[dict[str, Tensor], list[Latent]]:
        """Predictions of a window from its first steps and the real actions alone.

        Args:
            batch: the sequence layout ``[B, T, ...]``, frames stacked.
            context: steps that are observed.
            noise: ``[T - context, B, G, 1]`` uniforms; drawn here if none are given.

        Returns:
            ``{image key: [B, T, ...]}``, and no latents.
        """
        dynamics, action = self.dynamics, batch["previous_action"].float()
        with self.evaluating():
            logits = dynamics.posterior_logits(self.encoder({k: v[:, :context] for k, v in batch.items()}))
            state, classes = dynamics.sample(logits)  # [B, context, ...]
            steps = Steps(
                Feature(state, state[..., :0], classes),
                action[:, 1 : context + 1],
                self.reward(batch)[:, :context],
                batch["is_init"][:, :context, 0],
            )
            states, carry = [state], None
            never = torch.zeros_like(steps.is_init[:, :1])
            for t in range(context, action.shape[1]):
                belief, carry = dynamics.advance(steps, carry)
                belief = belief[:, -1:]
                logits = dynamics.prior_logits(belief)
                state, classes = dynamics.sample(
                    logits, None if noise is None else noise[t - context, :, None]
                )
                states.append(state)
                reward, _ = self.outcome(belief)
                here = Feature(state, state[..., :0], classes)
                steps = Steps(here, action[:, t + 1 : t + 2], reward, never)
            predictions = self.decoder(torch.cat(states, 1))
        return {key: predictions[key].mean for key in self.decoder.images}, []
