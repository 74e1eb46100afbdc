"""What the original codes computed, recorded once, and how a system of ours draws the same samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import wmkit
from wmkit.control import TransitionReturns
from wmkit.functional import unimix_probs
from wmkit.nn import OneHotCategorical
from wmkit.objectives import Scene
from wmkit.systems import System

FILES = Path(__file__).parents[1] / "oracles"


class Recorded:
    """A file of arrays under ``weight:NAME``, ``in:NAME``, ``noise:NAME`` and ``out:NAME``."""

    def __init__(self, name: str) -> None:
        with np.load(FILES / f"{name}.npz") as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}

    def __call__(self, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.arrays[name]))

    def weights(self, kind: str = "weight:") -> dict[str, np.ndarray]:
        """The original's state dict."""
        return {key.removeprefix(kind): x for key, x in self.arrays.items() if key.startswith(kind)}


def near(theirs: Tensor, ours: Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to a share of the largest number, or of one; a trailing axis of one number does not count."""
    theirs, ours = theirs.detach().double(), ours.detach().double()
    assert theirs.numel() == ours.numel(), (theirs.shape, ours.shape)
    off = (theirs.flatten() - ours.flatten()).abs().max().item()
    assert off <= tolerance * max(1.0, theirs.abs().max().item()), f"off by {off:.1e}"


def without_dropout(system: System) -> None:
    """The originals ran without; batch norms may then be in training mode all the same."""
    for module in system.modules():
        if type(module).__name__ == "Dropout":
            for name in ("p", "rate", "share"):
                if hasattr(module, name):
                    setattr(module, name, 0.0)
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0


def likeliest_states(dynamics: Any, noise: Tensor, unimix: float) -> None:
    """Every sample of a state is the arg max of log p + noise ``[G, C]``: the same in any order of calls."""

    def sample(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        probs = unimix_probs(logits, unimix)
        classes = (probs.detach().log() + noise).argmax(-1)
        state = F.one_hot(classes, probs.shape[-1]).float()
        if torch.is_grad_enabled() and probs.requires_grad:
            state = state + (probs - probs.detach())
        return state.flatten(-2), classes

    dynamics.sample = sample


def likeliest_actions(patch: pytest.MonkeyPatch, noise: Tensor) -> None:
    """The same of the policy's samples; ``noise`` ``[A]``."""

    def sample(self: OneHotCategorical, uniform: Tensor | None = None) -> Tensor:
        action = (self.log_probs.detach() + noise).argmax(-1)
        return F.one_hot(action, self.probs.shape[-1]).to(self.probs.dtype)

    patch.setattr(OneHotCategorical, "sample", sample)


def kept(patch: pytest.MonkeyPatch, owner: Any, name: str, keep: Callable[..., None]) -> None:
    """Show ``keep`` every result, and the arguments, of a function or method while it is used as ever."""
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        keep(out, *args, **kwargs)
        return out

    patch.setattr(owner, name, call)


def loaded(name: str, recorded: Recorded, observations: Any, actions: Any, *overrides: str) -> System:
    """A system with the recorded weights, without dropout."""
    system = wmkit.build(
        name, observation_spec=observations, action_spec=actions, overrides=["compat=released", *overrides]
    )
    wmkit.load_released(system, recorded.weights())
    without_dropout(system)
    return system


def weighed(system: System, scene: Scene) -> dict[str, Tensor]:
    """What the world model minimises, by term, each with its weight."""
    return {
        name: objective.weights[name] * term.loss
        for objective in system.objectives.values()
        for name, term in objective.terms(scene).items()
    }


def learned(system: System, scene: Scene) -> dict[str, Any]:
    """What behaviour makes of a scene: roll-out, targets (time first), and the losses of actor and critic."""
    seen: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        kept(patch, system.controller, "dream", lambda out, *_, **__: seen.update(found=out))
        kept(patch, TransitionReturns, "__call__", lambda out, *_, **__: seen.update(targets=out))
        terms = system.controller.learn(scene, system.schedule.slow).terms
    return seen | {name: term.loss for name, term in terms.items()}


def rows_first(x: Tensor) -> Tensor:
    """``[H, N, ...]`` to ``[N, H, ...]``."""
    return x.transpose(0, 1)
