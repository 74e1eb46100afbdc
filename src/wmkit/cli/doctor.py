"""The checks of ``wmkit doctor``: versions, optional parts and known slow paths of this machine."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
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
    "h5py",
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
    yield "products on the CPU", _products()
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


def _products() -> str:
    from wmkit.fast import onednn_is_quicker

    if onednn_is_quicker():
        return "float32 by oneDNN, which uses AVX-512 on this processor; MKL would not"
    return "PyTorch's own"


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

    from wmkit.training.affordance_stage import oracle
    from wmkit.training.collect import closing
    from wmkit.training.parts import default_parts
    from wmkit.training.settings import Settings, set_up

    Settings.read(config)
    set_up(config)
    parts = default_parts()
    tools = oracle() if config.get("affordance") is not None else None
    with ExitStack() as stack:
        if config.get("data") is not None:
            from wmkit.training.records import Records
            from wmkit.training.run import RunDirectory

            folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            parts = Records(config, RunDirectory(Path(folder), config)).parts(parts)
        base = stack.enter_context(closing(parts.make_env(config, tools, seed=0)))
        system = parts.build(config, base, torch.device("cpu"))
        for name in ("world_model", "actor", "critic"):
            count = sum(p.numel() for p in getattr(system, name).parameters())
            yield f"{name.replace('_', ' ')}", f"{count:,} parameters"
        if config.get("env") is not None:
            yield from _replay(config, parts, base, system)


def _replay(config: Any, parts: Any, base: Any, system: Any) -> Iterator[tuple[str, str]]:
    """Sizes of a replay: a run's own, in files without contents, shown two steps."""
    from wmkit.training.collect import Collection
    from wmkit.training.run import RunDirectory

    env = parts.carry(base, system)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        memory = parts.make_memory(config, RunDirectory(Path(folder), config), system, env.batch_size[0])
        memory.write(Collection(env, system.policy, 2).collect(random=True))
        streams = memory.streams
    held = streams.num_streams * streams.capacity
    sizes, encodings = streams.bytes_by_key(), streams.encodings()
    for key, size in sizes.items():
        yield f"replay {key}", f"{size / held:,.2f} bytes per step{encodings.get(key, '')}"
    each = sum(sizes.values()) / held
    yield "replay", f"{each:,.2f} bytes per step, {each * held / 1e9:.2f} GB for {held:,} steps"
    for name, room in (("memory", _memory()), ("disk", shutil.disk_usage(Path.cwd()).free)):
        if room:
            yield f"replay fits {name}", f"{int(room / each):,} steps in {room / 1e9:.1f} GB"


def _memory() -> int:
    """Bytes of memory of this machine; 0 where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
