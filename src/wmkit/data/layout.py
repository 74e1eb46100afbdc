"""From TorchRL's transitions to arrival-aligned records, and back.

A collector hands out transitions (root = time t, ``next`` = time t + 1); world models train on
records, where index t holds what is known on arriving at ``o_t``:

    transitions   (o0 a0 | r1 o1)  (o1 a1 | r2 o2)  (o2 a2 | r3 o3 done)   (o0' a0' | ...
    records       o0, -, 0, init   o1, a0, r1   o2, a1, r2   o3, a2, r3, done   o0', -, 0, init ...

An episode of n transitions has n + 1 records, so a batch ``[E, T]`` becomes E sequences of
unequal length. The first root of a batch is the last ``next`` of the batch before it, and is
written once; its latents, which the policy computes only when it acts on it, arrive with the
later batch. :class:`~wmkit.data.writer.StreamWriter` does both for replay.

==================  ===================================================================
in a record         comes from
==================  ===================================================================
``previous_action``  root ``action`` of the transition that led here; 0 where ``is_init``
``reward``           ``next``; 0 where ``is_init``
``terminated/done``  ``next``; False where ``is_init``
``state, belief``    root, as the policy left them (the posterior at t); 0 at the end of
                     an episode, where no policy acts
other keys           root and ``next`` alike; keys of ``next`` alone are 0 where
                     ``is_init``; keys of the root alone (log-probabilities) are dropped
==================  ===================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from wmkit.data.schema import Key
from wmkit.errors import SpecError

LATENTS = ("state", "belief")
EXCLUDE = ("frame", "goal_mask", "achievements", "collector", "carry")
LOG = "log/"  # keys that begin so are the environment's own business and not kept
_FLAGS = ("done", "terminated", "truncated", "is_init", "reward", "previous_action", "index")


class Chunk(NamedTuple):
    """The records that one environment's transitions add to its stream.

    Attributes:
        records: TensorDict ``[n]``, in order of time.
        latents: TensorDict ``[1]`` for the record just before these, or None where the first
            record starts an episode or the policy keeps no latents.
    """

    records: TensorDict
    latents: TensorDict | None


def to_sequence(
    transitions: TensorDictBase,
    *,
    action: str = "action",
    latents: Sequence[str] = LATENTS,
    exclude: Iterable[str] = EXCLUDE,
) -> list[TensorDict]:
    """Arrival-aligned records of every environment; no first and no terminal frame is lost.

    Where a batch starts in the middle of an episode, its first record keeps ``is_init`` False
    and has a zero ``previous_action`` and ``reward``: they lie in the batch before.

    Args:
        transitions: TensorDict ``[*B, T]`` as a collector or a roll-out returns it. Without
            ``is_init`` (``InitTracker()``) it is taken to begin with an episode, and every ``done``
            to be followed by the next one.
        action: key of the action at the root; one-hot or float, ``[..., A]``.
        latents: root keys that the policy writes.
        exclude: top-level keys to leave out.

    Returns:
        One TensorDict ``[n]`` per environment, over the flattened ``*B``.

    Raises:
        SpecError: a key that the layout needs is missing.

    >>> pixels = torch.arange(4.0).view(4, 1)
    >>> flag = torch.zeros(3, 1, dtype=torch.bool)
    >>> transitions = TensorDict({
    ...     "pixels": pixels[:3], "action": torch.ones(3, 2), "is_init": pixels[:3] == 0,
    ...     "next": {"pixels": pixels[1:], "reward": torch.ones(3, 1), "done": flag, "terminated": flag},
    ... }, [3])
    >>> (records,) = to_sequence(transitions)
    >>> records["pixels"].view(-1), records["reward"].view(-1)
    (tensor([0., 1., 2., 3.]), tensor([0., 1., 1., 1.]))
    """
    if "is_init" not in transitions.keys() and ("next", "done") in transitions.keys(True):
        done = transitions.get(("next", "done"))  # [*B, T, 1]
        is_init = torch.cat([torch.ones_like(done[..., :1, :]), done[..., :-1, :]], -2)
        transitions = transitions.copy().set("is_init", is_init)
    chunks = to_chunks(transitions, None, action=action, latents=latents, exclude=exclude)
    return [chunk.records for chunk in chunks]


def to_chunks(
    transitions: TensorDictBase,
    joined: Sequence[bool] | None,
    *,
    action: str = "action",
    latents: Sequence[str] = LATENTS,
    exclude: Iterable[str] = EXCLUDE,
) -> list[Chunk]:
    """:func:`to_sequence`, for batches that continue earlier ones.

    Args:
        transitions: as there.
        joined: per environment, whether the batch before it ended with the record that this
            batch starts from. That record is then left out, and its latents are returned,
            unless the batch starts a new episode. None is False everywhere.
        action: as there.
        latents: as there.
        exclude: as there.
    """
    _require(transitions, action)
    batch = transitions.reshape(-1, transitions.shape[-1])
    joined = [False] * len(batch) if joined is None else joined
    shared, arriving = _keys(batch, action, latents, frozenset(exclude))
    kept = [name for name in latents if name in batch]
    return [_chunk(batch[e], joined[e], action, kept, shared, arriving) for e in range(len(batch))]


def _require(transitions: TensorDictBase, action: str) -> None:
    for key in ("is_init", action, ("next", "reward"), ("next", "done"), ("next", "terminated")):
        if transitions.get(key, None) is None:
            tracked = "append InitTracker() to the environment"
            hint = tracked if key == "is_init" else "pass what a collector returns"
            raise SpecError(
                f"transitions lack the key {key!r}: found {sorted(map(str, transitions.keys()))}, "
                f"wanted TorchRL's root/next layout; {hint}"
            )


def _keys(
    batch: TensorDictBase, action: str, latents: Sequence[str], exclude: frozenset[str]
) -> tuple[list[Key], list[Key]]:
    """Keys that both ends of a transition have, and keys of the arriving end alone."""
    skip = exclude | {*_FLAGS, *latents, action}

    def leaves(part: TensorDictBase) -> list[Key]:
        keys = part.keys(include_nested=True, leaves_only=True)
        return [(k,) if isinstance(k, str) else k for k in keys]  # one with a slash is not nested

    after = [k for k in leaves(batch.get("next")) if k[0] not in skip and not k[0].startswith(LOG)]
    before = set(leaves(batch))
    return [k for k in after if k in before], [k for k in after if k not in before]


def _chunk(
    root: TensorDictBase,
    joined: bool,
    action: str,
    latents: list[str],
    shared: list[Key],
    arriving: list[Key],
) -> Chunk:
    """Interleave one environment's roots (where an episode or the batch starts) with its nexts."""
    after = root.get("next")
    is_init = root.get("is_init")  # [T, 1]
    starts, arrive_at = arrivals(is_init.view(-1), joined)
    continues = not bool(starts[0])
    from_root = starts.nonzero().view(-1)
    start_at = arrive_at[from_root] - 1
    n = int(arrive_at[-1]) + 1

    def merge(value: Tensor, first: Tensor | None = None) -> Tensor:
        merged = value.new_zeros((n, *value.shape[1:]))
        merged[arrive_at] = value
        if first is not None:
            merged[start_at] = first[from_root]
        return merged

    records = TensorDict({}, batch_size=[n])
    for key in shared:
        records.set(key, merge(after.get(key), root.get(key)))
    for key in arriving:
        records.set(key, merge(after.get(key)))
    records.set("previous_action", merge(root.get(action).float()))
    records.set("reward", merge(after.get("reward").float()))
    records.set("is_init", merge(torch.zeros_like(is_init), is_init))
    records.set("terminated", merge(after.get("terminated")))
    records.set("done", merge(after.get("done")))
    patch = {}
    for name in latents:
        value = root.get(name)
        merged = value.new_zeros((n, *value.shape[1:]))
        merged[start_at] = value[from_root]
        # A next is acted on by the root that follows it, unless that root starts another episode.
        acted = (~starts[1:]).nonzero().view(-1)
        merged[arrive_at[acted]] = value[acted + 1]
        records.set(name, merged)
        patch[name] = value[:1]
    return Chunk(records, TensorDict(patch, batch_size=[1]) if continues and patch else None)


