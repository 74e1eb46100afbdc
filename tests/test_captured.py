"""What a CUDA graph asks of an update, as far as it can be shown without a GPU.

An update runs on tensors without memory (PyTorch's FakeTensorMode) of a device that is not the CPU: whoever
looks at a number there, lets data decide a shape or mixes two devices is found out. CUDA's own name cannot
be used, for its gradients ask for a driver; "lazy" tensors go the same ways in wmkit, which knows only the
CPU and the rest.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.utils._foreach_utils as foreach
from tensordict import TensorDict
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchrl.data import Composite, OneHot, Unbounded, UnboundedDiscrete

import wmkit
from wmkit.errors import ConfigError, SpecError
from wmkit.optim import CapturedUpdate
from wmkit.optim.captured import compile_update
from wmkit.systems import System

DEVICE = "lazy"
SPACES = {
    "proprio": Composite(observation=Unbounded((3,))),
    "vision": Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8)),
}
SMALL = ("size=tiny", "batch.size=2", "controller.horizon=2")
SYSTEMS = {
    "dreamer_v3": ("proprio", "batch.length=3"),
    "ls_imagine": ("vision", "batch.length=3"),
    "twm": ("vision", "batch.length=4", "controller.starts.count=2"),
    "storm": (
        *("vision", "batch.length=4", "controller.starts.count=2", "controller.starts.context=2"),
        "controller.starts._target_=wmkit.control.SampledStarts",
    ),
}
PAIRS = "controller.starts._target_=wmkit.control.PairStarts"
UPDATES = [(name, ()) for name in SYSTEMS] + [
    ("storm", (PAIRS,)),
    ("twm", ("controller.starts.restart_states=3",)),
]


def build(name: str, *smaller: str) -> System:
    """A tiny system, the same every time."""
    torch.manual_seed(0)
    space, *overrides = SYSTEMS[name]
    overrides = [*SMALL, *overrides, *smaller]
    return wmkit.build(name, observation_spec=SPACES[space], action_spec=OneHot(4), overrides=overrides)


class OneDevice(TorchDispatchMode):
    """Refuses every operation that reads or writes on two devices, copies from the host among them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)}
        if len(devices) > 1:
            raise RuntimeError(f"{func} is on {', '.join(sorted(devices))}")
        return out


