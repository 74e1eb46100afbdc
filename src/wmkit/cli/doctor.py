"""What ``wmkit doctor`` looks at: versions, optional parts and known slow paths of this machine."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "wmkit",
    "torch",
    "torchrl",
    "tensordict",
    "hydra-core",
    "timm",
    "vizdoom",
    "gymnasium",
    "ale-py",
    "crafter",
    "dm_control",
    "minigrid",
    "transformers",
    "triton",
)


def examine(config: Any = None) -> Iterator[tuple[str, str]]:
    """Findings as (name, text); with a configuration also what its system costs.

    >>> dict(examine())["python"].startswith("3")
    True
    """
    import torch

    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in PACKAGES:
        yield package, _version(package)
    yield "processors", f"{os.cpu_count()}; torch uses {torch.get_num_threads()} threads (threads=N sets it)"
    yield "accelerator", _accelerator()
    yield "torchrl extension", _extension()
    yield "pandas", _pandas()
    yield "simulator", _simulator()
    if config is not None:
        yield from _system(config)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} (device=cuda uses it)"
    return "none; everything runs on the CPU"


def _extension() -> str:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("torchrl._torchrl")
        except ImportError:
            return "not loaded with this torch; only TorchRL's prioritised samplers need it, wmkit does not"
    return "loaded"


def _pandas() -> str:
    if importlib.util.find_spec("pandas") is None:
        return "not installed: tensordict looks for it at every TensorDictModule output (about 30 us each)"
    return "installed"


def _simulator() -> str:
    if importlib.util.find_spec("vizdoom") is None:
        return "vizdoom is missing; pip install vizdoom"
    return "vizdoom is installed"


def _system(config: Any) -> Iterator[tuple[str, str]]:
    import torch
    from omegaconf import OmegaConf

    from wmkit.training.affordance_stage import oracle
    from wmkit.training.collect import closing
    from wmkit.training.parts import default_parts, record_bytes

    parts = default_parts()
    tools = oracle() if config.get("affordance") is not None else None
    with closing(parts.make_env(config, tools, seed=0)) as env:
        system = parts.build(config, env, torch.device("cpu"))
    for name in ("world_model", "actor", "critic"):
        count = sum(p.numel() for p in getattr(system, name).parameters())
        yield f"{name.replace('_', ' ')}", f"{count:,} parameters"
    batch = system.example_batch(0)
    size = record_bytes(batch)
    capacity = int(OmegaConf.select(config, "training.replay.capacity", default=100_000))
    yield "replay", f"{size:,} bytes per step, {size * capacity / 1e9:.2f} GB for {capacity:,} steps"
