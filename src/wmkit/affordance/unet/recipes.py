"""How an affordance U-Net is trained: a recipe is optimiser, schedule, loss, batch and augmentation.

``published`` is LS-Imagine's (arXiv:2410.03618, released code); ``small`` gets the small U-Net trained in
minutes on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from wmkit.affordance.unet.augment import RandomAffine
from wmkit.errors import ConfigError


def poly_decay(progress: float, power: float = 0.9) -> float:
    """``(1 - progress)^0.9``, without warm-up."""
    return (1 - progress) ** power


def warm_cosine(progress: float, warmup: float = 0.05) -> float:
    """Linear up over the first twentieth, then half a cosine down to zero."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def sgd(parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
    """Momentum 0.9, weight decay 1e-4."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)


def adamw(parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
    """AdamW, weight decay 0.01."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-2)


def squared_error(prediction: Tensor, label: Tensor) -> Tensor:
    """Plain mean squared error between maps in [0, 1]."""
    return F.mse_loss(prediction, label)


def cross_entropy(prediction: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy of soft labels, less their own entropy, so that a perfect map costs nothing.

    Where goals fill less than a hundredth of the picture, squared error through a sigmoid settles
    on all-black maps from which no gradient leads out; this one does not saturate.
    """
    prediction = prediction.clamp(1e-6, 1 - 1e-6)
    entropy = -(torch.xlogy(label, label) + torch.xlogy(1 - label, 1 - label)).mean()
    return F.binary_cross_entropy(prediction, label) - entropy


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Attributes:
        lr: learning rate at its peak, for ``batch_size``.
        batch_size: frames per iteration.
        epochs: passes over the frames, unless the caller gives a number.
        optimiser: parameters and learning rate to an optimiser.
        schedule: progress in [0, 1] to a factor on the learning rate.
        loss: prediction and label ``[B,1,h,w]`` to a scalar.
        augment: moves frames and labels alike.
        focus: share of each batch drawn from frames whose label is brighter than the mean label; a
            random agent sees its goal in few frames.
    """

    lr: float
    batch_size: int
    epochs: int
    optimiser: Callable[[Iterable[nn.Parameter], float], Optimizer]
    schedule: Callable[[float], float]
    loss: Callable[[Tensor, Tensor], Tensor] = squared_error
    augment: RandomAffine = field(default_factory=RandomAffine)
    focus: float = 0.0

    def with_batch(self, batch_size: int) -> Recipe:
        """Another batch size, the learning rate scaled with it."""
        return replace(self, batch_size=batch_size, lr=self.lr * batch_size / self.batch_size)


RECIPES = {
    "published": Recipe(lr=0.01, batch_size=24, epochs=200, optimiser=sgd, schedule=poly_decay),
    "small": Recipe(
        lr=4e-3,
        batch_size=16,
        epochs=20,
        optimiser=adamw,
        schedule=warm_cosine,
        loss=cross_entropy,
        focus=0.5,
    ),
}


def recipe(name: str | Recipe) -> Recipe:
    """A recipe by name, or as it is.

    Raises:
        ConfigError: no such recipe.

    >>> recipe("published").batch_size
    24
    """
    if isinstance(name, Recipe):
        return name
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r} is unknown: wanted one of {', '.join(RECIPES)}; pick one of them")
    return RECIPES[name]