def arrivals(is_init: Tensor, joined: bool) -> tuple[Tensor, Tensor]:
    """Places of one environment's transitions among their records.

    Args:
        is_init: bool ``[T]``, of the roots.
        joined: whether the root of the first transition may be the last record of an earlier batch.

    Returns:
        ``starts`` bool ``[T]``, the roots that become records of their own, each just before its ``next``;
        ``arrive_at`` int64 ``[T]``, the record of each transition's ``next``. Other roots are the record
        before their ``next``; -1 is the last record of the earlier batch.

    >>> arrivals(torch.tensor([False, False, True]), joined=True)
    (tensor([False, False,  True]), tensor([0, 1, 3]))
    """
    starts = is_init.clone()
    starts[0] = not joined or bool(starts[0])
    return starts, starts.cumsum(0) + torch.arange(len(starts), device=starts.device)


def to_transitions(
    records: TensorDictBase | Sequence[TensorDictBase],
    *,
    action: str = "action",
    latents: Sequence[str] = LATENTS,
) -> TensorDict:
    """TorchRL's root/next transitions of records: the inverse of :func:`to_sequence`.

    Args:
        records: TensorDict ``[n]`` of one stream, or several that give equally many transitions.
        action: key of the action at the root.
        latents: keys that stay at the root.

    Returns:
        TensorDict ``[T]``, or ``[E, T]`` for a sequence of E; T counts the records that are not
        the first of an episode (or of the stream). ``("next", "truncated")`` is
        ``done & ~terminated``.

    Raises:
        SpecError: the streams give unequal numbers of transitions.
    """
    if not isinstance(records, TensorDictBase):
        each = [to_transitions(r, action=action, latents=latents) for r in records]
        lengths = sorted({len(t) for t in each})
        if len(lengths) != 1:
            raise SpecError(
                f"streams give unequal numbers of transitions: found {lengths}, wanted one number; "
                "convert them one by one"
            )
        return torch.stack(each, 0)
    arrive = (~records.get("is_init").view(-1)[1:]).nonzero().view(-1) + 1  # [T]
    observed = records.exclude("previous_action", "reward", "done", "terminated", "is_init", *latents)
    after, root = observed[arrive], observed[arrive - 1]
    done, terminated = records.get("done")[arrive], records.get("terminated")[arrive]
    after.update({"reward": records.get("reward")[arrive], "is_init": torch.zeros_like(done)})
    after.update({"done": done, "terminated": terminated, "truncated": done & ~terminated})
    root.set("is_init", records.get("is_init")[arrive - 1])
    root.set(action, records.get("previous_action")[arrive])
    for name in ("done", "terminated", "truncated"):
        root.set(name, torch.zeros_like(done))
    for name in latents:
        if name in records:
            root.set(name, records.get(name)[arrive - 1])
    root.set("next", after)
    return root
