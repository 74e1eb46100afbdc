"""A run's recorded data: opened, held against the environment, written into its replay once.

    RUN/records.json    what was recorded: path, keys, actions, statistics; whether all of it is in replay
    RUN/replay          the records themselves, as a collector would have left them

After that a run needs the data set no more. One without an environment is built for a stand-in that shows
what was recorded and cannot be played.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from wmkit.data.files import is_count, is_number, need, read_json
from wmkit.data.layout import LATENTS
from wmkit.data.recorded import Column, DataSettings, Fitted, open_recorded
from wmkit.data.recorded.convert import (
    ActionCode,
    check_fits,
    read_actions,
    spec_of,
    statistics,
    write_records,
)
from wmkit.data.within import WithinEpisodes
from wmkit.errors import ConfigError, DataError, WmkitError
from wmkit.training.memory import ReplayMemory
from wmkit.training.parts import Parts
from wmkit.training.progress import Stages
from wmkit.training.protocol import NO_WORLD
from wmkit.training.run import RunDirectory

FILE = "records.json"
ADVICE = "restore it, or start the run anew"
READ_BY = ("path", "keys", "rename", "image_size", "frame_skip", "actions", "num_actions", "episodes")


class RecordedWorld(EnvBase):
    """Stands for the environment that a data set was recorded in: it has its spaces and cannot be played.

    Args:
        shown: observations, ``[*]`` each.
        action: what would be taken.
        num_envs: batch size N.
    """

    def __init__(self, shown: Composite, action: TensorSpec, num_envs: int = 1) -> None:
        batch = torch.Size([num_envs])
        super().__init__(device="cpu", batch_size=batch)
        self.observation_spec = shown.expand(batch)
        self.action_spec = action.expand(num_envs, *action.shape)
        self.reward_spec = Unbounded((num_envs, 1))
        flags = ("done", "terminated", "truncated")
        self.done_spec = Composite(
            {key: Binary(shape=(num_envs, 1), dtype=torch.bool) for key in flags}, shape=batch
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        return self.observation_spec.zero().update(self.done_spec.zero())

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        raise ConfigError(NO_WORLD)

    def _set_seed(self, seed: int | None) -> None:
        return None


class Records:
    """The recorded data of one run.

    Args:
        config: with a ``data`` block.
        run: its directory.

    Raises:
        CheckpointError: ``records.json`` is damaged.
    """

    def __init__(self, config: DictConfig, run: RunDirectory) -> None:
        block: Any = OmegaConf.to_container(config.data, resolve=True)
        self.settings, self.path = DataSettings.read(block), run.path
        self.has_env = config.get("env") is not None
        self._name = str(OmegaConf.select(config, "env.name"))
        self.said: dict[str, Any] = _read(run.path / FILE)
        self._check_same()
        self._fitted: Fitted | None = None
        self._code: ActionCode | None = None
        self._base: EnvBase | None = None

    @property
    def complete(self) -> bool:
        """Whether all records are in replay."""
        return bool(self.said.get("complete"))

    def _check_same(self) -> None:
        """What is in replay was read as the run says."""
        now = {name: getattr(self.settings, name) for name in READ_BY}
        then = self.said.setdefault("settings", now)
        for name, value in now.items():
            if isinstance(then, dict) and then.get(name) != value:
                raise ConfigError(
                    f"data.{name} is {value!r}: wanted {then.get(name)!r}, with which the run has read its "
                    "records; leave it, or begin another run"
                )

    def parts(self, parts: Parts) -> Parts:
        """Makers of environments and replay that know of the records."""

        def make_env(config: DictConfig, affordance: Any, *, seed: int, evaluation: bool = False) -> EnvBase:
            if not self.has_env:
                if evaluation:
                    raise ConfigError(NO_WORLD)
                return self._world()
            env = parts.make_env(config, affordance, seed=seed, evaluation=evaluation)
            if not evaluation:
                self._base = env
            return env

        def make_memory(config: DictConfig, run: RunDirectory, system: Any, num_envs: int) -> ReplayMemory:
            return self._memory(config, run, system, num_envs, parts.make_memory)

        return replace(parts, make_env=make_env, make_memory=make_memory)

    # ------------------------------------------------------------------ what was recorded

    def _open(self, keys: list[str] | None) -> Fitted:
        source = open_recorded(self.settings.path)
        inside = Path(source.path).resolve()
        if inside.is_relative_to(self.path.resolve()):
            raise DataError(
                f"data set {self.settings.path!r} is the run's own replay: found it in run_dir, wanted "
                "another run's; choose another run_dir"
            )
        return Fitted(source, self.settings, keys)

    def _world(self) -> RecordedWorld:
        if "observations" not in self.said:
            fitted = self._open(None)
            self._say(fitted, read_actions(fitted, self.settings.num_actions))
        return RecordedWorld(Composite(self._shown()), self._coded().spec())

    def _say(self, fitted: Fitted, code: ActionCode) -> None:
        """What is known of the data before it is read in full."""
        self._fitted, self._code = fitted, code
        columns = fitted.observations.items()
        self.said |= {
            "path": self.settings.path,
            "kind": fitted.kind,
            "episodes": len(fitted),
            "rewards": fitted.rewards,
            "observations": {
                key: {"shape": list(c.shape), "dtype": c.dtype.newbyteorder("=").name, "classes": c.classes}
                for key, c in columns
            },
            "action": {
                "width": code.width,
                "discrete": code.discrete,
                "encoded": code.encoded,
                "low": None if code.low is None else code.low.tolist(),
                "high": None if code.high is None else code.high.tolist(),
            },
        }

    def _shown(self) -> dict[str, TensorSpec]:
        return {
            key: spec_of(Column(key, tuple(one["shape"]), np.dtype(one["dtype"]), one["classes"]))
            for key, one in self.said["observations"].items()
        }

    def _coded(self) -> ActionCode:
        said = self.said["action"]
        bounds = (None if said[end] is None else np.asarray(said[end]) for end in ("low", "high"))
        return ActionCode(said["width"], said["discrete"], said["encoded"], *bounds)

    # ------------------------------------------------------------------ replay

    def _memory(
        self,
        config: DictConfig,
        run: RunDirectory,
        system: Any,
        num_envs: int,
        make: Callable[..., ReplayMemory],
    ) -> ReplayMemory:
        observed = [key for key in system.spaces.observations if key not in ("reward", "affordance")]
        if not self.complete:
            if self._fitted is None or self.has_env or list(self._fitted.observations) != observed:
                self._fitted = self._open(observed)
            env_action = None
            if self._base is not None:
                shown = {key: self._base.observation_spec[0][key] for key in observed}
                check_fits(self._fitted, shown, self._name)
                env_action = self._base.full_action_spec[0]["action"]
            self._say(self._fitted, read_actions(self._fitted, self.settings.num_actions, env_action))
            rows = [0] * num_envs
            for index, length in enumerate(self._fitted.lengths):
                rows[index % num_envs] += length
            live = int(config.training.replay.get("capacity", 100_000)) if self.has_env else 0
            self.said |= {"capacity": (max(rows) + live // num_envs) * num_envs}
        whole = config.copy()
        OmegaConf.update(whole, "training.replay.capacity", self.said["capacity"], force_add=True)
        memory = make(whole, run, system, num_envs)
        if self.settings.windows == "within":
            memory.streams.sampler = memory.uniform = WithinEpisodes(memory.streams)
        if self._base is not None:  # what the environment shows beside goes nowhere
            others = set(self._base.observation_spec.keys()) - set(observed)
            memory.writer.exclude = (*memory.writer.exclude, *sorted(map(str, others)))
        self._write_file()
        return memory

    def write(self, trainer: Any, stages: Stages) -> None:
        """Read what is not in replay yet, and keep statistics for parts that ask.

        Args:
            trainer: its ``env``, ``system`` and ``memory``.
            stages: draws the progress bar.

        Raises:
            DataError: what was found does not fit; a run that had nothing else leaves nothing.
        """
        memory, system = trainer.memory, trainer.system
        if not self.complete:
            fitted, code = self._fitted, self._code
            assert fitted is not None and code is not None
            shown = {key: self._spec(key, spec) for key, spec in self._shown().items()}
            defaults = self._defaults(trainer)
            try:
                with stages.stage("records", len(fitted), "episodes") as bar:
                    write_records(fitted, memory.streams, code, shown, defaults, bar.advance)
            except WmkitError:
                self._withdraw()
                raise
            self._check_windows(memory, system, stages)
            self.said |= {"complete": True, "statistics": statistics(memory.streams)}
            self._write_file()
        teach(system, self.said.get("statistics", {}))

    def _spec(self, key: str, own: TensorSpec) -> TensorSpec:
        return own if self._base is None else self._base.observation_spec[0][key]

    def _defaults(self, trainer: Any) -> dict[str, Tensor]:
        """Keys that a collector's records have and a data set has not: latents, which updates fill in."""
        found: dict[str, Tensor] = {}
        if trainer.memory.writer.latents:
            with torch.no_grad():
                acted = trainer.collection.policy(trainer.env.fake_tensordict())
            found = {
                name: torch.zeros_like(acted[name][0])
                for name in LATENTS
                if acted.get(name, None) is not None
            }
        needs: Mapping[Any, Any] = trainer.system.spaces.needs
        for key, want in needs.items():
            if isinstance(key, str):
                found[key] = torch.full(want.shape, want.default, dtype=want.dtype)
        return found

    def _check_windows(self, memory: ReplayMemory, system: Any, stages: Stages) -> None:
        length = memory.length
        if not isinstance(memory.uniform, WithinEpisodes):
            if memory.ready():
                return
            longest = len(memory.streams)
            raise self._short("records in all", longest, length)
        _, _, lengths = memory.uniform.episodes(memory.streams.windows(length))
        if int(lengths.max()) < length:
            raise self._short("records in its longest episode", int(lengths.max()), length)
        short = int((lengths < length).sum())
        if short:
            stages.say(
                f"{short:,} of {len(lengths):,} episodes are shorter than a window of {length} records and "
                "are not learned from; set batch.length lower, or data.windows=across"
            )

    def _short(self, what: str, found: int, wanted: int) -> DataError:
        self._withdraw()
        return DataError(
            f"data set {self.settings.path!r} is too short to learn from: found {found} {what}, wanted "
            f"{wanted} for a window; set batch.length lower, or data.windows=across"
        )

    def _withdraw(self) -> None:
        """Leave nothing of what cannot be learned from."""
        if not (self.path / "checkpoints").exists() or not any((self.path / "checkpoints").iterdir()):
            shutil.rmtree(self.path / "replay", ignore_errors=True)
            (self.path / FILE).unlink(missing_ok=True)

    def _write_file(self) -> None:
        temporary = self.path / f".{FILE}.tmp"
        temporary.write_text(json.dumps({"version": 1, **self.said}, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.path / FILE)


def teach(system: Any, found: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Give every module of a system that asks the statistics of the records.

    A module asks by a method ``take_statistics``; it is given mean and standard deviation by key, and keeps
    what it needs in buffers, which a checkpoint holds.
    """
    for module in system.modules() if hasattr(system, "modules") else ():
        if hasattr(module, "take_statistics"):
            module.take_statistics(found)


def _read(path: Path) -> dict[str, Any]:
    """``records.json``; empty where there is none.

    Raises:
        CheckpointError: it is not what :class:`Records` writes.
    """
    if not path.exists():
        return {}
    said, thing = read_json(path, ADVICE), repr(str(path))
    need(isinstance(said, dict) and said.get("version") == 1, thing, said, "a mapping of version 1", ADVICE)

    def check(fits: bool, name: str) -> None:
        need(fits, f"{name!r} of {thing}", said.get(name), "what wmkit writes there", ADVICE)

    shown, action, known = (said.get(name) for name in ("observations", "action", "statistics"))
    check(isinstance(shown, dict) and all(map(_is_column, shown.values())), "observations")
    check(isinstance(action, dict) and _is_action(action), "action")
    check(is_count(said.get("capacity"), 2, 2**40), "capacity")
    check(is_count(said.get("episodes"), 1), "episodes")
    check(known is None or (isinstance(known, dict) and all(map(_are_numbers, known.values()))), "statistics")
    return said


def _is_column(one: Any) -> bool:
    if not isinstance(one, dict) or not one.keys() >= {"shape", "dtype", "classes"}:
        return False
    sizes = isinstance(one["shape"], list) and len(one["shape"]) < 8
    known = ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "bool")
    named = one["dtype"] in (*known, "float16", "float32", "float64")
    counted = one["classes"] is None or is_count(one["classes"], 1, 2**16)
    return sizes and all(is_count(n, 1, 2**20) for n in one["shape"]) and named and counted


def _is_action(one: dict[str, Any]) -> bool:
    flags = all(isinstance(one.get(name), bool) for name in ("discrete", "encoded"))
    width = one.get("width")
    ends = (one.get("low"), one.get("high"))
    fits = (
        end is None or (isinstance(end, list) and len(end) == width and all(map(is_number, end)))
        for end in ends
    )
    return flags and is_count(width, 1, 2**16) and all(fits)


def _are_numbers(one: Any) -> bool:
    if not isinstance(one, dict) or one.keys() != {"mean", "std"}:
        return False
    return all(isinstance(values, list) and all(map(is_number, values)) for values in one.values())


def recorded_episodes(memory: ReplayMemory, count: int, most: int = 200) -> list[TensorDict]:
    """The first episodes of a replay ``[T]``, for pictures of what was imagined.

    Args:
        memory: of the run.
        count: how many.
        most: records of each.
    """
    sampler = WithinEpisodes(memory.streams)
    streams, firsts, lengths = sampler.episodes(memory.streams.windows(memory.length))
    longest = lengths.argsort(descending=True, stable=True)[:count]
    found = []
    for episode in longest.tolist():
        positions = firsts[episode] + torch.arange(min(int(lengths[episode]), most))
        ids = positions * memory.streams.num_streams + streams[episode]
        found.append(memory.streams.get(ids))  # type: ignore[arg-type]
    return found  # type: ignore[return-value]
