"""The long-term branch: learning what a jump leads to (LS-Imagine, arXiv:2410.03618, section 3.2).

Positions of a window that carry a zoomed view are gathered into rows, of a fixed number;
each is one jump from its posterior. Per-sample losses: the released code scores every
prediction against the batch mean of the targets (:class:`BatchMeanTargets`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wmkit.dynamics import Latent, WorldModel
from wmkit.nn import rows_are_free
from wmkit.objectives.terms import Term

_ZOOMED = ("pixels", "affordance", "reward", "intrinsic_reward")


class LongBranchOutput(NamedTuple):
    """What the long branch adds.

    Attributes:
        terms: its losses, ``[K]`` each, masked.
        latent: posterior after the jump, leaves ``[K, ...]``.
        mask: ``[K]`` bool, rows that hold a zoomed view.
        continuation: ``[K, 1]`` float.
        dropped: scalar, share of the zoomed views for which there was no row.
    """

    terms: dict[str, Term]
    latent: Latent
    mask: Tensor
    continuation: Tensor
    dropped: Tensor


class PerSampleTargets(nn.Module):
    """Every jump is scored against its own targets."""

    def forward(self, prediction: Any, target: Tensor, mask: Tensor) -> Tensor:
        """``[K]`` losses."""
        return prediction.loss(target)


class BatchMeanTargets(nn.Module):
    """Every jump is scored against all targets of the batch, averaged: the released code's defect.

    A two-hot target of shape ``[N, 1]`` was broadcast against ``[N, 1, 255]`` logits there.
    Kept for exact reproduction; equal to :class:`PerSampleTargets` for one sample. The
    released mask acts on predictions only, so unresolved spans enter the mean here too.
    """

    def forward(self, prediction: Any, target: Tensor, mask: Tensor) -> Tensor:
        """``[K]`` losses."""
        rows = target.shape[0]
        if not hasattr(prediction, "bins"):  # only two-hot heads were affected
            return prediction.loss(target)
        crossed = type(prediction)(
            prediction.logits.unsqueeze(1).expand(rows, rows, -1), prediction.bins
        ).loss(target.unsqueeze(0).expand(rows, rows, 1))  # [K, K]: prediction i against target j
        return (crossed * mask).sum(1) / mask.sum().clamp(min=1)


class LongBranch(nn.Module):
    """Losses of jumps at the zoomed positions of a window.

    Args:
        capacity: rows set aside, as a share of the window's positions; views beyond it are
            left out at random and counted.
        weight: factor on all terms but the KLs.
        targets: how predictions meet targets.
    """

    def __init__(
        self, *, capacity: float = 0.25, weight: float = 1.0, targets: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.capacity, self.weight = capacity, weight
        self.targets = targets if targets is not None else PerSampleTargets()

    def forward(
        self, world_model: WorldModel, before: Latent, batch: Mapping[str, Tensor], kl: nn.Module
    ) -> LongBranchOutput:
        """Score the jumps of a batch.

        Args:
            world_model: with long-short dynamics and ``jump_steps`` / ``jump_return`` heads.
            before: posteriors of all positions, leaves ``[B*T, ...]``, with gradients.
            batch: the sequence layout; without zoomed views every row is masked.
            kl: the KL terms.
        """
        rows = math.ceil(self.capacity * before.state.shape[0])
        index, mask, dropped = self._select(batch, before.state, rows)
        before = before.map(lambda x: x[index])
        records = self._records(batch, index)
        after = world_model.dynamics.observe_jump(before, world_model.encoder(records))
        feature = after.latent.feature

        labels = world_model.labels(records)
        terms = {
            f"zoomed_{name}": Term(self.weight * self.targets(prediction, labels[name], mask), mask)
            for name, prediction in world_model.predict(feature).items()
        }
        pair = torch.cat([before.feature, feature], -1)
        resolved = mask & records["jump_resolved"].squeeze(-1)
        head: Any
        for name, head in world_model.heads.items():
            if head.reads == "pair":
                loss = self.targets(head(pair), head.label(records), mask)
                terms[name] = Term(self.weight * loss, resolved)
        for name, term in kl(after.posterior_logits, after.prior_logits).items():
            terms[f"zoomed_{name}"] = Term(term.value, mask)
        continuation = 1 - records["terminated"].float()
        # Rows without a view stand in for the state before: never counted, yet a state the model knows.
        latent = after.latent.where(mask, before)
        return LongBranchOutput(terms, latent, mask, continuation, dropped)

    @staticmethod
    def _select(batch: Mapping[str, Tensor], like: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of zoomed views, in ``rows`` rows; which rows hold one; the share dropped."""
        flat = _get(batch, "is_zoomed")
        if flat is None:
            index = torch.arange(rows, device=like.device)
            return index, torch.zeros_like(index, dtype=torch.bool), like.new_zeros(())
        zoomed = flat.reshape(-1)
        # Zoomed positions first, in random order among themselves.
        index = torch.topk(zoomed + torch.rand_like(like[:, 0]), rows).indices
        mask = zoomed[index]
        total = zoomed.sum()
        if rows_are_free(zoomed):  # rows that hold no view need not be computed
            kept = max(int(mask.sum()), 1)
            index, mask = index[:kept], mask[:kept]
        return index, mask, (total - mask.sum()) / total.clamp(min=1)

    @staticmethod
    def _records(batch: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """The zoomed views as records ``[K, ...]`` under the ordinary names."""

        def take(x: Tensor) -> Tensor:
            return x.flatten(0, 1)[index]

        records = {"terminated": take(batch["terminated"])}
        for key in _ZOOMED:
            view = _get(batch, ("zoomed", key))
            plain = _get(batch, key)
            if view is not None:
                records[key] = take(view)
            elif plain is not None:
                records[key] = torch.zeros_like(take(plain))
        ones = torch.ones_like(records["terminated"])
        records["jump"] = torch.zeros_like(ones)  # no second jump right after one
        for key, default in (("jump_steps", 1.0), ("jump_return", 0.0), ("jump_resolved", 0.0)):
            stored = _get(batch, key)
            records[key] = take(stored) if stored is not None else ones.float() * default
        records["jump_resolved"] = records["jump_resolved"].bool()
        return records


def _get(batch: Any, key: str | tuple[str, str]) -> Tensor | None:
    """A key of a TensorDict or of nested mappings, or ``None``."""
    for part in (key,) if isinstance(key, str) else key:
        if batch is None or part not in batch.keys():
            return None
        batch = batch[part]
    return batch
