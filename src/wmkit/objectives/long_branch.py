"""The long-term branch: learning what a jump leads to (LS-Imagine, arXiv:2410.03618, section 3.2).

Positions of a window that carry a zoomed view are gathered into rows, of a fixed number;
each is one jump from its posterior. What is minimised along the window is minimised at the views too, and all
positions, ordinary and zoomed, share one mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wmkit.dynamics import Observed, WorldModel
from wmkit.fast import rows_are_free
from wmkit.objectives.objective import Objective, Scene, Score, Start, Term
from wmkit.plug import Key

NEEDS = {
    "is_zoomed": Key((1,), torch.bool),
    "jump_resolved": Key((1,), torch.bool),
    "jump_steps": Key((1,), torch.float32, 1.0),
    "jump_return": Key((1,), torch.float32),
}


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


class LongBranch(Objective):
    """Objectives along a window and, prefixed with ``zoomed_``, at its zoomed views; and those of the jumps.

    Each view is a jump from its position's posterior. The states after real jumps are starts of imagination
    too.

    Args:
        weights: of the heads that read a jump's two states: ``jump_steps`` and ``jump_return``.
        short: what is minimised along the window, by name; the views have the same weights.
        capacity: rows set aside, as a share of the window's positions; views beyond it are
            left out at random and counted.
        weight: factor on all predictions at the views.
        targets: how predictions meet targets.
        views: keys of a zoomed view, under ``zoomed``: observations, and rewards on arriving there.
        world_model: what is trained, with :class:`~wmkit.dynamics.LongShortRSSM`; :meth:`attach` gives it
            later.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        short: Mapping[str, Objective | None],
        capacity: float = 0.25,
        weight: float = 1.0,
        targets: nn.Module | None = None,
        views: Sequence[str] = ("affordance", "pixels", "reward", "intrinsic_reward"),
        world_model: WorldModel | None = None,
    ) -> None:
        super().__init__(weights)
        self.views = tuple(views)
        kept = {name: objective for name, objective in short.items() if objective is not None}
        self.short, self.capacity, self.weight = nn.ModuleDict(kept), capacity, weight
        self.targets = targets if targets is not None else PerSampleTargets()
        if world_model is not None:
            self.attach(world_model)

    def attach(self, world_model: WorldModel) -> Objective:
        """See :meth:`Objective.attach <wmkit.objectives.Objective.attach>`."""
        for objective in self._short():
            objective.attach(world_model)
        return super().attach(world_model)

    def batch_keys(self, shapes: Mapping[str, Sequence[int]]) -> dict[Any, Key]:
        """Flags and labels of jumps, and the views."""
        images = {key: Key(tuple(shape), torch.uint8) for key, shape in shapes.items() if len(shape) == 3}
        views = {("zoomed", key): images.get(key, Key((1,), torch.float32)) for key in self.views}
        return {**NEEDS, **views}

    def weigh(self, world_model: WorldModel) -> dict[str, float]:
        """Those of the window's terms, of the views' and of the jumps'."""
        short = {name: weight for objective in self._short() for name, weight in objective.weights.items()}
        return short | {f"zoomed_{name}": weight for name, weight in short.items()} | self.given

    def names(self, world_model: WorldModel) -> tuple[str, ...]:
        """See :meth:`Objective.names <wmkit.objectives.Objective.names>`."""
        short = [name for objective in self._short() for name in objective.names(world_model)]
        return (*short, *(f"zoomed_{name}" for name in short), *self._jump_heads(world_model))

    def terms(self, scene: Scene, score: Score | None = None) -> dict[str, Term]:
        """See :meth:`Objective.terms <wmkit.objectives.Objective.terms>`; leaves starts in the scene."""
        model, observed = scene.world_model, scene.observed
        whole = observed.latent.map(lambda x: x.flatten(0, 1))
        positions = len(whole.state)
        index, mask, dropped = self._select(scene.batch, whole.state, math.ceil(self.capacity * positions))
        before, records = whole.map(lambda x: x[index]), self._records(scene.batch, index)
        after = model.dynamics.observe_jump(before, model.encoder.encode(records), model.record(records))
        count = positions + mask.sum()

        def at_view(prediction: Any, target: Tensor) -> Tensor:
            return self.weight * self.targets(prediction, target, mask)

        found = {
            name: term._replace(positions=count)
            for objective in self._short()
            for name, term in objective.terms(scene, score).items()
        }
        view = Scene(model, records, observed=after)
        for objective in self._short():
            for name, term in objective.terms(view, at_view).items():
                found[f"zoomed_{name}"] = Term(term.value, mask, term.group, count)
        resolved = mask & records["jump_resolved"].squeeze(-1)
        for name in self._jump_heads(model):
            head: Any = model.heads[name]
            prediction = model.predict(name, before, after.latent)
            found[name] = Term(at_view(prediction, head.label(records)), resolved, "dynamics", count)
        self._leave_start(scene, after, before, mask, records)
        scene.metrics |= {"zoomed_fraction": mask.sum() / positions, "zoomed_dropped": dropped}
        return found

    def _leave_start(
        self, scene: Scene, after: Observed, before: Any, mask: Tensor, records: Mapping[str, Tensor]
    ) -> None:
        # Rows without a view stand in for the state before: never counted, yet a state the model knows.
        latent = after.latent.where(mask, before).detach()
        scene.starts.append(Start(latent, mask.unsqueeze(-1), 1 - records["terminated"].float()))

    def _short(self) -> list[Any]:
        return list(self.short.values())

    @staticmethod
    def _jump_heads(world_model: WorldModel) -> list[str]:
        heads: dict[str, Any] = dict(world_model.heads.items())
        return [name for name, head in heads.items() if world_model.reads_transition(head)]

    @staticmethod
    def _select(batch: Mapping[str, Any], like: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
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
    def _records(batch: Mapping[str, Any], index: Tensor) -> dict[str, Tensor]:
        """The zoomed views as records ``[K, ...]`` under the ordinary names; the rest as it is at their
        place.
        """

        def take(x: Tensor) -> Tensor:
            return x.flatten(0, 1)[index]

        views = _get(batch, "zoomed")
        records = {key: take(batch[key]) for key in batch.keys() if isinstance(batch[key], Tensor)}
        records |= {key: take(views[key]) for key in (() if views is None else views.keys())}
        records["jump"] = torch.zeros_like(
            records["terminated"], dtype=torch.bool
        )  # no second jump after one
        for key, (_, dtype, default) in NEEDS.items():
            if key not in records:
                records[key] = torch.full_like(records["terminated"], default, dtype=dtype)
        records["jump_resolved"] = records["jump_resolved"].bool()
        return records


def _get(batch: Any, key: str) -> Any:
    """A key of a TensorDict or of a mapping, or ``None``."""
    return batch[key] if key in batch.keys() else None
