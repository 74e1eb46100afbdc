"""Recall: a cue, L steps of distraction, a query.

A pure function of length, rows and seed makes the sequences: one of K cues at step 0, then L symbols at
random out of K others, then a query, at which the cue is to be named. Whoever knows nothing is right once
in K.
"""

from __future__ import annotations

import random
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from swap import equal
from wmkit.optim import Learner

SYMBOLS = 8
INPUTS = 2 * SYMBOLS + 1
TARGET = 60_000  # parameters


def sequences(length: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Symbols ``[rows, length + 2, INPUTS]`` one-hot float, and the cues ``[rows]`` int64."""
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(SYMBOLS, (rows, length + 2), generator=generator)
    cues = symbols[:, 0].clone()
    symbols[:, 1:] += SYMBOLS  # distractions
    symbols[:, -1] = 2 * SYMBOLS  # the query
    return F.one_hot(symbols, INPUTS).float(), cues


def run(
    backbone: str, *, lengths: list[int], updates: int, rows: int, tests: int, seed: int, window: int | None
) -> dict:
    """Train one backbone on all lengths mixed, and ask it at each.

    Lengths are drawn so that of each as many symbols are seen: 16 sequences of 32 for one of 512.

    Args:
        backbone: a name of ``wmkit list backbone``.
        lengths: L.
        updates: of ``rows`` sequences of one length each.
        rows: in a batch.
        tests: sequences per length that the accuracy is of.
        seed: of weights and sequences; the same sequences for all backbones.
        window: tokens that a transformer sees; all if None.
    """
    window = max(lengths) + 2 if window is None else window
    model, counted = equal.recaller(backbone, INPUTS, SYMBOLS, window, TARGET, seed)
    learner = Learner(model.parameters(), lambda p: torch.optim.Adam(p, lr=3e-3), 1.0)
    draw, losses = random.Random(seed), []
    order = draw.choices(lengths, [1 / length for length in lengths], k=updates)
    start, cpu = time.perf_counter(), time.process_time()
    for update, length in enumerate(order):
        symbols, cues = sequences(length, rows, seed=1_000_000 * (seed + 1) + update)
        loss = F.cross_entropy(model(symbols), cues)
        learner.backward(loss)
        learner.step()
        losses.append(loss.detach())
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    accuracy = {}
    with torch.no_grad():
        for length in lengths:
            symbols, cues = sequences(length, tests, seed=length)
            chunks = zip(symbols.split(32), cues.split(32), strict=True)
            accuracy[length] = sum(int((model(x).argmax(-1) == y).sum()) for x, y in chunks) / tests
    return {
        **counted,
        **spent,
        "window": window if hasattr(model.backbone, "window") else None,
        "chance": 1 / SYMBOLS,
        "accuracy": accuracy,
        "losses": [round(float(x), 4) for x in torch.stack(losses)],
    }


def reach(backbone: str, *, length: int, rows: int, seed: int) -> dict:
    """How much of the loss's gradient arrives at symbols further and further back, before any update.

    Args:
        backbone: a name of ``wmkit list backbone``.
        length: L.
        rows: sequences.
        seed: of weights and sequences.

    Returns:
        Distances before the query, and the gradient's norm there over that at the query.
    """
    model, _ = equal.recaller(backbone, INPUTS, SYMBOLS, length + 2, TARGET, seed)
    symbols, cues = sequences(length, rows, seed)
    F.cross_entropy(model(symbols.requires_grad_()), cues).backward()
    norm = symbols.grad.double().square().sum((0, 2)).sqrt().flip(0)
    distances = sorted({*range(0, length + 1, max(length // 32, 1)), length + 1})
    return {"distance": distances, "gradient": (norm[distances] / norm[0]).tolist()}
