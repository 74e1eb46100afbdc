"""Time and memory: of an update, of an imagined step, and of a scan over T steps; nothing is learnt.

Times are the least of some repetitions, of the wall clock and of the processor: on a machine with other
work the second says more. Memory is what autograd keeps for the backward pass, each storage counted once,
and how many numbers one roll-out carries from step to step beside its state.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from swap import equal, worlds
from swap.corridor import INPUTS, SYMBOLS, TARGET
from wmkit.backbones import carry_width


def least(call: Callable[[], object], repeats: int, patience: float) -> dict[str, float]:
    """Milliseconds by wall clock and by processor; fewer repetitions once ``patience`` seconds are over."""
    call()
    times, begin = [], time.perf_counter()
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
        if time.perf_counter() - begin > patience:
            break
    walls, cpus = zip(*times, strict=True)
    return {"ms": 1e3 * min(walls), "cpu_ms": 1e3 * min(cpus)}


def kept_mib(call: Callable[[], torch.Tensor]) -> float:
    """What autograd keeps of a forward pass for its backward pass, MiB."""
    kept: dict[int, int] = {}
    alive = []  # an address is used again once its storage is gone

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    del result
    return sum(kept.values()) / 2**20


def world_model(backbone: str, *, size: int, length: int, steps: int, repeats: int, patience: float) -> dict:
    """An update of the world model on ``size`` x ``length`` records, a step of as many roll-outs."""
    system, counted = equal.world_model(backbone, 12, worlds.OVERRIDES, 0)
    system.batch_shape = (size, length)
    batch, dynamics = system.example_batch(), system.world_model.dynamics

    @torch.no_grad()
    def dream() -> None:
        latent = starts
        for _ in range(steps):
            latent = dynamics.step(latent, action)

    with torch.no_grad():
        seen = system.world_model.observe(system.fill(batch)).latent
        starts = seen.map(lambda x: x.flatten(0, 1))
        action = batch["previous_action"].float().flatten(0, 1)
    imagined = {key: value / steps for key, value in least(dream, repeats, patience).items()}
    return {
        **counted,
        "update": least(lambda: equal.learn_model(system, batch), repeats, patience),
        "imagined_step": imagined,
        "update_kept_mib": kept_mib(lambda: equal.model_loss(system, batch)),
        "carried_numbers": carry_width(dynamics.backbone.initial(1)),
    }


def scan(
    backbone: str, lengths: list[int], *, rows: int, longest: int, repeats: int, patience: float
) -> dict:
    """Forward and backward through T steps of a backbone alone, and one step of it after them."""
    model, counted = equal.recaller(backbone, INPUTS, SYMBOLS, longest, TARGET, 0)
    out = {**counted, "lengths": {}}
    for length in lengths:
        symbols = torch.randn(rows, length, INPUTS)

        def learn(symbols: torch.Tensor = symbols) -> None:
            model.zero_grad()
            model(symbols).square().mean().backward()

        times = least(learn, repeats, patience)
        out["lengths"][length] = {**times, "kept_mib": kept_mib(lambda s=symbols: model(s))}
    return out


def run(backbone: str, *, lengths: list[int], repeats: int, patience: float) -> dict:
    """Everything here for one backbone."""
    limits = {"repeats": repeats, "patience": patience}
    return {
        "world_model": world_model(backbone, size=8, length=32, steps=15, **limits),
        "scan": scan(backbone, lengths, rows=4, longest=max(lengths), **limits),
    }
