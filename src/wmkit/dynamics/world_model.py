"""A world model: encoder, dynamics, decoder and heads, assembled.

It holds parts and says how they connect. What they are trained on is in
:mod:`wmkit.objectives`; which parts there are is on a system's page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wmkit.dynamics.latent import Latent, Observed
from wmkit.nn import Feature


class WorldModel(nn.Module):
    """Encoder, dynamics, decoder and named heads.

    Args:
        spaces: shape of one observation for each key.
        action_dim: width A of an action.
        encoder: called as ``encoder(spaces)``.
        dynamics: called as ``dynamics(action_dim, embed_dim)``.
        decoder: called as ``decoder(feature_dim, spaces)``.
        heads: each called with the width of what it reads, the feature or a pair of features.

    >>> from functools import partial
    >>> from wmkit import backbones
    >>> from wmkit.codecs import Decoder, Encoder
    >>> from wmkit.dynamics import RSSM
    >>> from wmkit.heads import ContinueHead
    >>> codec = dict(images=["pixels"], vectors=[], depth=4, units=8, layers=1)
    >>> gru = partial(backbones.build, "gru")
    >>> world_model = WorldModel(
    ...     {"pixels": (3, 64, 64)}, 3, encoder=partial(Encoder, **codec), decoder=partial(Decoder, **codec),
    ...     dynamics=partial(RSSM, backbone=gru, deter=16, groups=4, classes=4, hidden=8),
    ...     heads={"continuation": partial(ContinueHead, units=8, layers=1)})
    >>> batch = {"pixels": torch.zeros(2, 5, 3, 64, 64, dtype=torch.uint8),
    ...          "previous_action": torch.zeros(2, 5, 3), "is_init": torch.zeros(2, 5, 1, dtype=torch.bool)}
    >>> world_model.observe(batch).latent.feature.shape
    torch.Size([2, 5, 32])
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
        width = self.dynamics.feature_dim
        self.decoder = decoder(width, spaces)
        self.heads = nn.ModuleDict()
        for name, head in heads.items():
            reads = getattr(getattr(head, "func", head), "reads", "feature")
            self.heads[name] = head(2 * width if reads == "pair" else width)

    def observe(self, batch: Mapping[str, Tensor], latent: Latent | None = None) -> Observed:
        """Filter a window of records.

        Args:
            batch: the sequence layout, ``[B, T, ...]``: the encoder's keys,
                ``previous_action`` and ``is_init``.
            latent: state before the window; the initial state if not given.
        """
        embed = self.encoder(batch)
        if latent is None:
            latent = self.dynamics.initial(embed.shape[0])
        is_init = batch["is_init"].squeeze(-1)
        return self.dynamics.observe(embed, batch["previous_action"].float(), is_init, latent)

    def open_loop(self, batch: Mapping[str, Tensor], context: int) -> tuple[dict[str, Tensor], list[Latent]]:
        """Predictions of a window from its first steps and the real actions alone.

        Args:
            batch: the sequence layout ``[B, T, ...]``.
            context: steps that are observed.

        Returns:
            ``{image key: [B, T, ...]}``, and the latents behind them, leaves ``[B, t, ...]``, all ``t``
            together T.
        """
        seen = self.observe({key: value[:, :context] for key, value in batch.items()}).latent
        latent, latents = seen.map(lambda x: x[:, -1]), [seen]
        for action in batch["previous_action"][:, context:].float().unbind(1):
            latent = self.dynamics.step(latent, action)
            latents.append(latent.map(lambda x: x.unsqueeze(1)))
        predictions = self.decoder(torch.cat([x.feature for x in latents], 1))
        return {key: predictions[key].mean for key in self.decoder.images}, latents

    def resume(self, start: Mapping[str, Tensor]) -> Latent:
        """Latent from stored ``state``, ``belief`` and, where there is one, the policy's ``carry``."""
        carried = {"carry": start["carry"]} if "carry" in start.keys() else {}
        return self.dynamics.resume(start["state"], start["belief"], **carried)

    def predict(self, features: Tensor) -> dict[str, Any]:
        """Every prediction made from a single feature ``[*B, F]``: decoded keys and heads."""
        predictions = dict(self.decoder(features))
        for name, head in self.heads.items():
            if head.reads == "feature":
                predictions[name] = head(features)
        return predictions

    def labels(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Targets of :meth:`predict` under the same names."""
        labels = {key: batch[key] for key in self.decoder.targets}
        head: Any
        for name, head in self.heads.items():
            if head.reads == "feature":
                labels[name] = head.label(batch)
        return labels

    def continuation(self, features: Tensor | Feature) -> Tensor:
        """Probability ``[*B, 1]`` of going on from features ``[*B, F]``; one without such a head."""
        if "continuation" not in self.heads:
            like = features if isinstance(features, Tensor) else features.belief
            return torch.ones_like(like[..., :1])
        head: Any = self.heads["continuation"]
        return head.continuation(head(features))
