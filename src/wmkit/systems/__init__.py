"""Systems: one page each, composed of parts, ready to act and to learn."""

from wmkit.systems.build import build, build_from
from wmkit.systems.convert import (
    dreamerv3_jax_parameters,
    load_dreamerv3_jax,
    load_ls_imagine,
    load_released,
    released_parameters,
)
from wmkit.systems.pages import compose
from wmkit.systems.system import System

__all__ = [
    "System",
    "build",
    "build_from",
    "compose",
    "dreamerv3_jax_parameters",
    "load_dreamerv3_jax",
    "load_ls_imagine",
    "load_released",
    "released_parameters",
]
