"""One optimiser over one group of parameters, with its clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
        decay: ``weight_decay`` of the first so many parameters, zero for all others: ``(decay, count)``.

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
        optimizer: Callable[[Any], torch.optim.Optimizer],
        clip: float | None,
        decay: tuple[float, int] | None = None,
    ) -> None:
        self.parameters = list(parameters)
        groups: Any = self.parameters
        if decay is not None:
            decayed, others = self.parameters[: decay[1]], self.parameters[decay[1] :]
            groups = [{"params": decayed, "weight_decay": decay[0]}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = optimizer(groups)
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
