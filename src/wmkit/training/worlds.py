"""The training environments as a checkpoint keeps them: which episode each is in, what the policy carries.

No simulator is written to a file. A resumed run has each environment begin its open episode again and takes
the actions that replay holds of it; what it shows then must be what it showed when the run was stopped,
reward by reward, and the run goes on in the middle of it. Otherwise, and with environments that cannot
begin an episode by its number (:mod:`wmkit.envs.episodes`), new episodes begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, TransformedEnv

from wmkit.data import ReplayStreams
from wmkit.data.files import is_count
from wmkit.envs.episodes import World, find_worlds
from wmkit.envs.guarded import find_guard
from wmkit.errors import EnvironmentCrashError
from wmkit.training.collect import Collection


class Worlds:
    """The environments of a run, numbered by episode.

    Args:
        env: batched, ``batch_size [N]``, transforms included; it was seeded and not reset yet.
        labels: the AffordanceTransform among them, whose memory of running episodes is kept; None without.
        seed: of their streams of episodes.
    """

    def __init__(self, env: EnvBase, labels: Any, seed: int) -> None:
        self._env, self._labels, self.seed = env, labels, seed
        self._guard = find_guard(env)
        if self._guard is not None:
            self._guard.numbered = True

    def state_dict(self, collection: Collection) -> dict[str, Any]:
        """Episodes and what the collector carries; empty where one cannot be begun again or was cut."""
        worlds, carried = find_worlds(self._env), collection.carried
        if not worlds or carried is None or not all(one.enters and not one.broken for one in worlds):
            return {}
        if self._guard is not None and (self._guard.cut or self._guard.over is not None):
            return {}
        state = {
            "seed": self.seed,
            "episodes": [world.episode for world in worlds],
            "carried": carried.clone().to_dict(),
        }
        memory = None if self._labels is None else self._labels.memory
        return state if memory is None else {**state, "labels": [*memory]}

    def restore(self, state: Any, collection: Collection, streams: ReplayStreams) -> bool:
        """Bring every environment and the collector to where they were; whether they are there.

        Where not, :meth:`begin_anew` is next.

        Args:
            state: of :meth:`state_dict`, from a file.
            collection: which steps them.
            streams: the replay, which ends where the state was taken.
        """
        worlds, carried = find_worlds(self._env), collection.carried
        if carried is None or not self._fits(state, worlds, carried):
            return False
        there = TensorDict(state["carried"], batch_size=carried.batch_size)
        if self._labels is not None and not self._remember(state.get("labels")):
            return False
        played = [_open_episode(streams, world.number, there["is_init"][world.number]) for world in worlds]
        if any(one is None for one in played):
            return False  # its first records have been overwritten
        if state["seed"] != self.seed:
            self.seed = state["seed"]
            self._env.set_seed(self.seed)
        try:
            if not self._play(worlds, state["episodes"], [one for one in played if one is not None], there):
                return False
        except EnvironmentCrashError:
            return False
        collection.carry(there)
        return True

    def begin_anew(self, collection: Collection, episodes: Any, passed: int) -> None:
        """New episodes, not those that the run has seen.

        Args:
            collection: is reset.
            episodes: a checkpoint's, if it holds some.
            passed: so many more may have begun since; in a run without numbers, steps since its beginning.
        """
        worlds = find_worlds(self._env)
        known = _are_counts(episodes, len(worlds))
        for world, number in zip(worlds, episodes if known else [0] * len(worlds), strict=True):
            world.episode = number + passed
        if not all(world.enters for world in worlds) or not worlds:
            self.seed += passed
            self._env.set_seed(self.seed)
        collection.restart()

    def _fits(self, state: Any, worlds: list[World], carried: TensorDictBase) -> bool:
        if not isinstance(state, dict) or not worlds or not all(world.enters for world in worlds):
            return False
        if not _are_counts(state.get("episodes"), len(worlds)) or min(state["episodes"]) < 1:
            return False
        if not is_count(state.get("seed")) or not _is_tree(state.get("carried")):
            return False
        found = _shapes(state["carried"])
        if not all(shape[:1] == carried.batch_size for shape, _ in found.values()):
            return False
        return all(found.get(key) == (one.shape, one.dtype) for key, one in carried.items(True, True))

    def _remember(self, found: Any) -> bool:
        """Give the labels their memory of running episodes back."""
        known = self._labels.memory
        if known is None or not isinstance(found, list) or len(found) != len(known):
            return False
        for one, wanted in zip(found[:4], known[:4], strict=True):
            if not isinstance(one, Tensor) or one.shape != wanted.shape or one.dtype != wanted.dtype:
                return False
        if not all(one is None or isinstance(one, Tensor) for one in found):
            return False
        self._labels.memory = type(known)(*(None if x is None else x.to(known[0].device) for x in found))
        return True

    def _play(
        self,
        worlds: list[World],
        episodes: list[int],
        played: list[tuple[Tensor, Tensor]],
        there: TensorDictBase,
    ) -> bool:
        """Take every environment's actions again; whether rewards and the last observation are the same."""
        for world, episode, (actions, rewards) in zip(worlds, episodes, played, strict=True):
            shown = world.begin(episode - 1)
            for action, reward in zip(self._as_the_environment_sees(actions), rewards, strict=True):
                shown = world.take(action)
                if not torch.equal(shown["reward"].float().flatten(), reward.flatten()):
                    return False
            if world.broken or world.episode != episode:
                return False
            same = [
                torch.equal(value, there[world.number].get(key))
                for key, value in shown.items(True, True)
                if key not in ("reward", "done", "terminated", "truncated") and key in there.keys(True)
            ]
            if not same or not all(same):
                return False
        return True

    def _as_the_environment_sees(self, actions: Tensor) -> Tensor:
        """Actions ``[n, A]`` of the policy, through the transforms on their way in."""
        env: Any = self._env
        batch = [len(actions), *env.batch_size]
        taken = TensorDict({"action": actions[:, None].expand(*batch, -1)}, batch_size=batch)
        while isinstance(env, TransformedEnv):
            taken = env.transform.inv(taken)
            env = env.base_env
        return taken["action"][:, 0].to(env.full_action_spec["action"].dtype)


def _open_episode(streams: ReplayStreams, stream: int, begins: Tensor) -> tuple[Tensor, Tensor] | None:
    """Actions ``[n, A]`` and rewards ``[n, 1]`` of a stream's last episode; None where its start is gone.

    ``begins`` says that the environment was reset since: then there are none.
    """
    ids = streams.ids(stream)
    starts = streams.get(ids, keys=["is_init"])["is_init"].flatten().nonzero() if len(ids) else ids
    if not len(starts):
        return None
    since = streams.get(ids[int(starts[-1]) + 1 :], keys=["previous_action", "reward"])
    since = since[:0] if bool(begins.any()) else since
    return since["previous_action"], since["reward"]


def _are_counts(value: Any, number: int) -> bool:
    return isinstance(value, list) and len(value) == number and all(map(is_count, value))


def _is_tree(value: Any) -> bool:
    """Whether this is nested dictionaries of tensors."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_tree(one) for key, one in value.items())
    return isinstance(value, Tensor)


def _shapes(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in tree.items():
        here = (*path, name)
        if isinstance(value, Mapping):
            found |= _shapes(value, here)
        else:
            found[here if path else name] = (value.shape, value.dtype)
    return found
