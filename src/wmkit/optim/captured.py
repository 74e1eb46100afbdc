"""A whole update as one CUDA graph: recorded once, then replayed with new batches.

An update of a small model is some ten thousand short kernels, and launching them one by one takes a host
many times as long as the device needs to run them. A CUDA graph launches all of them at once. What it
records it repeats to the letter: the same kernels on the same addresses. So nothing in an update may look
at a number, change a shape or bring something from the host, and everything that lives from update to
update (weights, moments, step counts, running percentiles) stays where it is.

    batch ──copy──▶ buffers ──▶ update (eager, then a recording) ──▶ results ──copy──▶ metrics, latents

The first updates run as ever, on a stream of their own: they are PyTorch's warm-up and count as updates.
On other devices every update does, through the same buffers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from wmkit.errors import ConfigError, SpecError

Key = str | tuple[str, ...]


@dataclass
class _Results:
    """What one update leaves behind: scalars side by side, the rest as it is."""

    names: list[Key]
    scalars: Tensor  # [M] float32
    larger: TensorDictBase

    @classmethod
    def of(cls, metrics: TensorDictBase) -> _Results:
        leaves = metrics.items(include_nested=True, leaves_only=True)
        known = {key: value.float() for key, value in leaves if value.ndim == 0}
        scalars = torch.stack(list(known.values())) if known else torch.zeros(0)
        return cls(list(known), scalars, metrics.exclude(*known))

    def copied(self) -> TensorDict:
        """In memory of their own: the next update writes into this one."""
        metrics = self.larger.clone()
        for name, value in zip(self.names, self.scalars.clone().unbind(), strict=True):
            metrics[name] = value
        return metrics


class CapturedUpdate:
    """``system.update`` behind fixed buffers: on CUDA one graph, elsewhere the same calls without one.

    A system whose updates are of several kinds (its schedule's ``phase``, equal for updates that do the same
    things) gets a recording of each. One made for other addresses is dropped where an optimiser's state was
    loaded; after anything else that moves weights, call :meth:`forget`. ``compiling`` is how many seconds the
    first updates of each kind took where they are compiled: no time for learning.

    Args:
        system: on the device it learns on.
        warm_up: ordinary updates of a kind before it is recorded, at least one (moments are made then).
        compiled: compile the update as well, as one graph of the compiler's (``fullgraph=True``); takes
            minutes once. True for the default backend, or a backend's name.
        autocast: precision of products and convolutions; none leaves that of the weights.
        record: false never records, on CUDA either.

    Raises:
        SpecError: on call, a batch unlike the first one.

    >>> from torchrl.data import Composite, OneHot, Unbounded
    >>> import wmkit
    >>> spec, tiny = Composite(observation=Unbounded((2,))), ["size=tiny", "batch.size=2", "batch.length=3"]
    >>> system = wmkit.build("dreamer_v3", observation_spec=spec, action_spec=OneHot(3), overrides=tiny)
    >>> update = CapturedUpdate(system)
    >>> update(system.example_batch())["loss_joint"].shape
    torch.Size([])
    """

    def __init__(
        self,
        system: Any,
        *,
        warm_up: int = 3,
        compiled: bool | str = False,
        autocast: torch.dtype | None = None,
        record: bool = True,
    ) -> None:
        self.system, self.warm_up, self.autocast = system, max(int(warm_up), 1), autocast
        self.device = next(system.parameters()).device
        self._update: Callable[..., TensorDict] = system.update
        self.compiling, self._compiles, self._compiled = 0.0, bool(compiled), set[Hashable]()
        if compiled:
            self._update = compile_update(system, backend="inductor" if compiled is True else compiled)
        records = record and self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if records else None
        self._batches: list[TensorDict] = []
        self.forget()

    def forget(self) -> None:
        """Drop all recordings; the next updates warm up anew."""
        self._recordings: dict[Hashable, tuple[torch.cuda.CUDAGraph, _Results]] = {}
        self._done: dict[Hashable, int] = {}
        self._states = self._optimiser_states()

    @property
    def recorded(self) -> tuple[Hashable, ...]:
        """Kinds of updates that are replayed from now on."""
        return tuple(self._recordings)

    @property
    def records_next(self) -> bool:
        """Whether the next call records: no other thread may then draw random numbers on the device."""
        phase = getattr(self._schedule, "phase", None)
        warm = self._done.get(phase, 0) >= self.warm_up
        return self._stream is not None and phase not in self._recordings and warm

    def __call__(self, *batches: TensorDictBase) -> TensorDict:
        """One update; see :meth:`System.update <wmkit.systems.system.System.update>`.

        Args:
            batches: what it takes, on any device; copied.

        Returns:
            Metrics and ``replay_context``, the caller's own, on the system's device.
        """
        self._fill(batches)
        if self._stream is None:
            return self._run().copied()
        if any(x is not y for x, y in zip(self._states, self._optimiser_states(), strict=True)):
            self.forget()
        phase = getattr(self._schedule, "phase", None)
        if phase in self._recordings:
            graph, results = self._recordings[phase]
            graph.replay()
            if self._schedule is not None:  # a recording does not hold what the host counts
                self._schedule.updates += 1
            return results.copied()
        done = self._done.get(phase, 0)
        if done < self.warm_up:
            self._done[phase] = done + 1
            with self._beside():
                return self._run().copied()
        graph = torch.cuda.CUDAGraph()
        self._allow_capture()
        # Other threads may go on sampling meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            results = self._run()
        self._recordings[phase] = graph, results
        graph.replay()  # recording alone computes nothing
        return results.copied()

    # -- pieces --------------------------------------------------------------------------

    @property
    def _schedule(self) -> Any:
        return getattr(self.system, "schedule", None)

    def _run(self) -> _Results:
        started, phase = time.monotonic(), getattr(self._schedule, "phase", None)
        precision: AbstractContextManager = nullcontext()
        if self.autocast is not None:
            precision = torch.autocast(self.device.type, self.autocast)
        # Gradients in this thread: another one would not know the precision, nor that it is being recorded.
        with torch.autograd.set_multithreading_enabled(False), precision:
            results = _Results.of(self._update(*self._batches))
        if self._compiles and phase not in self._compiled:
            self._compiled.add(phase)
            self.compiling += time.monotonic() - started
        return results

    def _fill(self, batches: Sequence[TensorDictBase]) -> None:
        """Copy batches to where every update reads them."""
        if not self._batches:
            self._batches = [_like(batch, self.device) for batch in batches]
        for batch, kept in zip(batches, self._batches, strict=True):
            self._copy(batch, kept)

    @staticmethod
    def _copy(batch: TensorDictBase, kept: TensorDict) -> None:
        leaves = dict(batch.items(include_nested=True, leaves_only=True))
        held = dict(kept.items(include_nested=True, leaves_only=True))
        found, wanted = _describe(leaves), _describe(held)
        if found != wanted:
            key = next(k for k in {**wanted, **found} if found.get(k) != wanted.get(k))
            raise SpecError(
                f"batch key {key!r} is {found.get(key, 'missing')}: wanted {wanted.get(key, 'none')}, as in "
                "the first batch; make a CapturedUpdate for every kind of batch"
            )
        for key, buffer in held.items():
            buffer.copy_(leaves[key])

    def _beside(self) -> Any:
        """The stream that is recorded later: what it needs is there before, what follows waits for it."""
        return _Beside(self._stream)

    def _optimiser_states(self) -> list[Any]:
        learners = getattr(self._schedule, "learners", {})
        return [learner.optimizer.state for learner in learners.values()]

    def _allow_capture(self) -> None:
        """PyTorch's own optimisers ask to be told."""
        for learner in getattr(self._schedule, "learners", {}).values():
            for group in learner.optimizer.param_groups:
                if "capturable" in group:
                    group["capturable"] = True


