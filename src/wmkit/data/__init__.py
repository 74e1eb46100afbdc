"""Data: the sequence layout, replay streams, samplers and long-branch pairs.

A collector's transitions become arrival-aligned records (:mod:`wmkit.data.layout`), one stream
of records per environment (:mod:`wmkit.data.streams`), read back as windows ``[B, L]``
(:mod:`wmkit.data.samplers`).

Records are ordinary TensorDicts, so TorchRL's own buffers take them as well. Give every record
its stream's number, cut slices by that number so that they may cross episode borders, and
switch off the two keys that a slice sampler would otherwise rewrite::

    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(100_000), batch_size=16 * 64,
        sampler=SliceSampler(slice_len=64, traj_key="stream", init_key=None, truncated_key=None))
    records["stream"] = torch.full((len(records),), e)
    buffer.extend(records)
    batch = buffer.sample().reshape(16, 64)

One such buffer per environment inside a ``ReplayBufferEnsemble`` keeps streams apart, and
:class:`JumpResolver` adds the spans and returns of jumps to what is sampled. What
:class:`ReplayStreams` adds: ids that survive eviction, latents stored as class indices, sparse
nested images, samplers that count, and files that a killed process leaves whole.
"""

from __future__ import annotations

from wmkit.data.jump_path import jump_path
from wmkit.data.jump_resolver import JumpResolver
from wmkit.data.layout import Chunk, to_chunks, to_sequence, to_transitions
from wmkit.data.pending_pairs import PendingPairs, Resolved
from wmkit.data.samplers import OnlineQueue, Sampler, Uniform, VisitBalanced, Windows
from wmkit.data.streams import ReplayStreams
from wmkit.data.writer import StreamWriter, Written

__all__ = [
    "Chunk",
    "JumpResolver",
    "OnlineQueue",
    "PendingPairs",
    "ReplayStreams",
    "Resolved",
    "Sampler",
    "StreamWriter",
    "Uniform",
    "VisitBalanced",
    "Windows",
    "Written",
    "jump_path",
    "to_chunks",
    "to_sequence",
    "to_transitions",
]
