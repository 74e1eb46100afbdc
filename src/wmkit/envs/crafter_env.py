"""Crafter (Hafner 2021, arXiv:2109.06780): survival on a map of 64 x 64, seen from above.

step        one action, no repeat
reward      1 for each of 22 achievements, once an episode; 0.1 per point of health won or lost
image       64 x 64 colour as drawn: 9 x 7 squares of the map, the inventory below
end         no health left: terminated; 10,000 steps: truncated
score       see :func:`crafter_score`
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase

from wmkit.envs.adapters import channels_first, ends, ends_spec, needs
from wmkit.errors import ConfigError

ACHIEVEMENTS = (
    *("collect_coal", "collect_diamond", "collect_drink", "collect_iron", "collect_sapling"),
    *("collect_stone", "collect_wood", "defeat_skeleton", "defeat_zombie", "eat_cow", "eat_plant"),
    *("make_iron_pickaxe", "make_iron_sword", "make_stone_pickaxe", "make_stone_sword"),
    *("make_wood_pickaxe", "make_wood_sword", "place_furnace", "place_plant", "place_stone"),
    *("place_table", "wake_up"),
)


def crafter_score(episodes: Sequence[Collection[str]]) -> float:
    """The benchmark's score in percent: exp(mean(ln(1 + s))) - 1, s in percent for each achievement.

    The paper takes all episodes of a training run of a million steps.

    Args:
        episodes: the achievements that each of them unlocked, at least one episode; s is in how many of
            them an achievement was unlocked.

    >>> round(crafter_score([ACHIEVEMENTS, ()]), 6), crafter_score([()])
    (50.0, 0.0)
    """
    rates = (100 * sum(name in unlocked for unlocked in episodes) / len(episodes) for name in ACHIEVEMENTS)
    return math.expm1(sum(map(math.log1p, rates)) / len(ACHIEVEMENTS))


class CrafterEnv(EnvBase):
    """Crafter through its own package.

    Keys: ``pixels`` uint8 ``[3, 64, 64]``, ``achievements`` bool ``[22]``, which of ``ACHIEVEMENTS`` this
    episode unlocked (for the logs; systems do not see it), ``reward`` float32 ``[1]``, ``done``,
    ``terminated``, ``truncated`` bool ``[1]``; ``action`` one-hot int64 ``[17]``. The same seed gives the
    same worlds.

    Args:
        seed: of the stream of worlds.
        reward: pay rewards; False is the benchmark without them.
        max_steps: after which an episode is truncated.
        image_size: side of the image.

    Raises:
        ConfigError: crafter is missing, or an option is out of range.

    >>> env = CrafterEnv()  # doctest: +SKIP
    >>> env.rollout(3)["pixels"].shape  # doctest: +SKIP
    torch.Size([3, 3, 64, 64])
    """

    def __init__(
        self, *, seed: int = 0, reward: bool = True, max_steps: int = 10_000, image_size: int = 64
    ) -> None:
        if max_steps < 1 or image_size < 9:
            raise ConfigError(
                f"crafter got max_steps={max_steps} and image_size={image_size}: wanted at least 1 step, and "
                "9 pixels for as many squares; correct them"
            )
        with needs("crafter", "Crafter"):
            import crafter

        super().__init__(device="cpu", batch_size=torch.Size([]))
        self._create = lambda seed: crafter.Env(
            size=(image_size, image_size), reward=reward, length=max_steps, seed=seed
        )
        self._set_seed(seed)
        self.observation_spec = Composite(
            pixels=Bounded(0, 255, (3, image_size, image_size), dtype=torch.uint8),
            achievements=Binary(len(ACHIEVEMENTS), dtype=torch.bool),
        )
        self.action_spec = OneHot(len(self._game.action_names), dtype=torch.int64)
        self.reward_spec = Unbounded((1,))
        self.done_spec = ends_spec()

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        out = {
            "pixels": torch.from_numpy(channels_first(self._game.reset())),
            "achievements": torch.zeros(len(ACHIEVEMENTS), dtype=torch.bool),
        }
        return TensorDict._new_unsafe(out | ends(), batch_size=torch.Size([]))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        image, reward, done, info = self._game.step(int(tensordict.get("action").argmax()))
        out = {
            "pixels": torch.from_numpy(channels_first(image)),
            "achievements": torch.tensor([info["achievements"][name] > 0 for name in ACHIEVEMENTS]),
            "reward": torch.tensor([reward], dtype=torch.float32),
        }
        return TensorDict._new_unsafe(
            out | ends(info["discount"] == 0, bool(done)), batch_size=torch.Size([])
        )

    def _set_seed(self, seed: int | None) -> None:
        self._game = self._create(0 if seed is None else int(seed))  # it takes a seed only here
