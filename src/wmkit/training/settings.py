"""Settings of a run: the ``training`` block of a page as typed values; seed, threads and device."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from wmkit.arguments import check_arguments, check_range, check_value
from wmkit.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """Settings of a trainer; ``systems/conf/training/default.yaml`` explains them.

    >>> Settings.read(OmegaConf.create({"training": {"steps": 1e6, "train_ratio": 4}})).steps
    1000000
    >>> Settings.read(OmegaConf.create({"training": {"stepz": 3}}))
    Traceback (most recent call last):
    wmkit.errors.ConfigError: training.stepz is 3, which Settings does not take: wanted one of steps, ...
    """

    steps: int = 20_000
    time_limit: float | None = None
    prefill: int = 1000
    prefill_actions: Literal["random", "policy"] = "random"
    prefill_windows: int | Literal["batch"] = 0
    pretrain: int = 0
    train_ratio: float = 16.0
    collect_length: int = 4
    collect_ahead: bool = False
    success_window: int = 100
    precision: str = "float32"
    cuda_graph: bool = False
    compile: bool = False
    log_every: int = 500
    check_every: int = 10
    on_bad_value: Literal["stop", "skip"] = "stop"
    evaluate_every: int = 5000
    evaluate_episodes: int = 10
    evaluate_sampled: bool = False
    evaluate_limit: int = 30_000
    final_episodes: int = 50
    checkpoint_every: int = 2000
    report: bool = True
    replay: Mapping[str, Any] = field(default_factory=dict)
    pairs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, config: DictConfig) -> Settings:
        """The ``training`` block of a configuration.

        Raises:
            ConfigError: a key that is not here, or a value of another type or out of range.
        """
        block = _whole(OmegaConf.to_container(config.training, resolve=True))
        for name, value in block.items():
            if isinstance(value, Mapping) and "_target_" in value:
                raise ConfigError(
                    f"training.{name} is a part: found _target_ {value['_target_']!r}, wanted a plain value; "
                    f"correct training.{name}"
                )
        check_arguments(cls, block, "training")
        settings = cls(**block)
        if settings.time_limit is not None and not 0 < settings.time_limit < math.inf:
            raise ConfigError(
                f"training.time_limit is {settings.time_limit!r}: wanted minutes above zero, or null for no "
                "limit; correct training.time_limit"
            )
        for name, value in vars(settings).items():
            if isinstance(value, (int, float)):
                least = 1 if name in _AT_LEAST_ONE else 0
                check_range(f"training.{name}", value, least, open_end=isinstance(value, float))
        return settings


_LAST_SEED = 2**31 - 1
_AT_LEAST_ONE = ("collect_length", "success_window", "check_every", "evaluate_episodes", "evaluate_limit")


def _whole(value: Any) -> Any:
    """``1e6`` is a number of steps too."""
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def set_up(config: DictConfig) -> tuple[torch.device, int]:
    """Threads and the seed of chance, as the configuration says.

    Returns:
        Device and seed.

    Raises:
        ConfigError: one of them is of another type or out of range, or the device is not there.
    """
    seed, threads = config.get("seed", 0), config.get("threads")
    check_value("seed", seed, int, "a run")
    check_value("threads", threads, int | None, "a run")
    check_range("seed", seed, 0, _LAST_SEED)
    if threads is not None:
        check_range("threads", threads, 1)
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    random.seed(seed)  # which environments may draw from, as from NumPy's
    np.random.seed(seed)
    return find_device(config), seed


def find_device(config: DictConfig) -> torch.device:
    """``config.device``; ``auto`` takes an accelerator where there is one.

    Raises:
        ConfigError: the device is unknown or not there.
    """
    return to_device("device", str(config.get("device") or "cpu"))


def check_num_envs(config: DictConfig) -> int:
    """How many environments a run takes.

    Raises:
        ConfigError: none, or no number.
    """
    found = config.env.get("num_envs", 1)
    if type(found) is not int or found < 1:
        raise ConfigError(
            f"env.num_envs is {found!r}: wanted a whole number of at least 1, as a run takes it; correct "
            "env.num_envs"
        )
    return found


def to_device(key: str, name: str) -> torch.device:
    """The device that the value of ``key`` names.

    Raises:
        ConfigError: it is unknown or not there.

    >>> to_device("device", "gpu")
    Traceback (most recent call last):
    wmkit.errors.ConfigError: device 'gpu' cannot be used: found no device of that name in PyTorch, wanted
    cpu, cuda or auto; choose one with device=NAME
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = "no device of that name in PyTorch"
    try:
        device = torch.device(name)
        found = "none here that PyTorch can compute on"
        torch.zeros(1, device=device).item()  # which a device without data has none of
        return device
    except (RuntimeError, AssertionError, ImportError) as error:
        if name.startswith("cuda"):  # of the others it says too much
            found = repr(str(error).splitlines()[0].partition(". ")[0])
        raise ConfigError(
            f"{key} {name!r} cannot be used: found {found}, wanted cpu, cuda or auto; choose one with "
            f"{key}=NAME"
        ) from error
