"""Numbered episodes: environments that can play an open episode again, so that a run is resumed where it was.

An environment whose episode n follows from its seed and n alone, whatever came before, has a method
``enter(n)``: the next reset begins that episode. What happened in it since is a function of the actions::

    enter(n) ──▶ reset ──▶ step a0 ──▶ step a1 ──▶ ...  the episode as it was left

Nothing of a simulator is kept in a file. Training numbers the episodes of every environment
(:attr:`wmkit.envs.guarded.Guard.numbered`); one without ``enter`` goes on with its own stream.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from tensordict import TensorDictBase
from torchrl.envs import SerialEnv, TransformedEnv


class World(Protocol):
    """One environment of a batch.

    Attributes:
        number: which of the batch.
        episode: that the next reset begins.
        enters: whether the environment has ``enter``.
        broken: whether it has failed and was not made anew.
    """

    number: int
    episode: int

    @property
    def enters(self) -> bool:
        """See above."""

    @property
    def broken(self) -> bool:
        """See above."""

    def begin(self, episode: int) -> TensorDictBase:
        """Reset to the beginning of an episode; what it shows, ``[]``."""

    def take(self, action: Any) -> TensorDictBase:
        """One step; what it shows, with ``reward``."""


def episode_seed(seed: int | None, episode: int) -> int:
    """A seed of 31 bits for one episode of the stream of ``seed``; that of the first is the stream's own.

    >>> episode_seed(7, 0), episode_seed(7, 1) == episode_seed(7, 1), episode_seed(7, 1) == episode_seed(8, 1)
    (7, True, False)
    """
    seed = 0 if seed is None else int(seed)
    if episode == 0:
        return seed
    return int(np.random.SeedSequence([seed % 2**64, episode]).generate_state(1)[0] >> 1)


def find_worlds(env: Any) -> list[World]:
    """The environments of a batch, below its transforms; none where they are not guarded.

    >>> from wmkit.envs import make_env
    >>> from wmkit.envs.guarded import Guard
    >>> env = make_env("counting", num_envs=2, guard=Guard("counting"))
    >>> _ = env.reset()
    >>> [(world.number, world.enters) for world in find_worlds(env)]
    [(0, True), (1, True)]
    """
    from wmkit.envs.guarded import Guarded
    from wmkit.envs.parallel import ParallelWorlds

    while isinstance(env, TransformedEnv):
        env = env.base_env
    if isinstance(env, ParallelWorlds):
        return list(env.worlds)
    found = list(getattr(env, "_envs", ())) if isinstance(env, SerialEnv) else []
    return found if all(isinstance(one, Guarded) for one in found) else []
