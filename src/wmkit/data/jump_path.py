"""From records whose jumps are labelled to transitions of different durations."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase

from wmkit.functional import discount_sum


def jump_path(records: TensorDictBase, gamma: float) -> TensorDict:
    """A path through each window: the jump where one is known to end inside the window, else a step.

    What :class:`~wmkit.data.JumpResolver` finds out, as :class:`~wmkit.objectives.LambdaReturnJumpy` reads
    it.

    Args:
        records: TensorDict ``[B, T]`` of windows in the sequence layout, with ``jump_steps``, ``jump_return``
            and ``jump_resolved``.
        gamma: discount of one step.

    Returns:
        TorchRL's transitions ``[B, T-1]``, without gradient: the record where each starts at the root, the
        record where it ends under ``next``. There also stand ``steps_to_next_obs`` float ``[1]``, Δ, and
        ``jump_return`` ``[1]``, the discounted *sum* of the rewards inside, without the arrival's.
        ``("next", "done")`` is also set where a path ends, so that a value stands in for what comes later.
        ``counts`` bool ``[B, T-1]`` is False behind the end of a path, and between two episodes.

    >>> from wmkit.data import jump_path
    >>> flag = torch.zeros(1, 4, 1, dtype=torch.bool)
    >>> records = TensorDict({
    ...     "step": torch.arange(4.0).view(1, 4, 1), "is_init": flag, "done": flag,
    ...     "jump_steps": torch.full((1, 4, 1), 2.0), "jump_return": torch.ones(1, 4, 1),
    ...     "jump_resolved": torch.tensor([[[False], [True], [False], [False]]])}, [1, 4])
    >>> path = jump_path(records, gamma=0.5)
    >>> path["step"].flatten(), path["next", "step"].flatten(), path["counts"].flatten()
    (tensor([0., 1., 3.]), tensor([1., 3., 3.]), tensor([ True,  True, False]))
    >>> path["next", "steps_to_next_obs"].flatten(), path["next", "jump_return"].flatten()
    (tensor([1., 2., 1.]), tensor([0., 1., 0.]))
    """
    device, length = records.get("is_init").device, records.shape[1]
    here = torch.arange(length, device=device)
    ends = here + records.get("jump_steps").squeeze(-1).long()  # [B, T]
    inside = records.get("jump_resolved").squeeze(-1) & (ends > here) & (ends < length)
    ends = torch.where(inside, ends, (here + 1).clamp(max=length - 1))
    places = [torch.zeros_like(ends[:, :1])]
    for _ in range(length - 1):
        places.append(ends.gather(1, places[-1]))
    at = torch.cat(places, 1)  # [B, T]; a path that has arrived at the last record stays there
    rows = torch.arange(len(at), device=device)[:, None]
    path, span = records.detach()[rows, at], at.diff().unsqueeze(-1).float()
    start, after = path[:, :-1], path[:, 1:].copy()
    inner = start.get("jump_return") * discount_sum(span, gamma)
    after.set("steps_to_next_obs", span.clamp(min=1))
    after.set("jump_return", torch.where(span > 1, inner, 0.0))
    after.set("done", after.get("done") | (at[:, 1:] == length - 1).unsqueeze(-1))
    counts = (span > 0) & ~after.get("is_init")
    return start.copy().update({"next": after, "counts": counts.squeeze(-1)})
