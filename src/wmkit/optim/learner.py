"""One optimiser over one group of parameters, with its clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wmkit.errors import CheckpointError, ConfigError


class Learner:
    """Backward, clip, step.

    Args:
        parameters: what it trains.
        optimizer: called as ``optimizer(parameters)``, gives the optimiser.
        clip: largest norm of the whole gradient; ``None`` where the optimiser clips.
        rates: factors on the learning rate of some parameters.
        decay: ``weight_decay`` of some parameters, zero for all others; all have the optimiser's own if not
            given.

    >>> weight = nn.Parameter(torch.ones(2))
    >>> learner = Learner([weight], lambda p: torch.optim.SGD(p, lr=1.0), clip=1.0)
    >>> learner.backward((10 * weight).sum())
    >>> learner.step().item()
    14.1421...
    >>> weight.data
    tensor([0.2929, 0.2929])
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: Callable[[list[Any]], torch.optim.Optimizer],
        clip: float | None,
        rates: Mapping[nn.Parameter, float] | None = None,
        decay: Mapping[nn.Parameter, float] | None = None,
    ) -> None:
        self.parameters, factors = list(parameters), dict(rates or {})
        groups: list[Any] = self.parameters
        kinds = [(factors.get(p, 1.0), None if decay is None else decay.get(p, 0.0)) for p in self.parameters]
        found = list(dict.fromkeys(kinds))
        if found != [(1.0, None)] and found:  # a group for each kind, in the parameters' order otherwise
            by_kind = [
                [p for p, k in zip(self.parameters, kinds, strict=True) if k == kind] for kind in found
            ]
            self.parameters = [p for group in by_kind for p in group]
            groups = [
                {"params": group} if kind[1] is None else {"params": group, "weight_decay": kind[1]}
                for group, kind in zip(by_kind, found, strict=True)
            ]
        self.optimizer = optimizer(groups)
        if groups is not self.parameters:
            for group, kind in zip(self.optimizer.param_groups, found, strict=True):
                group["lr"] *= kind[0]
        self.clip = clip
        self._prepared: list[Any] | None = None
        self._grads: tuple[Tensor, ...] = ()

    def prepare(self) -> None:
        """Get ready to be compiled: what :meth:`step` changes is laid out for a compiler to see.

        Raises:
            ConfigError: the optimiser has no traceable step, or this learner clips (``clip`` must be None).
        """
        make = getattr(self.optimizer, "prepared", None)
        if make is None or self.clip is not None:
            raise ConfigError(
                f"an update cannot be compiled as one graph: found {type(self.optimizer).__name__}, wanted "
                "wmkit.optim.LaProp; set training.compile=false (training.cuda_graph captures any)"
            )
        self._prepared = make()

    def backward(self, loss: Tensor, *, retain: bool = False) -> None:
        """The gradient of ``loss``; ``retain`` keeps its graph for another learner."""
        if torch.compiler.is_compiling():
            self._grads = torch.autograd.grad(loss, self.parameters, retain_graph=retain)
            return
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters, retain_graph=retain)

    def step(self) -> Tensor:
        """Clip and step once; returns the gradient's norm before clipping."""
        if torch.compiler.is_compiling():
            return self._traced()
        if self.clip is None:
            norm = nn.utils.get_total_norm(
                [p.grad for p in self.parameters if p.grad is not None], foreach=True
            )
        else:
            norm = nn.utils.clip_grad_norm_(self.parameters, self.clip, foreach=True)
        self.optimizer.step()
        torch.clear_autocast_cache()  # of the weights as they were
        return norm.detach()

    def _traced(self) -> Tensor:
        """:meth:`step` as a compiler reads it, after :meth:`prepare`."""
        assert self._prepared is not None, "prepare() comes before compiling"
        norm = nn.utils.get_total_norm(self._grads, foreach=True)
        by_parameter = iter(self._grads)
        with torch.no_grad():
            for step in self._prepared:
                step([next(by_parameter) for _ in step.params])
        return norm.detach()

    def state_dict(self) -> dict:
        """The optimiser's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Take moments and step counts back; learning rate and all other options stay as they are.

        Raises:
            CheckpointError: moments of parameters that these are not.
        """
        for i, parameter in enumerate(self.parameters):
            for name, value in state["state"].get(i, {}).items():
                if value.ndim and value.shape != parameter.shape:
                    raise CheckpointError(
                        f"{name} of parameter {i} of an optimiser does not fit: found shape "
                        f"{tuple(value.shape)}, wanted {tuple(parameter.shape)}; use the size and parts of "
                        "the run's own config.yaml"
                    )
        own = [
            {name: value for name, value in group.items() if name not in ("params", "step")}
            for group in self.optimizer.param_groups
        ]
        groups = [saved | options for saved, options in zip(state["param_groups"], own, strict=True)]
        self.optimizer.load_state_dict({**state, "param_groups": groups})
        if self._prepared is not None:
            self.prepare()
