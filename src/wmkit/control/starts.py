"""Where imagination starts: which real states, and with which memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wmkit.arguments import check_range
from wmkit.dynamics import Latent, WorldModel
from wmkit.errors import SpecError
from wmkit.objectives import Scene, Start, episode_ends


class AllStates:
    """Every state of the window, and those that objectives left (the Dreamers, LS-Imagine).

    Args:
        last: those of the last records too (not in DreamerV1 with a discount head).
    """

    shortest = 1

    def __init__(self, last: bool = True) -> None:
        self.last = last

    def windows(self, frames: int) -> tuple[int, int] | None:
        """No windows of its own."""
        return None

    def __call__(self, scene: Scene) -> Start:
        """All of them; those of the window first, in order."""
        latent = scene.observed.latent
        mask = torch.ones_like(scene.batch["terminated"], dtype=torch.bool)
        if not self.last:
            mask[:, -1] = False
        starts = [
            Start(
                latent.map(lambda x: x.flatten(0, 1)).detach(),
                mask.flatten(0, 1),
                1 - scene.batch["terminated"].float().flatten(0, 1),
            ),
            *scene.starts,
        ]
        latents, masks, continuations, *_ = zip(*starts, strict=True)
        if len(starts) == 1:
            return starts[0]
        return Start(Latent.cat(latents), torch.cat(masks), torch.cat(continuations))


class PairStarts:
    """Starts from records of the batch, each with a few records before it in memory (TWM).

    All windows of ``context + 1`` records are candidates, drawn without replacement; those whose last
    record ends an episode are drawn only where nothing else is left, and do not count.

    Args:
        count: starts N, 400 in TWM; as many as there are where a batch has fewer.
        context: records before a start that fill the sequence model's memory: one in TWM, although its
            model is trained on up to sixteen.
        ahead: last records of the batch that nothing starts from.
        restart_states: how many states an update is given beside its batch, drawn uniformly from all records,
            for roll-outs that begin anew (TWM); zero takes the starts.

    Raises:
        ConfigError: ``count`` is not positive, or another number negative.
    """

    def __init__(self, count: int, context: int = 1, ahead: int = 1, restart_states: int = 0) -> None:
        check_range("count", count, 1)
        check_range("context", context, 0)
        check_range("ahead", ahead, 0)
        check_range("restart_states", restart_states, 0)
        self.count, self.context, self.ahead, self.restart_states = count, context, ahead, restart_states
        self.shortest = context + 1 + ahead  # records of a window

    def windows(self, frames: int) -> tuple[int, int] | None:
        """Single states, with the older frames of their stacks before each."""
        return (self.restart_states, frames) if self.restart_states else None

    @torch.no_grad()
    def __call__(self, scene: Scene) -> Start:
        """Draw starts from the window."""
        model, latent, restarts = scene.world_model, scene.observed.latent, self._restarts(scene)
        length = latent.state.shape[1] - self.ahead
        rows, windows = len(latent.state), length - self.context
        if windows < 1:
            raise SpecError(
                f"a window of {latent.state.shape[1]} records has no start with {self.context} before it and "
                f"{self.ahead} after it: wanted {self.shortest} or more; lengthen the window or lower context"
            )
        device = latent.state.device
        usable = ~episode_ends(scene.batch)[:, self.context : length].flatten()  # [B * windows]
        score = torch.rand(rows * windows, device=device) + usable
        chosen = score.topk(min(self.count, rows * windows)).indices
        row = (chosen // windows).unsqueeze(1)
        time = (chosen % windows).unsqueeze(1) + torch.arange(self.context + 1, device=device)  # [N, c+1]

        def take(x: Tensor) -> Tensor:
            return x[row, time].detach()

        record = {key: take(value) for key, value in model.record(scene.batch).items()}
        with model.evaluating():
            start = model.dynamics.remember(latent.light().map(take), record)
        mask = usable[chosen].unsqueeze(1)
        return Start(start, mask, torch.ones_like(mask, dtype=torch.float32), restarts)

    def _restarts(self, scene: Scene) -> Latent | None:
        if scene.beside is None:
            return None
        last = {key: value[:, -1:] for key, value in scene.beside.items()}
        return encoded(scene.world_model, last).map(lambda x: x[:, 0])


class PrefixStarts:
    """One start for each window, after a prefix of it; one length is drawn for all (TransDreamer,
    arXiv:2202.09481).

    The start is the record after the prefix; with :class:`~wmkit.dynamics.FromPrior` it is what the model
    expects there.

    Args:
        least: records of the shortest prefix.
        most: of the longest, 13 in TransDreamer; as many as there are where windows are shorter.

    Raises:
        ConfigError: ``least`` is not positive, or ``most`` less.
    """

    shortest = 2

    def __init__(self, least: int = 1, most: int = 13) -> None:
        check_range("least", least, 1)
        check_range("most", most, least)
        self.least, self.most = least, most

    def windows(self, frames: int) -> tuple[int, int] | None:
        """No windows of its own."""
        return None

    @torch.no_grad()
    def __call__(self, scene: Scene) -> Start:
        """Draw the prefix; shapes do not depend on it: what is before a window is cut off by a reset."""
        model, latent = scene.world_model, scene.observed.latent
        most = min(self.most, latent.state.shape[1] - 1)
        device = latent.state.device
        length = torch.randint(min(self.least, most), most + 1, (1,), device=device)
        time = length + torch.arange(-most, 1, device=device)  # [most + 1], negative before the window

        def take(x: Tensor) -> Tensor:
            return x[:, time.clamp(min=0)].detach()

        record = {key: take(value) for key, value in model.record(scene.batch).items()}
        record["is_init"] = record["is_init"] | (time == 0)
        with model.evaluating():
            start = model.dynamics.remember(latent.light().map(take), record)
        ended = take(scene.batch["terminated"])[:, -1]
        return Start(start, torch.ones_like(ended, dtype=torch.bool), 1 - ended.float())


class SampledStarts:
    """Starts from windows that are sampled for dreams alone, one from each (STORM).

    Args:
        count: windows N that an update is given beside its batch, 1,024 in STORM.
        context: records of a window before its last; eight in STORM.
        look: encode the last record too; false where dreams begin at what is expected there
            (:class:`~wmkit.dynamics.FromPrior`).
    """

    shortest = 1

    def __init__(self, count: int, context: int = 8, look: bool = True) -> None:
        check_range("count", count, 1)
        check_range("context", context, 0)
        self.count, self.context, self.look = count, context, look or not context

    def windows(self, frames: int) -> tuple[int, int] | None:
        """N and records of each."""
        return self.count, self.context + 1

    @torch.no_grad()
    def __call__(self, scene: Scene) -> Start:
        """The last record of every window, also where an episode ends."""
        model, beside = scene.world_model, scene.beside
        assert beside is not None, "a system whose starts have windows of their own is given them"
        latent = encoded(model, beside, blank=0 if self.look else 1)
        with model.evaluating():
            start = model.dynamics.remember(latent, model.record(beside))
        mask = torch.ones(len(latent.state), 1, dtype=torch.bool, device=latent.state.device)
        return Start(start, mask, torch.ones_like(mask, dtype=torch.float32))


class RememberedStarts:
    """Starts from windows that are sampled for dreams alone; the actor's own memory sees them whole (IRIS).

    Records that end an episode start nothing that counts.

    Args:
        count: windows N that an update is given beside its batch, 64 in IRIS.
        burn_in: records of a window before its last that the actor's memory goes through, 20 in IRIS.
        context: how many of them the sequence model reads as well; none in IRIS, whose dreams begin with one
            frame.

    Raises:
        ConfigError: ``count`` is not positive, or another number negative.
    """

    shortest = 1

    def __init__(self, count: int, burn_in: int = 20, context: int = 0) -> None:
        check_range("count", count, 1)
        check_range("burn_in", burn_in, 0)
        check_range("context", context, 0, burn_in)
        self.count, self.burn_in, self.context = count, burn_in, context

    def windows(self, frames: int) -> tuple[int, int] | None:
        """N and records of each."""
        return self.count, self.burn_in + 1

    @torch.no_grad()
    def __call__(self, scene: Scene) -> Start:
        """The last record of every window."""
        model, beside = scene.world_model, scene.beside
        assert beside is not None, "a system whose starts have windows of their own is given them"
        before, record = encoded(model, beside), model.record(beside)
        read = slice(self.burn_in - self.context, None)
        with model.evaluating():
            start = model.dynamics.remember(
                before.map(lambda x: x[:, read]), {key: value[:, read] for key, value in record.items()}
            )
        last = beside["terminated"][:, -1].bool()
        if "done" in beside:
            last = last | beside["done"][:, -1].bool()
        one = torch.ones_like(last, dtype=torch.float32)
        return Start(start, ~last, one, None, before, record["is_init"])


@torch.no_grad()
def encoded(world_model: WorldModel, batch: Mapping[str, Any], *, blank: int = 0) -> Latent:
    """States ``[B, T]`` of windows that the model learns nothing from: without dropout, with empty beliefs.

    The last ``blank`` records are not looked at: zeros for states, class 0 throughout.
    """
    dynamics, length = world_model.dynamics, batch["is_init"].shape[1]
    seen = {key: value[:, : length - blank] for key, value in batch.items()}
    with world_model.evaluating():
        found = dynamics.represent(world_model.encoder.encode(seen))
    state, classes = (None if x is None else F.pad(x, (0, 0, 0, blank)) for x in (found.state, found.classes))
    assert state is not None
    return Latent(state, state.new_zeros(*state.shape[:2], dynamics.belief_dim), None, classes)