def make_update(system: Any, settings: Mapping[str, Any]) -> Callable[..., TensorDict]:
    """What a trainer calls with each batch, on any device, as ``training.cuda_graph`` and ``compile`` say.

    Args:
        system: on the device it learns on; computes in its ``carry_dtype``.
        settings: the ``training`` block.
    """
    record, compiled = bool(settings.get("cuda_graph", False)), bool(settings.get("compile", False))
    precision = getattr(system, "carry_dtype", torch.float32)
    autocast = None if precision == torch.float32 else precision
    if record or compiled or autocast:
        return CapturedUpdate(system, compiled=compiled, autocast=autocast, record=record)
    device = next(system.parameters()).device
    return lambda *batches: system.update(*(batch.to(device) for batch in batches))


class _Beside:
    """Work on another stream, in order with the current one before and after."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        self._context = torch.cuda.stream(self.stream)
        self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)


def compile_update(system: Any, backend: str = "inductor") -> Callable[..., TensorDict]:
    """``system.update`` compiled as one graph: losses, gradients, optimiser and slow critic.

    Args:
        system: whose update to compile.
        backend: of :func:`torch.compile`.

    Raises:
        ConfigError: this PyTorch does not trace gradients (2.11 and later do), or an optimiser's step
            cannot be traced (:class:`~wmkit.optim.LaProp`'s can).
    """
    from torch._dynamo import config

    if not hasattr(config, "trace_autograd_ops"):
        raise ConfigError(
            f"an update cannot be compiled as one graph: found torch {torch.__version__}, wanted 2.11 or "
            "later; upgrade torch or set training.compile=false"
        )
    for learner in system.schedule.learners.values():
        learner.prepare()
    compiled = torch.compile(
        system.update, fullgraph=True, backend=backend, options={"guard_filter_fn": _lasting}
    )

    def update(*batches: TensorDictBase) -> TensorDict:
        with config.patch(trace_autograd_ops=True):
            return compiled(*batches)

    return update


def _lasting(guards: Sequence[Any]) -> list[bool]:
    """Conditions that a compiled graph keeps: not how many classes TensorDict has met, wherever it was."""
    return ["_TENSORCLASS_MEMO" not in guard.name for guard in guards]


def _like(batch: TensorDictBase, device: torch.device) -> TensorDict:
    """Buffers of a batch's keys, shapes and dtypes."""
    return batch.apply(lambda x: torch.empty(x.shape, dtype=x.dtype, device=device), device=device)


def _describe(leaves: dict[Key, Tensor]) -> dict[Key, str]:
    return {key: f"{list(value.shape)} of {value.dtype}" for key, value in leaves.items()}