@contextmanager
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, tensors have no memory, and leave their device at no price."""
    for name in ("_get_foreach_kernels_supported_devices", "_get_fused_kernels_supported_devices"):
        devices = [*getattr(foreach, name)(), DEVICE]
        for module in (foreach, importlib.import_module("torch.optim.optimizer")):
            monkeypatch.setattr(module, name, lambda devices=devices: devices, raising=False)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # unknown of this device
    with warnings.catch_warnings(), FakeTensorMode(), OneDevice():
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        yield


def moved(system: System) -> System:
    """What ``system.to(device)`` moves, moved; a tensor kept anywhere else stays behind and is found."""

    def there(x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device=DEVICE)

    memo: dict[int, Tensor] = {id(x): there(x) for x in system.buffers()}
    memo |= {id(x): nn.Parameter(there(x), x.requires_grad) for x in system.parameters()}
    for learner in system.schedule.learners.values():
        scalars = [x for group in learner.optimizer.param_groups for x in group.values()]
        memo |= {id(x): there(x) for x in scalars if isinstance(x, Tensor)}  # they follow the parameters
    system.policy = None
    return copy.deepcopy(system, memo)


def numbers(batch: TensorDict) -> TensorDict:
    """A batch without its memory."""
    return batch.apply(lambda x: torch.empty(x.shape, dtype=x.dtype, device=DEVICE), device=DEVICE)


@pytest.mark.parametrize(("name", "overrides"), UPDATES)
def test_an_update_asks_nothing_of_the_host(name, overrides, monkeypatch):
    system = build(name, *overrides)
    batches = system.example_batches()
    with elsewhere(monkeypatch):
        there = moved(system)
        metrics = there.update(*map(numbers, batches))
        scalars = [value for value in metrics.values() if isinstance(value, Tensor)]
        assert len(scalars) > 10 and all(value.device.type == DEVICE for value in scalars)
        if name == "ls_imagine":
            return
        metrics = there.update(*map(numbers, batches))  # with moments and step counts from before
        assert all(value.device.type == DEVICE for value in metrics.values(True, True))


def test_no_phase_of_pretraining_asks_anything_of_the_host(monkeypatch):
    system = build("twm")
    system.schedule.phases = tuple(phase._replace(updates=1) for phase in system.schedule.phases)
    batch = system.example_batch()
    with elsewhere(monkeypatch):
        there, batch = moved(system), numbers(batch)
        for phase in ("representation", "dynamics", "behaviour"):
            assert there.schedule.now.name == phase
            assert all(value.device.type == DEVICE for value in there.update(batch).values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["twm", "storm"])
def test_a_dream_neither_synchronises_nor_depends_on_capture(name):
    system = build(name, "controller.horizon=15").to("cuda")
    start = system.controller.starts(system.scene(*(x.to("cuda") for x in system.example_batches())))

    def run() -> list[Tensor]:
        found = system.controller.dream(system.world_model, start)
        return [x for x in tree_leaves(found) if x is not None]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    torch.cuda.manual_seed(1)
    graph.replay()
    torch.cuda.manual_seed(1)
    eager = run()
    for a, b in zip(captured, eager, strict=True):
        torch.testing.assert_close(a, b)


def test_the_guard_finds_what_would_not_capture(monkeypatch):
    with elsewhere(monkeypatch):
        x = torch.ones(3, device=DEVICE)
        for wrong, error in (
            (lambda: float(x.sum()), DataDependentOutputException),
            (lambda: x[x > 0], DynamicOutputShapeException),
            (lambda: x.nonzero(), DynamicOutputShapeException),
            (lambda: x.cpu(), RuntimeError),
            (lambda: torch.tensor([1.0], device=DEVICE), RuntimeError),
            (lambda: x + torch.ones(3), RuntimeError),
            (lambda: x + torch.ones(()), RuntimeError),
        ):
            with pytest.raises(error):
                wrong()


def addresses(system: System) -> dict[str, int]:
    """Where everything lies that lives from update to update."""
    found = {name: x.data_ptr() for name, x in (*system.named_parameters(), *system.named_buffers())}
    for name, learner in system.schedule.learners.items():
        for i, group in enumerate(learner.optimizer.param_groups):
            found |= {f"{name}.{i}.{k}": x.data_ptr() for k, x in group.items() if isinstance(x, Tensor)}
        for i, state in enumerate(learner.optimizer.state.values()):
            found |= {f"{name}.{i}.{k}": x.data_ptr() for k, x in state.items() if isinstance(x, Tensor)}
    return found


@pytest.mark.parametrize("name", ["dreamer_v3", "storm", "twm"])
def test_what_lives_on_stays_where_it_is_and_results_are_the_callers(name):
    captured, plain = build(name), build(name)
    update = CapturedUpdate(captured)
    batches = captured.example_batches()

    def buffers() -> list[int]:
        return [x.data_ptr() for batch in update._batches for x in batch.values()]

    torch.manual_seed(1)
    first = update(*batches)
    known, kept, held = addresses(captured), first.clone(), buffers()
    assert len(known) > 3 * len(list(captured.critic.parameters()))
    second = update(*captured.example_batches(seed=1))
    assert addresses(captured) == known and buffers() == held
    assert (first == kept).all() and not torch.equal(first["loss_critic"], second["loss_critic"])

    torch.manual_seed(1)
    plain.update(*batches)
    expected = plain.update(*plain.example_batches(seed=1))
    assert set(expected.keys()) == set(second.keys())
    torch.testing.assert_close(second["loss_critic"], expected["loss_critic"], rtol=0, atol=0)
    for mine, theirs in zip(captured.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(SpecError, match=r"wanted \[2, "):
        update(batches[0][:, 1:], *batches[1:])


@pytest.mark.parametrize("name", SYSTEMS)
def test_an_update_in_half_precision_is_near_the_one_in_float32(name):
    losses = []
    for precision in (None, torch.bfloat16):
        update = CapturedUpdate(system := build(name), autocast=precision)
        torch.manual_seed(1)
        losses.append(update(*system.example_batches())["loss_world_model"])
        assert all(p.isfinite().all() and p.dtype == torch.float32 for p in system.parameters())
    torch.testing.assert_close(*losses, rtol=0.02, atol=0)


def test_updates_of_one_kind_do_the_same_things():
    schedule = build("dreamer_v3", "+schedule.slow.critic.every=3").schedule
    moves = schedule.phase
    kinds = []
    for _ in range(7):
        kinds.append(schedule.phase == moves)
        schedule.follow()
    assert kinds == [True, False, False, True, False, False, True]

    plain = build("dreamer_v3").schedule
    moves = plain.phase
    plain.follow()
    assert plain.phase == moves
    tokens = build("twm", "training.pretrain=10").schedule
    names, kinds = [], []
    for _ in range(12):
        names.append(tokens.now.name)
        kinds.append(tokens.phase)
        tokens.follow()
    assert names == ["representation"] * 6 + ["dynamics"] * 3 + ["behaviour"] + ["together"] * 2
    assert len(set(kinds)) == 4 and kinds[0] == kinds[5] and kinds[-1] == kinds[-2]


def test_a_whole_update_compiles_as_one_graph():
    compiled, eager = (build("dreamer_v3", "batch.length=2", "controller.horizon=1") for _ in range(2))
    batch = eager.example_batch()
    before = [parameter.clone() for parameter in eager.parameters()]
    # `fullgraph` raises at a break. Without a code generator: the trace is what is tested, and it takes long.
    update = compile_update(compiled, backend="eager")
    frames = torch._dynamo.utils.counters["stats"]
    frames.clear()
    for i in range(2):  # the first has a learning rate of zero
        torch.manual_seed(i)
        found = update(batch)
        torch.manual_seed(i)
        expected = eager.update(batch)
        for key in ("loss_joint", "loss_actor", "loss_replay_critic", "grad_norm_joint"):
            torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6)
    assert frames["unique_graphs"] == 1
    changed = 0
    for mine, theirs, first in zip(compiled.parameters(), eager.parameters(), before, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)
        changed += not torch.equal(theirs, first)
    assert changed > len(before) / 2


def test_other_optimisers_are_refused_by_the_compiler():
    with pytest.raises(ConfigError, match="LaProp"):
        compile_update(build("storm"))
