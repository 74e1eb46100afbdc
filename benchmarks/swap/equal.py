"""Every backbone at the same number of parameters: one width of each is chosen for it.

A parameter count is quadratic in any single width, so that three counts say all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Composite, OneHot, UnboundedDiscrete

import wmkit

TOLERANCE = 0.02


class Recipe(NamedTuple):
    """Which width of a backbone gives way, in steps of what, and what is set beside it."""

    width: str
    fixed: tuple[str, ...] = ()
    step: int = 1


PIXELS = Composite(pixels=UnboundedDiscrete((3, 64, 64), dtype=torch.uint8))
# Of world models, as overrides of a page; a backbone of another package gives way in its belief.
WORLD_MODEL = {
    "block_gru": Recipe("size.deter", step=8),  # eight blocks
    "gpt": Recipe("+backbone.hidden"),
    "s5": Recipe("backbone.width"),
    "transformer_xl": Recipe("+backbone.hidden", ("backbone.width=96",)),
}


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def matching_width(parameters: Callable[[int], int], target: int, step: int = 1) -> int:
    """The width whose count is nearest to ``target``.

    Args:
        parameters: the count at a width; quadratic in it.
        target: the count that is wanted.
        step: widths are multiples of it.

    Raises:
        ValueError: no width comes within :data:`TOLERANCE`.
    """
    seen = np.array([8, 16, 24]) * step
    curve = np.polyfit(seen, [parameters(int(width)) for width in seen], 2)
    widths = np.arange(1, 4096) * step
    off = np.abs(np.polyval(curve, widths) - target)
    if off.min() > TOLERANCE * target:
        raise ValueError(f"no width gives {target:,} parameters: the nearest is {off.min():,.0f} off")
    return int(widths[off.argmin()])


def world_model(
    backbone: str,
    actions: int,
    overrides: Sequence[str],
    seed: int,
    spec: Composite = PIXELS,
    recipes: Mapping[str, Recipe] = WORLD_MODEL,
) -> tuple[Any, dict]:
    """A system at the size of its page, with another backbone and as many world-model parameters.

    Args:
        backbone: a name of ``wmkit list backbone``.
        actions: how many the environment takes.
        overrides: of the system, for all backbones alike.
        seed: of the weights.
        spec: of observations.
        recipes: what gives way, by backbone.

    Returns:
        The system, and what was counted and chosen.
    """

    def build(*more: str) -> Any:
        overriding = [*overrides, *more]
        return wmkit.build(
            "dreamer_v3_2023", observation_spec=spec, action_spec=OneHot(actions), overrides=overriding
        )

    recipe = recipes.get(backbone, Recipe("size.deter"))

    def page(width: int) -> list[str]:
        return [f"backbone={backbone}", *recipe.fixed, f"{recipe.width}={width}"]

    target = count(build().world_model)
    width = matching_width(lambda w: count(build(*page(w)).world_model), target, recipe.step)
    torch.manual_seed(seed)
    system = build(*page(width))
    return system, {
        "overrides": page(width),
        "page_parameters": target,
        "parameters": count(system.world_model),
        "backbone_parameters": count(system.world_model.dynamics.backbone),
    }


def model_loss(system: Any, batch: TensorDict) -> torch.Tensor:
    """The world model's loss on a batch, all terms together."""
    losses = system._score(system.scene(batch), {})
    return torch.stack([loss.value for loss in losses.values()]).sum()


def learn_model(system: Any, batch: TensorDict) -> torch.Tensor:
    """One update of the world model alone; its loss before."""
    metrics = system.schedule.learn(["world_model"], system._score(system.scene(batch), {}))
    return metrics["loss_world_model"]


class Recaller(nn.Module):
    """A backbone over symbols, and a linear head on its last output.

    Args:
        backbone: a name of ``wmkit list backbone``.
        inputs: width of a symbol.
        classes: of the answer.
        window: tokens that a transformer sees.
        width: the one that gives way: of the output, or inside.
    """

    def __init__(self, backbone: str, inputs: int, classes: int, window: int, width: int) -> None:
        super().__init__()
        options: dict[str, int] = {}
        out = width
        if backbone in ("gpt", "transformer_xl"):
            out = 40 if backbone == "gpt" else 48
            options = {"hidden": width, "window": window}
        self.backbone: Any = wmkit.backbones.build(backbone, inputs, out, **options)
        self.head = nn.Linear(out, classes)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, classes]`` after symbols ``[B, T, inputs]``; the whole window at once."""
        reset = torch.zeros(symbols.shape[:2], dtype=torch.bool)
        u, _ = self.backbone.scan(symbols, self.backbone.initial(len(symbols)), reset)
        return self.head(u[:, -1])


def recaller(
    backbone: str, inputs: int, classes: int, window: int, target: int, seed: int
) -> tuple[Recaller, dict]:
    """A :class:`Recaller` of ``target`` parameters, and what was counted and chosen."""
    torch.manual_seed(seed)

    def build(width: int) -> Recaller:
        return Recaller(backbone, inputs, classes, window, width)

    width = matching_width(lambda w: count(build(w)), target, 8 if backbone == "block_gru" else 1)
    torch.manual_seed(seed)
    model = build(width)
    return model, {"width": width, "parameters": count(model), "backbone_parameters": count(model.backbone)}
