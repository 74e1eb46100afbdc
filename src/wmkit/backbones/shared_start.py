"""A backbone whose layers start with the same weights, as TWM's released code (jrobine/twm) has it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from wmkit.backbones.base import SequenceModel
from wmkit.errors import ConfigError


def same_layers(*, backbone: Callable[..., Any], in_dim: int, out_dim: int) -> SequenceModel:
    """A backbone all of whose layers start with the weights of the first (jrobine/twm).

    There every layer is a copy of one template; gradients tell them apart from the first update on.

    Args:
        backbone: called as ``backbone(in_dim=..., out_dim=...)``, has ``layers``.
        in_dim: width D of an input.
        out_dim: width U of an output.

    Raises:
        ConfigError: the backbone has no layers.

    >>> from functools import partial
    >>> from wmkit import backbones
    >>> model = same_layers(backbone=partial(backbones.build, "transformer_xl"), in_dim=4, out_dim=8)
    >>> first, second = (layer.position.weight for layer in model.layers)
    >>> bool((first == second).all()), first is second
    (True, False)
    """
    model = backbone(in_dim=in_dim, out_dim=out_dim)
    if not hasattr(model, "layers"):
        raise ConfigError(
            f"{type(model).__name__} has no layers to start alike: wanted a backbone with layers, such as "
            "transformer_xl; choose one, or leave out compat=released"
        )
    for layer in model.layers[1:]:
        layer.load_state_dict(copy.deepcopy(model.layers[0].state_dict()))
    return model
