"""World-model components for PyTorch, TorchRL and TensorDict.

A *system* (LS-Imagine, DreamerV3, ...) is a YAML page that names parts and numbers; the
parts live in rooms, each a subpackage that imports only from the rooms below it::

    cli > training > systems > control > envs > data > objectives > optim > affordance
        > dynamics > heads > codecs > backbones > nn > functional > fast

``import wmkit`` imports none of them: names are looked up on first use (PEP 562), so the
import costs milliseconds and torch is loaded when something needs it.

>>> import wmkit
>>> "ls_imagine" in wmkit.available("system")
True
>>> wmkit.functional.symlog.__module__.startswith("wmkit.functional")
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmkit.registry import available, register
    from wmkit.systems.build import build
    from wmkit.systems.convert import load_dreamerv3_jax, load_ls_imagine, load_released

ROOMS = (
    "cli",
    "training",
    "systems",
    "control",
    "envs",
    "data",
    "objectives",
    "optim",
    "affordance",
    "dynamics",
    "heads",
    "codecs",
    "backbones",
    "nn",
    "functional",
    "fast",
)
"""The subpackages from the roof to the ground: each imports only from those after it."""

_MODULES = frozenset({*ROOMS, "errors", "registry"})
_ATTRIBUTES = {
    "available": "wmkit.registry",
    "register": "wmkit.registry",
    "build": "wmkit.systems",
    "load_dreamerv3_jax": "wmkit.systems",
    "load_ls_imagine": "wmkit.systems",
    "load_released": "wmkit.systems",
}

__all__ = [
    "ROOMS",
    "__version__",
    "available",
    "build",
    "load_dreamerv3_jax",
    "load_ls_imagine",
    "load_released",
    "register",
]


def __getattr__(name: str) -> Any:
    value: Any
    if name in _MODULES:
        value = importlib.import_module(f"wmkit.{name}")
    elif name in _ATTRIBUTES:
        value = getattr(importlib.import_module(_ATTRIBUTES[name]), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("wmkit")
    else:
        raise AttributeError(f"module 'wmkit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_ATTRIBUTES, "__version__"})
